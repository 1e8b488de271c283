"""The convolution over a sequence for widths up to W, forward and backward: see _causal_conv1d_steps.py."""

# Triton has no starred tuples.
# ruff: noqa: RUF005

import triton
import triton.language as tl
from _causal_conv1d_steps import (
    HAS_BIAS,
    HAS_STATES,
    SILU,
    load_sequences,
    load_steps,
    load_taps,
    silu,
    silu_slope,
    store_steps,
)


@triton.jit
def add_states_before(xs, states, first, d, width, s_channel, s_time, valid, W: tl.constexpr):
    """The steps before step 0 of an unpacked row are its initial states; `xs` begins W - 1 steps early."""
    early = ()
    for i in tl.static_range(len(xs)):
        if i < W - 1:
            index = width - W + i
            at = states + d * s_channel + index * s_time
            before = tl.load(at, mask=valid & (first == 0) & (index >= 0), other=0.0)
            early = early + (xs[i] + before.to(tl.float32),)
        else:
            early = early + (xs[i],)
    return early


@triton.jit
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
    STEP: tl.constexpr,
    W: tl.constexpr,
    PACKED: tl.constexpr,
):
    """What step number STEP of the run meets, by distance: in its sequence, in the initial states, or 0."""
    met = (xs[STEP + W - 1],)
    if PACKED:
        met = (tl.where(start <= t, xs[STEP + W - 1], 0.0),)
    for distance in tl.static_range(1, W):
        value = xs[STEP + W - 1 - distance]
        if PACKED:
            p = t - distance
            value = tl.where((distance < width) & (p >= start) & (start <= t), value, 0.0)
            if (flags & HAS_STATES) != 0:
                index = p - start + width - 1
                at = states + row.to(tl.int64) * s_batch + d * s_channel + index * s_time
                mask = valid & (p < start) & (index >= 0) & (row >= 0)
                value += tl.load(at, mask=mask, other=0.0).to(tl.float32)
        else:
            value = tl.where(distance < width, value, 0.0)
        met = met + (value,)
    return met


@triton.jit
def convolve(met, taps, offset, W: tl.constexpr):
    y = offset
    for i in tl.static_range(W):
        y = y + taps[W - 1 - i] * met[W - 1 - i]
    return y


@triton.jit
def causal_conv1d_fwd_kernel(
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
    W: tl.constexpr,
    LAYOUT: tl.constexpr,
    PACKED: tl.constexpr,
    RUNS: tl.constexpr,
    STEPS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    if LAYOUT == "seq":
        x_time = 1
        out_time = 1
    if LAYOUT == "last":
        x_channel = 1
        out_channel = 1
    time_blocks = tl.cdiv(L, RUNS * STEPS)
    channel_blocks = tl.cdiv(D, CHANNELS)
    pid = tl.program_id(0)
    first = ((pid % time_blocks).to(tl.int64) * RUNS + tl.arange(0, RUNS)) * STEPS
    d = (pid // time_blocks % channel_blocks).to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS)
    batch = (pid // (time_blocks * channel_blocks)).to(tl.int64)
    if LAYOUT == "seq":
        first = first[None, :]
        d = d[:, None]
    else:
        first = first[:, None]
        d = d[None, :]
    valid = d < D
    taps = load_taps(weight, d, width, valid, W)
    offset = tl.zeros_like(taps[0])
    if (flags & HAS_BIAS) != 0:
        offset += tl.load(bias + d, mask=valid, other=0.0)
    row = x + batch * x_batch + d * x_channel
    xs = load_steps(row, first, x_time, L, valid, W - 1, 0, STEPS, LAYOUT)
    starts = (first,) * STEPS
    rows = (first,) * STEPS
    if PACKED:
        starts, rows = load_sequences(sequences, first, batch, batches, L, STEPS)
    elif (flags & HAS_STATES) != 0:
        before = states + batch * states_batch
        xs = add_states_before(xs, before, first, d, width, states_channel, states_time, valid, W)

    ys = ()
    for i in tl.static_range(STEPS):
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
            PACKED,
        )
        y = convolve(met, taps, offset, W)
        if (flags & SILU) != 0:
            y = silu(y)
        if PACKED:
            y = tl.where(starts[i] <= first + i, y, 0.0)
        ys = ys + (y,)
    store_steps(out + batch * out_batch + d * out_channel, first, out_time, L, valid, ys, STEPS, LAYOUT)


@triton.jit
def causal_conv1d_bwd_kernel(
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
    W: tl.constexpr,
    LAYOUT: tl.constexpr,
    PACKED: tl.constexpr,
    RUNS: tl.constexpr,
    STEPS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """dx[t] = sum_k w[k] g[t + W - 1 - k] with g the gradient before the activation, computed again from x.

    Each run computes g for the W - 1 steps after it too, which its own steps reach.
    `dfilter` holds one row [W + 1, D] per (batch, time block): dw[k] = sum_t g[t] x[t - W + 1 + k], then
    dbias.
    """
    if LAYOUT == "seq":
        dout_time = 1
        x_time = 1
        dx_time = 1
    if LAYOUT == "last":
        dout_channel = 1
        x_channel = 1
        dx_channel = 1
    time_blocks = tl.cdiv(L, RUNS * STEPS)
    channel_blocks = tl.cdiv(D, CHANNELS)
    pid = tl.program_id(0)
    time_block = pid % time_blocks
    first = (time_block.to(tl.int64) * RUNS + tl.arange(0, RUNS)) * STEPS
    channel = (pid // time_blocks % channel_blocks).to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS)
    batch = (pid // (time_blocks * channel_blocks)).to(tl.int64)
    if LAYOUT == "seq":
        first = first[None, :]
        d = channel[:, None]
    else:
        first = first[:, None]
        d = channel[None, :]
    TIME_AXIS: tl.constexpr = 1 if LAYOUT == "seq" else 0
    valid = d < D
    taps = load_taps(weight, d, width, valid, W)
    offset = tl.zeros_like(taps[0])
    if (flags & HAS_BIAS) != 0:
        offset += tl.load(bias + d, mask=valid, other=0.0)
    xs = load_steps(x + batch * x_batch + d * x_channel, first, x_time, L, valid, W - 1, W - 1, STEPS, LAYOUT)
    gs = load_steps(
        dout + batch * dout_batch + d * dout_channel, first, dout_time, L, valid, 0, W - 1, STEPS, LAYOUT
    )
    starts = (first,) * (STEPS + W - 1)
    rows = (first,) * (STEPS + W - 1)
    if PACKED:
        starts, rows = load_sequences(sequences, first, batch, batches, L, STEPS + W - 1)
    elif (flags & HAS_STATES) != 0:
        before = states + batch * states_batch
        xs = add_states_before(xs, before, first, d, width, states_channel, states_time, valid, W)

    slopes = ()
    dbias = tl.zeros_like(xs[0])
    dtaps = (dbias,) * W
    for i in tl.static_range(STEPS + W - 1):
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
            PACKED,
        )
        g = gs[i]
        if PACKED:
            g = tl.where(starts[i] <= first + i, g, 0.0)
        if (flags & SILU) != 0:
            g *= silu_slope(convolve(met, taps, offset, W))
        slopes = slopes + (g,)
        if i < STEPS:
            dbias += g
            sums = ()
            for distance in tl.static_range(W):
                sums = sums + (dtaps[distance] + g * met[distance],)
            dtaps = sums

    filter_row = dfilter + (batch * time_blocks + time_block) * (W + 1) * D + channel
    for distance in tl.static_range(W):
        at = filter_row + (W - 1 - distance) * D
        tl.store(at, tl.sum(dtaps[distance], TIME_AXIS), mask=channel < D)
    tl.store(filter_row + W * D, tl.sum(dbias, TIME_AXIS), mask=channel < D)

    dxs = ()
    for i in tl.static_range(STEPS):
        total = taps[0] * slopes[i]
        for distance in tl.static_range(1, W):
            # A narrower filter's missing taps are zero, and meet nothing: not even a NaN.
            reached = distance < width
            if PACKED:
                reached = reached & (starts[i + distance] <= first + i)
            total += taps[distance] * tl.where(reached, slopes[i + distance], 0.0)
        dxs = dxs + (total,)
    store_steps(dx + batch * dx_batch + d * dx_channel, first, dx_time, L, valid, dxs, STEPS, LAYOUT)

    if (flags & HAS_STATES) != 0:
        for i in tl.static_range(STEPS if PACKED else 1):
            starting = valid & (first == 0)
            owner = batch
            if PACKED:
                starting = valid & (starts[i] == first + i) & (rows[i] >= 0)
                owner = rows[i].to(tl.int64)
            # The input `back` steps before the start was met at distance m + back by the sequence's step m.
            for back in tl.static_range(1, W):
                early = tl.zeros_like(slopes[0])
                for m in tl.static_range(W - back):
                    meets = m + back < width
                    if PACKED:
                        meets = meets & (starts[i + m] == starts[i])
                    early += taps[(m + back)] * tl.where(meets, slopes[i + m], 0.0)
                place = dstates + (owner * D + d) * (width - 1) + (width - 1 - back)
                mask = tl.broadcast_to(starting & (back < width), early.shape)
                place = tl.broadcast_to(place, early.shape)
                tl.store(place, early.to(dstates.dtype.element_ty), mask=mask)
