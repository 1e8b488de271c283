"""The convolution over a sequence for widths up to W: see _causal_conv1d_walk.py."""

# Triton has no starred tuples.
# ruff: noqa: RUF005

from _arithmetic import sigmoid_fast
from _causal_conv1d_steps import (
    HAS_STATES,
    SILU,
    fetch_run,
    fetch_run_once,
    load_filter,
    places,
    run_layout,
    steps_of_run,
    store_run,
)
from _causal_conv1d_walk import (
    add_states_before,
    ask_for,
    convolved,
    fetch_apart,
    load_apart,
    places_of_lines,
    widened_steps,
)
from _half import narrowed
from _overlap import wait_for_earlier_kernels
from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.jit
def outputs(xs, taps, offset, width, flags, STEPS: gl.constexpr, W: gl.constexpr):
    """Those of a run, activated; `xs` begins W - 1 steps early."""
    ys = ()
    for step in gl.static_range(STEPS):
        ys = ys + (convolved(xs, taps, offset, width, step, W),)
    if (flags & SILU) != 0:
        activated = ()
        for step in gl.static_range(STEPS):
            activated = activated + (ys[step] * sigmoid_fast(ys[step]),)
        ys = activated
    return ys


@gluon.jit
def causal_conv1d_fwd_kernel(
    x,
    weight,
    bias,
    states,
    out,
    D,
    L,
    width,
    blocks,
    x_batch,
    x_channel,
    x_time,
    states_batch,
    states_channel,
    states_time,
    out_batch,
    out_channel,
    out_time,
    flags,
    W: gl.constexpr,
    LAYOUT: gl.constexpr,
    RUNS: gl.constexpr,
    STEPS: gl.constexpr,
    CHANNELS: gl.constexpr,
    VECTOR: gl.constexpr,
    AT_ONCE: gl.constexpr,
):
    """Each program walks over blocks * RUNS * STEPS steps of CHANNELS channels, and asks for some blocks at
    once, so that enough bytes are under way.
    """
    wait_for_earlier_kernels()
    SEQ: gl.constexpr = LAYOUT == "seq"
    BLOCK: gl.constexpr = RUNS * STEPS if SEQ else STEPS
    TILE: gl.constexpr = gl.SliceLayout(2, run_layout(LAYOUT, RUNS, STEPS, CHANNELS, VECTOR, gl.num_warps()))
    if LAYOUT == "seq":
        x_time = 1
        out_time = 1
    if LAYOUT == "last":
        x_channel = 1
        out_channel = 1
    batch, start, d = places(L, D, blocks, TILE, LAYOUT, RUNS, STEPS, CHANNELS)
    valid = d < D
    taps, offset = load_filter(weight, bias, x, d, width, valid, flags, W)
    # Of the run that is next: its first step, and where it lies.
    first = start.to(gl.int32)
    at_x = x + (batch * x_batch + d * x_channel + start * x_time)
    at_out = out + (batch * out_batch + d * out_channel + start * out_time)
    if SEQ:
        lane = gl.arange(0, RUNS, gl.SliceLayout(0, TILE))[None, :] + gl.zeros(
            [CHANNELS, RUNS], gl.int32, TILE
        )
        preceding = (lane + RUNS - 1) % RUNS
        final = lane == RUNS - 1
        # Of the block before the first one only the last lane's run is needed.
        edge = fetch_run(at_x - BLOCK, valid & final & (first >= BLOCK), STEPS)
        early = steps_of_run(edge, TILE, flags, STEPS)[STEPS - W + 1 :]
    else:
        early = load_apart(at_x, first, L - first, x_time, valid, flags, 1 - W, 0)
    if (flags & HAS_STATES) != 0:
        following = first - (RUNS - 1) * STEPS if SEQ else first
        before = states + batch * states_batch
        early = add_states_before(
            early, before, following, d, width, states_channel, states_time, valid, flags, W
        )

    if LAYOUT == "last":
        row, stretch, of_line, exists = places_of_lines(
            L, D, blocks, x.dtype.element_ty.primitive_bitwidth, AT_ONCE * STEPS, RUNS, STEPS, CHANNELS
        )
        step_of_line = stretch + AT_ONCE * STEPS + row
        lines = x + (batch * x_batch + of_line + step_of_line.to(gl.int64) * x_time)

    for begun in range(0, blocks, AT_ONCE):
        loaded = ()
        for i in gl.static_range(AT_ONCE):
            left = L - (first + i * BLOCK)
            there = valid & (begun + i < blocks)
            if SEQ:
                loaded = loaded + (fetch_run_once(at_x, there & (left > 0), STEPS),)
            else:
                loaded = loaded + (
                    fetch_apart(at_x + i * BLOCK * x_time, first, left, x_time, there, 0, STEPS),
                )
            if SEQ:
                at_x += BLOCK * x_time
        if not SEQ:
            at_x += AT_ONCE * BLOCK * x_time
        if SEQ:
            for i in gl.static_range(AT_ONCE):
                asked = valid & (begun + AT_ONCE + i < blocks) & (first + (AT_ONCE + i) * BLOCK < L)
                ask_for(at_x + i * BLOCK, asked)
        elif LAYOUT == "last":
            ask_for(lines, exists & (begun + AT_ONCE < blocks) & (step_of_line < L))
            lines += AT_ONCE * BLOCK * x_time
            step_of_line += AT_ONCE * BLOCK
        for i in gl.static_range(AT_ONCE):
            if SEQ:
                xs = steps_of_run(loaded[i], TILE, flags, STEPS)
                # The steps before a run are its neighbour's; the first lane's come from the last one's run of
                # the block before.
                late = xs[STEPS - W + 1 :]
                moved = ()
                for step in gl.static_range(W - 1):
                    moved = moved + (gl.gather(gl.where(final, early[step], late[step]), preceding, 1),)
                early = moved
            else:
                xs = widened_steps(loaded[i], flags)
                late = xs[STEPS - W + 1 :]
            ys = outputs(early + xs, taps, offset, width, flags, STEPS, W)
            left = L - first
            there = valid & (begun + i < blocks)
            if SEQ:
                store_run(at_out, there & (left > 0), ys, flags, STEPS)
            else:
                for step in gl.static_range(STEPS):
                    y = narrowed(ys[step], out.dtype.element_ty, flags)
                    gl.store(at_out + step * out_time, y, mask=there & (step < left))
            at_out += BLOCK * out_time
            first += BLOCK
            early = late
