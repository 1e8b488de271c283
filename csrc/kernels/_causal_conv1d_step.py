"""One step of the convolution as models take it: four taps, three or four kept steps, contiguous."""

import triton
import triton.language as tl
from _causal_conv1d_steps import HAS_BIAS, HAS_INDICES, SILU, silu
from _half_blocks import FLOAT16, store_narrow
from _overlap import wait_for_earlier_kernels


@triton.jit
def as_float16(value):
    return value.to(tl.float16, bitcast=True).to(tl.float32) if value.dtype == tl.int16 else value


@triton.jit
def as_bfloat16(value):
    return (value.to(tl.int32) << 16).to(tl.float32, bitcast=True) if value.dtype == tl.int16 else value


@triton.jit
def causal_conv1d_step_kernel(
    x,
    conv_state,
    weight,
    bias,
    indices,
    out,
    D,
    slots,
    x_batch,
    state_slot,
    indices_batch,
    flags,
    KEPT: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """One thread owns a channel of a batch row, so nothing races."""
    wait_for_earlier_kernels()
    channel_blocks = tl.cdiv(D, CHANNELS)
    batch = (tl.program_id(0) // channel_blocks).to(tl.int64)
    d = tl.program_id(0) % channel_blocks * CHANNELS + tl.arange(0, CHANNELS)
    valid = d < D
    slot = batch
    if (flags & HAS_INDICES) != 0:
        slot = tl.load(indices + batch * indices_batch).to(tl.int64)
    # A slot that does not exist is padding too: nothing outside the state is written.
    kept = valid & (slot >= 0) & (slot < slots)
    last = conv_state + slot * state_slot + (d * KEPT + (KEPT - 1))
    tap = weight + (d * 4 + 3)
    now = tl.load(x + batch * x_batch + d, kept, 0)
    one = tl.load(last, kept, 0)
    two = tl.load(last - 1, kept, 0)
    three = tl.load(last - 2, kept, 0)
    tap_now = tl.load(tap, kept, 0)
    tap_one = tl.load(tap - 1, kept, 0)
    tap_two = tl.load(tap - 2, kept, 0)
    tap_three = tl.load(tap - 3, kept, 0)
    offset = tl.load(bias + d, kept & ((flags & HAS_BIAS) != 0), 0)
    # One branch for all: three instructions a number to choose a format would be felt.
    if (flags & FLOAT16) != 0:
        y = as_float16(offset) + as_float16(tap_three) * as_float16(three)
        y += as_float16(tap_two) * as_float16(two)
        y += as_float16(tap_one) * as_float16(one)
        y += as_float16(tap_now) * as_float16(now)
    else:
        y = as_bfloat16(offset) + as_bfloat16(tap_three) * as_bfloat16(three)
        y += as_bfloat16(tap_two) * as_bfloat16(two)
        y += as_bfloat16(tap_one) * as_bfloat16(one)
        y += as_bfloat16(tap_now) * as_bfloat16(now)
    if (flags & SILU) != 0:
        y = silu(y)
    store_narrow(out + batch * D + d, y, valid, flags)
    tl.store(last, now, kept)
    tl.store(last - 1, one, kept)
    tl.store(last - 2, two, kept)
    if KEPT == 4:
        tl.store(last - 3, three, kept)
