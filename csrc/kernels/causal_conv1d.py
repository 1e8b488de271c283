"""Causal depthwise convolution along time, forward, backward and one-token update.

y[t] = act(bias + sum_k w[k] x[t - W + 1 + k]), act the identity or SiLU (Mamba paper 2312.00752, section
3.4).
"""

import triton
import triton.language as tl

from tools.aot.spec import Config, Kernel

# Bits of `flags`, the same as in csrc/ops/causal_conv1d.cpp.
SILU = tl.constexpr(1)
HAS_BIAS = tl.constexpr(2)
HAS_STATES = tl.constexpr(4)
HAS_INDICES = tl.constexpr(8)


@triton.jit
def load_input(x, states, t, channel, L, width, x_time, x_channel, states_time, states_channel, valid, flags):
    """x at time t in fp32; before the sequence its initial states, or 0."""
    value = tl.load(x + t * x_time + channel * x_channel, mask=valid & (t >= 0) & (t < L), other=0.0).to(
        tl.float32
    )
    if (flags & HAS_STATES) != 0:
        before = valid & (t < 0) & (t > -width)
        at = states + (t + width - 1) * states_time + channel * states_channel
        value += tl.load(at, mask=before, other=0.0).to(tl.float32)
    return value


@triton.jit
def silu_slope(y):
    s = 1.0 / (1.0 + tl.exp(-y))
    return s * (1.0 + y * (1.0 - s))


@triton.jit
def causal_conv1d_fwd_kernel(
    x,
    weight,
    bias,
    states,
    out,
    D,
    L,
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
    TIMES: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    if LAYOUT == "seq":
        x_time = 1
        out_time = 1
    if LAYOUT == "last":
        x_channel = 1
        out_channel = 1
    time_blocks = tl.cdiv(L, TIMES)
    channel_blocks = tl.cdiv(D, CHANNELS)
    pid = tl.program_id(0)
    start = (pid % time_blocks).to(tl.int64) * TIMES
    channel = (pid // time_blocks % channel_blocks).to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS)
    batch = (pid // (time_blocks * channel_blocks)).to(tl.int64)
    valid = (channel < D)[None, :]
    t = (start + tl.arange(0, TIMES))[:, None]
    d = channel[None, :]
    x += batch * x_batch
    states += batch * states_batch

    y = tl.zeros([TIMES, CHANNELS], tl.float32)
    if (flags & HAS_BIAS) != 0:
        y += tl.load(bias + d, mask=valid, other=0.0)
    for k in tl.static_range(W):
        # A width below W is a filter whose first taps are missing.
        tap = width - W + k
        w = tl.load(weight + d * width + tap, mask=valid & (tap >= 0), other=0.0)
        past = t - (W - 1 - k)
        y += w * load_input(
            x, states, past, d, L, width, x_time, x_channel, states_time, states_channel, valid, flags
        )
    if (flags & SILU) != 0:
        y = y / (1.0 + tl.exp(-y))
    at = out + batch * out_batch + t * out_time + d * out_channel
    tl.store(at, y.to(out.dtype.element_ty), mask=valid & (t < L))


@triton.jit
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
    TIMES: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """dx[t] = sum_k w[k] g[t + W - 1 - k] with g the gradient before the activation, computed again from x.

    With initial states the time axis starts width - 1 steps earlier, and what falls there is their gradient.
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
    early = 0
    if (flags & HAS_STATES) != 0:
        early = width - 1
    time_blocks = tl.cdiv(L + early, TIMES)
    channel_blocks = tl.cdiv(D, CHANNELS)
    pid = tl.program_id(0)
    time_block = pid % time_blocks
    channel = (pid // time_blocks % channel_blocks).to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS)
    batch = (pid // (time_blocks * channel_blocks)).to(tl.int64)
    valid = (channel < D)[None, :]
    t = (time_block.to(tl.int64) * TIMES - early + tl.arange(0, TIMES))[:, None]
    d = channel[None, :]
    x += batch * x_batch
    dout += batch * dout_batch
    states += batch * states_batch
    filter_row = dfilter + (batch * time_blocks + time_block) * (W + 1) * D + channel

    slope_bias = tl.zeros([TIMES, CHANNELS], tl.float32)
    if (flags & HAS_BIAS) != 0:
        slope_bias += tl.load(bias + d, mask=valid, other=0.0)
    total = tl.zeros([TIMES, CHANNELS], tl.float32)
    for ahead in tl.static_range(W):
        s = t + ahead
        g = tl.load(dout + s * dout_time + d * dout_channel, mask=valid & (s >= 0) & (s < L), other=0.0)
        g = g.to(tl.float32)
        if (flags & SILU) != 0:
            y = slope_bias
            for k in tl.static_range(W):
                tap = width - W + k
                w = tl.load(weight + d * width + tap, mask=valid & (tap >= 0), other=0.0)
                y += w * load_input(
                    x,
                    states,
                    s - (W - 1 - k),
                    d,
                    L,
                    width,
                    x_time,
                    x_channel,
                    states_time,
                    states_channel,
                    valid,
                    flags,
                )
            g *= silu_slope(y)
        tap = width - 1 - ahead
        total += g * tl.load(weight + d * width + tap, mask=valid & (tap >= 0), other=0.0)
        if ahead == 0:
            for k in tl.static_range(W):
                past = t - (W - 1 - k)
                v = load_input(
                    x, states, past, d, L, width, x_time, x_channel, states_time, states_channel, valid, flags
                )
                tl.store(filter_row + k * D, tl.sum(g * v, 0), mask=channel < D)
            tl.store(filter_row + W * D, tl.sum(g, 0), mask=channel < D)
    at = dx + batch * dx_batch + t * dx_time + d * dx_channel
    tl.store(at, total.to(dx.dtype.element_ty), mask=valid & (t >= 0) & (t < L))
    if (flags & HAS_STATES) != 0:
        at = dstates + (batch * D + d) * (width - 1) + (t + width - 1)
        tl.store(at, total.to(dstates.dtype.element_ty), mask=valid & (t < 0))


@triton.jit
def causal_conv1d_update_kernel(
    x,
    conv_state,
    weight,
    bias,
    indices,
    out,
    D,
    L,
    width,
    state_length,
    x_batch,
    x_channel,
    x_time,
    state_slot,
    state_channel,
    state_time,
    indices_batch,
    flags,
    CHANNELS: tl.constexpr,
):
    """One thread owns a channel: it reads its window, then shifts its state to the left, so nothing races."""
    channel_blocks = tl.cdiv(D, CHANNELS)
    batch = (tl.program_id(0) // channel_blocks).to(tl.int64)
    d = (tl.program_id(0) % channel_blocks).to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS)
    valid = d < D
    slot = batch
    if (flags & HAS_INDICES) != 0:
        slot = tl.load(indices + batch * indices_batch).to(tl.int64)
    kept = valid & (slot >= 0)
    x += batch * x_batch + d * x_channel
    conv_state += slot * state_slot + d * state_channel
    out += (batch * D + d) * L

    for t in range(L):
        y = tl.zeros([CHANNELS], tl.float32)
        if (flags & HAS_BIAS) != 0:
            y += tl.load(bias + d, mask=kept, other=0.0)
        for k in range(width):
            past = t - (width - 1 - k)
            w = tl.load(weight + d * width + k, mask=kept, other=0.0)
            new = tl.load(x + past * x_time, mask=kept & (past >= 0), other=0.0).to(tl.float32)
            old = tl.load(conv_state + (state_length + past) * state_time, mask=kept & (past < 0), other=0.0)
            y += w * (new + old.to(tl.float32))
        if (flags & SILU) != 0:
            y = y / (1.0 + tl.exp(-y))
        tl.store(out + t, y.to(out.dtype.element_ty), mask=valid)
    for j in range(state_length):
        late = j + L - state_length
        old = tl.load(conv_state + (j + L) * state_time, mask=kept & (late < 0), other=0.0)
        new = tl.load(x + late * x_time, mask=kept & (late >= 0), other=0.0)
        tl.store(conv_state + j * state_time, tl.where(late < 0, old, new), mask=kept)


_STRIDED = ("batch", "channel", "time")
_AXES = dict(T=["f32", "f16", "bf16"], LAYOUT=["seq", "last", "strided"])


def _strides(*tensors: str) -> dict[str, str]:
    return {f"{tensor}_{axis}": "i64" for tensor in tensors for axis in _STRIDED}


def _aligned(*tensors: str):
    """16-byte loads along whichever axis is contiguous; the convolution's shifted loads stay narrow along
    time.
    """

    def names(values: dict) -> list[str]:
        if values["LAYOUT"] == "seq":
            return [*tensors, "L", *(f"{t}_{axis}" for t in tensors for axis in ("batch", "channel"))]
        if values["LAYOUT"] == "last":
            return [*tensors, "D", *(f"{t}_{axis}" for t in tensors for axis in ("batch", "time"))]
        return []

    return names


def _configs(times: int) -> list[Config]:
    return [
        Config("rows", when="LAYOUT == 'seq'", W=4, TIMES=times, CHANNELS=2, num_warps=4),
        Config("columns", when="LAYOUT == 'last'", W=4, TIMES=times // 32, CHANNELS=64, num_warps=4),
        Config("square", W=4, TIMES=times // 16, CHANNELS=32, num_warps=4),
    ]


KERNELS = [
    Kernel(
        causal_conv1d_fwd_kernel,
        args={
            **dict(x="*T", states="*T", out="*T", weight="*f32", bias="*f32"),
            **dict(D="i32", L="i32", width="i32", flags="i32"),
            **_strides("x", "states", "out"),
        },
        axes=_AXES,
        aligned=_aligned("x", "out"),
        configs=_configs(512),
    ),
    Kernel(
        causal_conv1d_bwd_kernel,
        args={
            **dict(dout="*T", x="*T", states="*T", dx="*T", dstates="*T"),
            **dict(weight="*f32", bias="*f32", dfilter="*f32"),
            **dict(D="i32", L="i32", width="i32", flags="i32"),
            **_strides("dout", "x", "states", "dx"),
        },
        axes=_AXES,
        aligned=_aligned("dout", "x", "dx"),
        configs=_configs(256),
    ),
    Kernel(
        causal_conv1d_update_kernel,
        args={
            **dict(x="*T", conv_state="*T", out="*T", weight="*f32", bias="*f32", indices="*i32"),
            **dict(D="i32", L="i32", width="i32", state_length="i32", flags="i32"),
            **dict(state_slot="i64", state_channel="i64", state_time="i64", indices_batch="i64"),
            **_strides("x"),
        },
        axes=dict(T=["f32", "f16", "bf16"]),
        configs=[Config("block", CHANNELS=128, num_warps=4)],
    ),
]
