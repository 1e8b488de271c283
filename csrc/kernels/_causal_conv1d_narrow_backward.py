"""The backward of the convolution over a sequence for widths up to W: see _causal_conv1d_walk.py."""

# Triton has no starred tuples.
# ruff: noqa: RUF005

from _arithmetic import LOG2E, exp2_fast, reciprocal
from _causal_conv1d_steps import (
    HAS_STATES,
    SILU,
    fetch_run,
    load_filter,
    places,
    program_places,
    run_layout,
    steps_of_run,
    store_run,
)
from _causal_conv1d_walk import (
    add_if,
    add_states_before,
    ask_for,
    convolved,
    fetch_apart,
    load_apart,
    places_of_lines,
    widened_steps,
)
from _half import narrowed
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

# How many blocks ahead their lines are asked for.
AHEAD = gl.constexpr(2)


@gluon.jit
def before_activation(gs, xs, taps, offset, width, flags, W: gl.constexpr):
    """The gradient of some steps before the activation; `xs` begins W - 1 steps early.

    With SiLU taps and offset are multiplied by -log2(e), and the gradient is so by -ln 2.
    """
    if (flags & SILU) != 0:
        slopes = ()
        # -ln 2 as the same instruction gives it, so that 1 - s is 0 where s is 1.
        one = reciprocal(gl.full_like(offset, -LOG2E))
        for step in gl.static_range(len(gs)):
            y = convolved(xs, taps, offset, width, step, W)
            s = reciprocal(gl.fma(exp2_fast(y), gl.full_like(y, -LOG2E), -LOG2E))
            # s + y s (1 - s)
            g = gs[step] * s
            slopes = slopes + (gl.fma(g, y * (one - s), g),)
        gs = slopes
    return gs


@gluon.jit
def scaled(values, scale):
    products = ()
    for i in gl.static_range(len(values)):
        products = products + (values[i] * scale,)
    return products


@gluon.jit
def load_steps_of_run(at, inside, flags, BEGIN: gl.constexpr, END: gl.constexpr, STEPS: gl.constexpr):
    TILE: gl.constexpr = at.type.layout
    return steps_of_run(fetch_run(at, inside, STEPS), TILE, flags, STEPS)[BEGIN:END]


@gluon.jit
def causal_conv1d_bwd_kernel(
    dout,
    x,
    weight,
    bias,
    states,
    dx,
    dstates,
    dfilter,
    D,
    L,
    width,
    blocks,
    dout_batch,
    dout_channel,
    dout_time,
    x_batch,
    x_channel,
    x_time,
    states_batch,
    states_channel,
    states_time,
    dx_batch,
    dx_channel,
    dx_time,
    flags,
    W: gl.constexpr,
    LAYOUT: gl.constexpr,
    RUNS: gl.constexpr,
    STEPS: gl.constexpr,
    CHANNELS: gl.constexpr,
    VECTOR: gl.constexpr,
):
    """dx[t] = sum_k w[k] g[t + W - 1 - k] with g the gradient before the activation, computed again from x.

    The walk goes from late to early steps, so that the g a run needs of the steps after it are there already.
    Those of the steps behind its end it computes first.
    `dfilter` holds one row [W + 1, D] per (batch, program along time): by distance i, sum_t g[t] x[t - i];
    then dbias.
    """
    SEQ: gl.constexpr = LAYOUT == "seq"
    BLOCK: gl.constexpr = RUNS * STEPS if SEQ else STEPS
    TILE: gl.constexpr = gl.SliceLayout(2, run_layout(LAYOUT, RUNS, STEPS, CHANNELS, VECTOR, gl.num_warps()))
    if LAYOUT == "seq":
        dout_time = 1
        x_time = 1
        dx_time = 1
    if LAYOUT == "last":
        dout_channel = 1
        x_channel = 1
        dx_channel = 1
    batch, start, d = places(L, D, blocks, TILE, LAYOUT, RUNS, STEPS, CHANNELS)
    valid = d < D
    scale = gl.where((flags & SILU) != 0, -LOG2E, 1.0)
    taps, offset = load_filter(weight, bias, x, d, width, valid, flags, W)
    taps = scaled(taps, scale)
    offset *= scale
    before = states + batch * states_batch
    nothing = gl.zeros([CHANNELS, RUNS] if SEQ else [RUNS, CHANNELS], gl.float32, TILE)
    _, time_blocks, time_block, channel_block = program_places(L, D, blocks, RUNS, STEPS, CHANNELS)
    # Of the run that was last: its first step, and where it lies. At first that is the one behind the walk,
    # of whose g the first ones count.
    end = start + blocks * BLOCK
    first = end.to(gl.int32)
    at_x = x + (batch * x_batch + d * x_channel + end * x_time)
    at_dout = dout + (batch * dout_batch + d * dout_channel + end * dout_time)
    at_dx = dx + (batch * dx_batch + d * dx_channel + end * dx_time)
    if SEQ:
        lane = gl.arange(0, RUNS, gl.SliceLayout(0, TILE))[None, :] + gl.zeros(
            [CHANNELS, RUNS], gl.int32, TILE
        )
        following = (lane + 1) % RUNS
        behind = valid & (lane == 0) & (first < L)
        earlier = load_steps_of_run(at_x - STEPS, behind, flags, STEPS - W + 1, STEPS, STEPS)
        beyond = load_steps_of_run(at_x, behind, flags, 0, W - 1, STEPS)
        after = load_steps_of_run(at_dout, behind, flags, 0, W - 1, STEPS)
    else:
        earlier = load_apart(at_x, first, L - first, x_time, valid, flags, 1 - W, 0)
        beyond = load_apart(at_x, first, L - first, x_time, valid, flags, 0, W - 1)
        after = load_apart(at_dout, first, L - first, dout_time, valid, flags, 0, W - 1)
    after = before_activation(after, earlier + beyond, taps, offset, width, flags, W)
    late = earlier
    if LAYOUT == "last":
        # Of x and, in as many rows behind it, of dout.
        row, stretch, of_line, exists = places_of_lines(
            L, D, blocks, x.dtype.element_ty.primitive_bitwidth, 2 * STEPS, RUNS, STEPS, CHANNELS
        )
        step_of_line = stretch + (blocks - 1 - AHEAD) * STEPS + row % STEPS
        stride_of_line = gl.where(row < STEPS, x_time, dout_time)
        lines = gl.where(row < STEPS, x + batch * x_batch, dout + batch * dout_batch)
        lines += of_line + step_of_line.to(gl.int64) * stride_of_line
    sums = (nothing,) * (W + 1)
    for i in range(blocks):
        at_x -= BLOCK * x_time
        at_dout -= BLOCK * dout_time
        at_dx -= BLOCK * dx_time
        first -= BLOCK
        left = L - first
        if SEQ:
            inside = valid & (left > 0)
            xs = load_steps_of_run(at_x, inside, flags, 0, STEPS, STEPS)
            gs = load_steps_of_run(at_dout, inside, flags, 0, STEPS, STEPS)
            earlier = load_steps_of_run(
                at_x - STEPS, inside & (first > 0), flags, STEPS - W + 1, STEPS, STEPS
            )
            asked = inside & (i + AHEAD < blocks)
            ask_for(at_x - AHEAD * BLOCK, asked)
            ask_for(at_dout - AHEAD * BLOCK, asked)
        else:
            steps_before = fetch_apart(at_x, first, left, x_time, valid, 1 - W, STEPS - W + 1)
            gs = widened_steps(fetch_apart(at_dout, first, left, dout_time, valid, 0, STEPS), flags)
            steps_before = widened_steps(steps_before, flags)
            earlier = steps_before[: W - 1]
            xs = steps_before[W - 1 :] + late
            late = earlier
            if LAYOUT == "last":
                ask_for(lines, exists & (i + AHEAD < blocks) & (step_of_line < L))
                lines -= BLOCK * stride_of_line
                step_of_line -= BLOCK
        if (flags & HAS_STATES) != 0:
            earlier = add_states_before(
                earlier, before, first, d, width, states_channel, states_time, valid, flags, W
            )
        xs = earlier + xs
        gs = before_activation(gs, xs, taps, offset, width, flags, W)
        for step in gl.static_range(STEPS):
            added = ()
            for distance in gl.static_range(W):
                added = added + (gl.fma(gs[step], xs[step + W - 1 - distance], sums[distance]),)
            sums = added + (sums[W] + gs[step],)
        if SEQ:
            # The last lane's come from the first one's run of the block after this.
            moved = ()
            for step in gl.static_range(W - 1):
                moved = moved + (gl.gather(gl.where(lane == 0, after[step], gs[step]), following, 1),)
            after = gs[: W - 1]
            gs = gs + moved
        else:
            gs = gs + after
            after = gs[: W - 1]
        dxs = ()
        for step in gl.static_range(STEPS):
            total = taps[0] * gs[step]
            for distance in gl.static_range(1, W):
                meets = (distance < width).to(gl.int32)
                total = add_if(meets, taps[distance], gs[step + distance], total)
            dxs = dxs + (total,)
        if SEQ:
            store_run(at_dx, inside, dxs, flags, STEPS)
        else:
            for step in gl.static_range(STEPS):
                value = narrowed(dxs[step], dx.dtype.element_ty, flags)
                gl.store(at_dx + step * dx_time, value, mask=valid & (step < left))

    TIME_AXIS: gl.constexpr = 1 if SEQ else 0
    # One lane stores each channel's sums, where sums as they come are in as many as hold its steps.
    SUMS: gl.constexpr = gl.BlockedLayout([1], [32], [gl.num_warps()], [0])
    channel = channel_block.to(gl.int64) * CHANNELS + gl.arange(0, CHANNELS, SUMS)
    filter_row = dfilter + (batch * time_blocks + time_block) * (W + 1) * D + channel
    for plane in gl.static_range(W + 1):
        at = filter_row + plane * D.to(gl.int64)
        gl.store(at, gl.convert_layout(gl.sum(sums[plane], TIME_AXIS) * scale, SUMS), mask=channel < D)

    if (flags & HAS_STATES) != 0:
        # The input `back` steps before the start was met at distance m + back by the sequence's step m.
        for back in gl.static_range(1, W):
            early = nothing
            for m in gl.static_range(W - back):
                early = add_if((m + back < width).to(gl.int32), taps[(m + back)], after[m], early)
            place = dstates + (batch * D + d) * (width - 1) + (width - 1 - back)
            place, early = gl.broadcast(place, narrowed(early, dstates.dtype.element_ty, flags))
            gl.store(place, early, mask=valid & (start == 0) & (back < width))
