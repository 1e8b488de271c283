"""The convolution for widths without a kernel of their own: a run-time loop over taps, any strides.

The backward is two kernels, as the gradient before the activation would cost `width` times as much if each
tap computed it anew.
"""

import triton
import triton.language as tl
from _causal_conv1d_steps import (
    GRADIENT,
    HAS_BIAS,
    HAS_SEQUENCES,
    HAS_STATES,
    PADDING,
    SILU,
    silu,
    silu_slope,
)
from _half_blocks import load_wide, store_narrow


@triton.jit
def load_start(sequences, t, batch, batches, L, flags):
    """Where the sequence of step t starts, and its row of the initial states."""
    start = tl.where(t < L, 0, PADDING)
    row = tl.where(t < L, batch.to(tl.int32), -1)
    if (flags & HAS_SEQUENCES) != 0:
        at = sequences + batch * L + t
        start = tl.load(at, mask=t < L, other=PADDING)
        row = tl.load(at + batches.to(tl.int64) * L, mask=t < L, other=-1)
    return start, row


@triton.jit
def load_met(
    x, states, t, distance, start, row, d, width, x_time, x_channel, s_batch, s_channel, s_time, valid, flags
):
    """What the tap at `distance` meets at step t: x, before the start the initial states, or 0."""
    p = t - distance
    value = load_wide(x + p * x_time + d * x_channel, valid & (p >= start) & (start <= t), flags)
    if (flags & HAS_STATES) != 0:
        index = p - start + width - 1
        at = states + row.to(tl.int64) * s_batch + d * s_channel + index * s_time
        value += load_wide(at, valid & (p < start) & (index >= 0) & (row >= 0), flags)
    return value


@triton.jit
def causal_conv1d_wide_kernel(
    x,
    weight,
    bias,
    states,
    sequences,
    dout,
    out,
    slope,
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
    dout_batch,
    dout_channel,
    dout_time,
    out_batch,
    out_channel,
    out_time,
    flags,
    TIMES: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """The output; or with GRADIENT, into `slope` [batch, D, L], the gradient before the activation."""
    time_blocks = tl.cdiv(L, TIMES)
    channel_blocks = tl.cdiv(D, CHANNELS)
    pid = tl.program_id(0)
    t = ((pid % time_blocks).to(tl.int64) * TIMES + tl.arange(0, TIMES))[:, None]
    d = ((pid // time_blocks % channel_blocks).to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS))[None, :]
    batch = (pid // (time_blocks * channel_blocks)).to(tl.int64)
    valid = (d < D) & (t < L)
    start, row = load_start(sequences, t, batch, batches, L, flags)
    x += batch * x_batch

    y = tl.zeros([TIMES, CHANNELS], tl.float32)
    if (flags & HAS_BIAS) != 0:
        y += tl.load(bias + d, mask=d < D, other=0.0)
    for distance in range(width - 1, -1, -1):
        w = tl.load(weight + d * width + (width - 1 - distance), mask=d < D, other=0.0)
        y += w * load_met(
            x,
            states,
            t,
            distance,
            start,
            row,
            d,
            width,
            x_time,
            x_channel,
            states_batch,
            states_channel,
            states_time,
            valid,
            flags,
        )
    if (flags & GRADIENT) != 0:
        at = dout + batch * dout_batch + t * dout_time + d * dout_channel
        g = load_wide(at, valid & (start <= t), flags)
        if (flags & SILU) != 0:
            g *= silu_slope(y)
        tl.store(slope + (batch * D + d) * L + t, g, mask=valid)
    else:
        if (flags & SILU) != 0:
            y = silu(y)
        y = tl.where(start <= t, y, 0.0)
        at = out + batch * out_batch + t * out_time + d * out_channel
        store_narrow(at, y, valid, flags)


@triton.jit
def causal_conv1d_wide_bwd_kernel(
    slope,
    x,
    weight,
    states,
    sequences,
    dx,
    dstates,
    dfilter,
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
    dx_batch,
    dx_channel,
    dx_time,
    flags,
    TIMES: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Gradients from `slope`; `dfilter` has a row [width + 1, D] per (batch, time block)."""
    time_blocks = tl.cdiv(L, TIMES)
    channel_blocks = tl.cdiv(D, CHANNELS)
    pid = tl.program_id(0)
    time_block = pid % time_blocks
    t = (time_block.to(tl.int64) * TIMES + tl.arange(0, TIMES))[:, None]
    channel = (pid // time_blocks % channel_blocks).to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS)
    d = channel[None, :]
    batch = (pid // (time_blocks * channel_blocks)).to(tl.int64)
    valid = (d < D) & (t < L)
    start, row = load_start(sequences, t, batch, batches, L, flags)
    x += batch * x_batch
    slope += (batch * D + d) * L
    filter_row = dfilter + (batch * time_blocks + time_block) * (width + 1) * D + channel

    g = tl.load(slope + t, mask=valid, other=0.0)
    tl.store(filter_row + width * D.to(tl.int64), tl.sum(g, 0), mask=channel < D)
    total = tl.zeros([TIMES, CHANNELS], tl.float32)
    for distance in range(width):
        tap = width - 1 - distance
        met = load_met(
            x,
            states,
            t,
            distance,
            start,
            row,
            d,
            width,
            x_time,
            x_channel,
            states_batch,
            states_channel,
            states_time,
            valid,
            flags,
        )
        tl.store(filter_row + distance * D.to(tl.int64), tl.sum(g * met, 0), mask=channel < D)
        # This step was met at `distance` by the step that many later, if that is of the same sequence.
        later, _ = load_start(sequences, t + distance, batch, batches, L, flags)
        w = tl.load(weight + d * width + tap, mask=d < D, other=0.0)
        total += w * tl.load(slope + t + distance, mask=valid & (later <= t), other=0.0)
    at = dx + batch * dx_batch + t * dx_time + d * dx_channel
    store_narrow(at, total, valid, flags)
    if (flags & HAS_STATES) != 0:
        first = valid & (start == t) & (row >= 0)
        if tl.max(tl.max(first.to(tl.int32), 1), 0) != 0:
            # Input `back` steps before the start was met at distance m + back by the sequence's step m.
            for back in range(1, width):
                sums = tl.zeros([TIMES, CHANNELS], tl.float32)
                for m in range(width - back):
                    later, _ = load_start(sequences, t + m, batch, batches, L, flags)
                    w = tl.load(weight + d * width + (width - 1 - m - back), mask=d < D, other=0.0)
                    sums += w * tl.load(slope + t + m, mask=first & (later == start), other=0.0)
                place = dstates + (row.to(tl.int64) * D + d) * (width - 1) + (width - 1 - back)
                store_narrow(place, sums, first, flags)
