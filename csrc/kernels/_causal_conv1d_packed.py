"""The convolution over packed sequences for widths up to W, forward and backward: every thread has one run.

See _causal_conv1d_steps.py.
"""

# Triton has no starred tuples.
# ruff: noqa: RUF005

from _causal_conv1d_steps import (
    HAS_STATES,
    SILU,
    load_filter,
    load_sequences,
    load_steps,
    places,
    run_layout,
    silu,
    silu_slope,
    store_steps,
)
from _half import narrowed, widened
from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.jit
def met_by(
    xs,
    states,
    t,
    start,
    row,
    d,
    width,
    s_batch,
    s_channel,
    s_time,
    valid,
    flags,
    STEP: gl.constexpr,
    W: gl.constexpr,
):
    """What step number STEP of the run meets, by distance: in its sequence, in the initial states, or 0."""
    met = (gl.where(start <= t, xs[STEP + W - 1], 0.0),)
    for distance in gl.static_range(1, W):
        value = xs[STEP + W - 1 - distance]
        p = t - distance
        value = gl.where((distance < width) & (p >= start) & (start <= t), value, 0.0)
        if (flags & HAS_STATES) != 0:
            index = p - start + width - 1
            at = states + row.to(gl.int64) * s_batch + d * s_channel + index * s_time
            mask = valid & (p < start) & (index >= 0) & (row >= 0)
            value += widened(gl.load(at, mask=mask, other=0), flags)
        met = met + (value,)
    return met


@gluon.jit
def convolve(met, taps, offset, W: gl.constexpr):
    y = offset
    for i in gl.static_range(W):
        y = y + taps[W - 1 - i] * met[W - 1 - i]
    return y


@gluon.jit
def causal_conv1d_packed_fwd_kernel(
    x,
    weight,
    bias,
    states,
    sequences,
    out,
    D,
    L,
    batches,
    width,
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
):
    TILE: gl.constexpr = gl.SliceLayout(2, run_layout(LAYOUT, RUNS, STEPS, CHANNELS, 1, gl.num_warps()))
    if LAYOUT == "seq":
        x_time = 1
        out_time = 1
    batch, first, d = places(L, D, 1, TILE, LAYOUT, RUNS, STEPS, CHANNELS)
    valid = d < D
    taps, offset = load_filter(weight, bias, x, d, width, valid, flags, W)
    row = x + batch * x_batch + d * x_channel
    xs = load_steps(row, first, x_time, L, valid, flags, W - 1, 0, STEPS, LAYOUT)
    starts, rows = load_sequences(sequences, first, batch, batches, L, STEPS)

    ys = ()
    for i in gl.static_range(STEPS):
        met = met_by(
            xs,
            states,
            first + i,
            starts[i],
            rows[i],
            d,
            width,
            states_batch,
            states_channel,
            states_time,
            valid,
            flags,
            i,
            W,
        )
        y = convolve(met, taps, offset, W)
        if (flags & SILU) != 0:
            y = silu(y)
        y = gl.where(starts[i] <= first + i, y, 0.0)
        ys = ys + (y,)
    store_steps(
        out + batch * out_batch + d * out_channel, first, out_time, L, valid, ys, flags, STEPS, LAYOUT
    )


@gluon.jit
def causal_conv1d_packed_bwd_kernel(
    dout,
    x,
    weight,
    bias,
    states,
    sequences,
    dx,
    dstates,
    dfilter,
    D,
    L,
    batches,
    width,
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
):
    """dx[t] = sum_k w[k] g[t + W - 1 - k] with g the gradient before the activation, computed again from x.

    Each run computes g for the W - 1 steps after it too, which its own steps reach.
    `dfilter` holds one row [W + 1, D] per (batch, time block): by distance i, sum_t g[t] x[t - i]; then
    dbias.
    """
    TIME_AXIS: gl.constexpr = 1 if LAYOUT == "seq" else 0
    TILE: gl.constexpr = gl.SliceLayout(2, run_layout(LAYOUT, RUNS, STEPS, CHANNELS, 1, gl.num_warps()))
    if LAYOUT == "seq":
        dout_time = 1
        x_time = 1
        dx_time = 1
    batch, first, d = places(L, D, 1, TILE, LAYOUT, RUNS, STEPS, CHANNELS)
    valid = d < D
    taps, offset = load_filter(weight, bias, x, d, width, valid, flags, W)
    xs = load_steps(
        x + batch * x_batch + d * x_channel, first, x_time, L, valid, flags, W - 1, W - 1, STEPS, LAYOUT
    )
    gs = load_steps(
        dout + batch * dout_batch + d * dout_channel,
        first,
        dout_time,
        L,
        valid,
        flags,
        0,
        W - 1,
        STEPS,
        LAYOUT,
    )
    starts, rows = load_sequences(sequences, first, batch, batches, L, STEPS + W - 1)

    slopes = ()
    dbias = gl.zeros_like(xs[0])
    dtaps = (dbias,) * W
    for i in gl.static_range(STEPS + W - 1):
        met = met_by(
            xs,
            states,
            first + i,
            starts[i],
            rows[i],
            d,
            width,
            states_batch,
            states_channel,
            states_time,
            valid,
            flags,
            i,
            W,
        )
        g = gl.where(starts[i] <= first + i, gs[i], 0.0)
        if (flags & SILU) != 0:
            g *= silu_slope(convolve(met, taps, offset, W))
        slopes = slopes + (g,)
        if i < STEPS:
            dbias += g
            sums = ()
            for distance in gl.static_range(W):
                sums = sums + (dtaps[distance] + g * met[distance],)
            dtaps = sums

    # One lane stores each channel's sums, where sums as they come are in as many as hold its steps.
    SUMS: gl.constexpr = gl.BlockedLayout([1], [32], [gl.num_warps()], [0])
    time_blocks = gl.cdiv(L, RUNS * STEPS)
    pid = gl.program_id(0)
    channel_block = pid // time_blocks % gl.cdiv(D, CHANNELS)
    channel = channel_block.to(gl.int64) * CHANNELS + gl.arange(0, CHANNELS, SUMS)
    filter_row = dfilter + (batch * time_blocks + pid % time_blocks) * (W + 1) * D + channel
    for distance in gl.static_range(W):
        at = filter_row + distance * D.to(gl.int64)
        gl.store(at, gl.convert_layout(gl.sum(dtaps[distance], TIME_AXIS), SUMS), mask=channel < D)
    at = filter_row + W * D.to(gl.int64)
    gl.store(at, gl.convert_layout(gl.sum(dbias, TIME_AXIS), SUMS), mask=channel < D)

    dxs = ()
    for i in gl.static_range(STEPS):
        total = taps[0] * slopes[i]
        for distance in gl.static_range(1, W):
            # A narrower filter's missing taps are zero, and meet nothing: not even a NaN.
            reached = (distance < width) & (starts[i + distance] <= first + i)
            total += taps[distance] * gl.where(reached, slopes[i + distance], 0.0)
        dxs = dxs + (total,)
    store_steps(dx + batch * dx_batch + d * dx_channel, first, dx_time, L, valid, dxs, flags, STEPS, LAYOUT)

    if (flags & HAS_STATES) != 0:
        for i in gl.static_range(STEPS):
            starting = valid & (starts[i] == first + i) & (rows[i] >= 0)
            owner = rows[i].to(gl.int64)
            # The input `back` steps before the start was met at distance m + back by the sequence's step m.
            for back in gl.static_range(1, W):
                early = gl.zeros_like(slopes[0])
                for m in gl.static_range(W - back):
                    meets = (m + back < width) & (starts[i + m] == starts[i])
                    early += taps[(m + back)] * gl.where(meets, slopes[i + m], 0.0)
                place = dstates + (owner * D + d) * (width - 1) + (width - 1 - back)
                early = narrowed(early, dstates.dtype.element_ty, flags)
                place, early = gl.broadcast(place, early)
                gl.store(place, early, mask=starting & (back < width))
