"""The convolution over a sequence for widths up to W, forward and backward: see _causal_conv1d_steps.py.

A thread walks along time, so that what it sets up, loads of other steps and sums are paid once a walk. In a
sequence-last tensor a warp's lanes have neighbouring runs and step on together; in any other, each has a
stretch of its own, and keeps the steps around a run from the run before.
"""

# Triton has no starred tuples.
# ruff: noqa: RUF005

from _arithmetic import sigmoid_fast
from _causal_conv1d_steps import (
    HAS_BIAS,
    HAS_STATES,
    SILU,
    fetch_run,
    load_run,
    load_taps,
    places,
    run_layout,
    steps_of_run,
    store_run,
)
from _half import narrowed, widened
from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.jit
def add_if(wanted, product, factor, total):
    """total + product * factor where `wanted`, else total: one instruction, and a NaN stays out."""
    return gl.inline_asm_elementwise(
        "{ .reg .pred p; setp.ne.s32 p, $4, 0; mov.b32 $0, $3; @p fma.rn.f32 $0, $1, $2, $0; }",
        "=f,f,f,f,r",
        [product, factor, total, wanted],
        dtype=gl.float32,
        is_pure=True,
        pack=1,
    )


@gluon.jit
def convolved(xs, taps, offset, width, STEP: gl.constexpr, W: gl.constexpr):
    """The output of step number STEP before the activation; `xs` begins W - 1 steps early."""
    y = gl.fma(taps[0], xs[STEP + W - 1], offset)
    # A narrower filter's missing taps meet nothing.
    for distance in gl.static_range(1, W):
        y = add_if((distance < width).to(gl.int32), taps[distance], xs[STEP + W - 1 - distance], y)
    return y


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
def fetch_apart(row, first, left, x_time, valid, BEGIN: gl.constexpr, END: gl.constexpr):
    """Steps first + BEGIN up to first + END, one load each; 0 from `left` steps after `first` on."""
    steps = ()
    for i in gl.static_range(BEGIN, END):
        inside = valid & (i < left)
        if BEGIN < 0:
            inside = inside & (first + i >= 0)
        steps = steps + (gl.load(row + (first + i) * x_time, mask=inside, other=0),)
    return steps


@gluon.jit
def widened_steps(steps, flags):
    wide = ()
    for i in gl.static_range(len(steps)):
        wide = wide + (widened(steps[i], flags),)
    return wide


@gluon.jit
def load_apart(row, first, left, x_time, valid, flags, BEGIN: gl.constexpr, END: gl.constexpr):
    return widened_steps(fetch_apart(row, first, left, x_time, valid, BEGIN, END), flags)


@gluon.jit
def add_states_before(early, states, first, d, width, s_channel, s_time, valid, flags, W: gl.constexpr):
    """The W - 1 steps before step 0 are the initial states."""
    added = ()
    for i in gl.static_range(W - 1):
        index = width - W + i
        at = states + d * s_channel + index * s_time
        before = gl.load(at, mask=valid & (first == 0) & (index >= 0), other=0)
        added = added + (early[i] + widened(before, flags),)
    return added


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
    SEQ: gl.constexpr = LAYOUT == "seq"
    BLOCK: gl.constexpr = RUNS * STEPS if SEQ else STEPS
    TILE: gl.constexpr = gl.SliceLayout(2, run_layout(LAYOUT, RUNS, STEPS, CHANNELS, VECTOR, gl.num_warps()))
    if LAYOUT == "last":
        x_channel = 1
        out_channel = 1
    batch, first, d = places(L, D, blocks, TILE, LAYOUT, RUNS, STEPS, CHANNELS)
    valid = d < D
    taps = load_taps(weight, d, width, valid, W)
    offset = gl.zeros_like(taps[0])
    if (flags & HAS_BIAS) != 0:
        offset += gl.load(bias + d, mask=valid, other=0.0)
    row = x + batch * x_batch + d * x_channel
    out_row = out + batch * out_batch + d * out_channel
    before = states + batch * states_batch
    if SEQ:
        lane = gl.arange(0, RUNS, gl.SliceLayout(0, TILE))[None, :] + gl.zeros(
            [CHANNELS, RUNS], gl.int32, TILE
        )
        preceding = (lane + RUNS - 1) % RUNS
        final = lane == RUNS - 1
        # Of the block before the first one only the last lane's run is needed.
        early = load_run(row, first - RUNS * STEPS, L, valid & final, flags, STEPS)[STEPS - W + 1 :]
    else:
        early = load_apart(row, first, L - first, x_time, valid, flags, 1 - W, 0)

    for begun in range(0, blocks, AT_ONCE):
        loaded = ()
        for i in gl.static_range(AT_ONCE):
            at = first + i * BLOCK
            there = valid & (begun + i < blocks)
            if SEQ:
                loaded = loaded + (fetch_run(row, at, L, there, STEPS),)
            else:
                loaded = loaded + (fetch_apart(row, at, L - at, x_time, there, 0, STEPS),)
        for i in gl.static_range(AT_ONCE):
            left = (L - first).to(gl.int32)
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
            if (flags & HAS_STATES) != 0:
                early = add_states_before(
                    early, before, first, d, width, states_channel, states_time, valid, flags, W
                )
            ys = outputs(early + xs, taps, offset, width, flags, STEPS, W)
            there = valid & (begun + i < blocks)
            if SEQ:
                store_run(out_row, first, left > 0, there, ys, flags, STEPS)
            else:
                for step in gl.static_range(STEPS):
                    y = narrowed(ys[step], out.dtype.element_ty, flags)
                    gl.store(out_row + (first + step) * out_time, y, mask=there & (step < left))
            early = late
            first += BLOCK


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
    It begins one block beyond its end for the sake of those; the sums there are of the next program.
    `dfilter` holds one row [W + 1, D] per (batch, program along time): by distance i, sum_t g[t] x[t - i];
    then dbias.
    """
    SEQ: gl.constexpr = LAYOUT == "seq"
    TILE: gl.constexpr = gl.SliceLayout(2, run_layout(LAYOUT, RUNS, STEPS, CHANNELS, VECTOR, gl.num_warps()))
    if LAYOUT == "last":
        dout_channel = 1
        x_channel = 1
        dx_channel = 1
    batch, start, d = places(L, D, blocks, TILE, LAYOUT, RUNS, STEPS, CHANNELS)
    valid = d < D
    taps = load_taps(weight, d, width, valid, W)
    offset = gl.zeros_like(taps[0])
    if (flags & HAS_BIAS) != 0:
        offset += gl.load(bias + d, mask=valid, other=0.0)
    row = x + batch * x_batch + d * x_channel
    dout_row = dout + batch * dout_batch + d * dout_channel
    dx_row = dx + batch * dx_batch + d * dx_channel
    before = states + batch * states_batch
    nothing = gl.zeros([CHANNELS, RUNS] if SEQ else [RUNS, CHANNELS], gl.float32, TILE)
    block_steps: gl.constexpr = RUNS * STEPS if SEQ else STEPS
    if SEQ:
        lane = gl.arange(0, RUNS, gl.SliceLayout(0, TILE))[None, :] + gl.zeros(
            [CHANNELS, RUNS], gl.int32, TILE
        )
        following = (lane + 1) % RUNS

    after = (nothing,) * (W - 1)
    sums = (nothing,) * (W + 1)
    first = start + blocks * block_steps
    late = (nothing,) * (W - 1)
    if not SEQ:
        late = load_apart(
            row,
            first + STEPS - W + 1,
            (L - first).to(gl.int32) - STEPS + W - 1,
            x_time,
            valid,
            flags,
            0,
            W - 1,
        )
    time_blocks = gl.cdiv(L, blocks * (RUNS * STEPS))
    time_block = gl.program_id(0) % time_blocks
    beyond = (time_block + 1 < time_blocks).to(gl.int32) if SEQ else 1
    for own in range(2):
        for i in range(gl.where(own == 1, blocks, beyond)):
            first = start + (blocks - own - i) * block_steps
            left = (L - first).to(gl.int32)
            if SEQ:
                read = valid & ((own == 1) | (lane == 0))
                earlier = load_run(row, first - STEPS, L, read, flags, STEPS)[STEPS - W + 1 :]
                xs = load_run(row, first, L, read, flags, STEPS)
                gs = load_run(dout_row, first, L, read, flags, STEPS)
            else:
                loaded = load_apart(row, first, left, x_time, valid, flags, 1 - W, STEPS - W + 1)
                earlier = loaded[: W - 1]
                xs = loaded[W - 1 :] + late
                late = earlier
                gs = load_apart(dout_row, first, left, dout_time, valid, flags, 0, STEPS)
            if (flags & HAS_STATES) != 0:
                earlier = add_states_before(
                    earlier, before, first, d, width, states_channel, states_time, valid, flags, W
                )
            xs = earlier + xs
            if (flags & SILU) != 0:
                slopes = ()
                for step in gl.static_range(STEPS):
                    y = convolved(xs, taps, offset, width, step, W)
                    s = sigmoid_fast(y)
                    slopes = slopes + (gs[step] * gl.fma(y * s, 1.0 - s, s),)
                gs = slopes
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
                store_run(dx_row, first, (own == 1) & (left > 0), valid, dxs, flags, STEPS)
            else:
                for step in gl.static_range(STEPS):
                    value = narrowed(dxs[step], dx.dtype.element_ty, flags)
                    gl.store(
                        dx_row + (first + step) * dx_time, value, mask=valid & (own == 1) & (step < left)
                    )
        if own == 0:
            sums = (nothing,) * (W + 1)

    TIME_AXIS: gl.constexpr = 1 if SEQ else 0
    # One lane stores each channel's sums, where sums as they come are in as many as hold its steps.
    SUMS: gl.constexpr = gl.BlockedLayout([1], [32], [gl.num_warps()], [0])
    channel_block = gl.program_id(0) // time_blocks % gl.cdiv(D, CHANNELS)
    channel = channel_block.to(gl.int64) * CHANNELS + gl.arange(0, CHANNELS, SUMS)
    filter_row = dfilter + (batch * time_blocks + time_block) * (W + 1) * D + channel
    for plane in gl.static_range(W + 1):
        at = filter_row + plane * D.to(gl.int64)
        gl.store(at, gl.convert_layout(gl.sum(sums[plane], TIME_AXIS), SUMS), mask=channel < D)

    if (flags & HAS_STATES) != 0:
        # The input `back` steps before the start was met at distance m + back by the sequence's step m.
        for back in gl.static_range(1, W):
            early = nothing
            for m in gl.static_range(W - back):
                early = add_if((m + back < width).to(gl.int32), taps[(m + back)], after[m], early)
            place = dstates + (batch * D + d) * (width - 1) + (width - 1 - back)
            place, early = gl.broadcast(place, narrowed(early, dstates.dtype.element_ty, flags))
            gl.store(place, early, mask=valid & (start == 0) & (back < width))
