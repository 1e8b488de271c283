"""One step of real states in fp32, sixteen a channel, without the options that models do not use."""

from _arithmetic import LOG2E, exp2_fast, sigmoid, softplus
from _half import narrowed, widened
from _overlap import wait_for_earlier_kernels
from _state_update_operands import (
    HAS_BIAS,
    HAS_D,
    HAS_SOURCE,
    HAS_Z,
    SOFTPLUS,
    decoded,
    dtype_code,
    is_padding,
    load_bits,
)
from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.jit
def state_update_plain_kernel(
    state,
    x,
    dt,
    A,
    B,
    C,
    D_skip,
    z,
    dt_bias,
    source,
    out,
    dim,
    slots,
    pad,
    state_slot,
    state_channel,
    x_batch,
    dt_batch,
    z_batch,
    out_batch,
    A_channel,
    B_batch,
    C_batch,
    source_batch,
    flags,
    CHANNELS: gl.constexpr,
):
    """Channels and states lie side by side in everything that has them, channels of the state in rows."""
    wait_for_earlier_kernels()
    N: gl.constexpr = 16
    WARPS: gl.constexpr = gl.num_warps()
    # Four lanes share two channels; what there is one of per channel is computed by one of them.
    X: gl.constexpr = gl.BlockedLayout([2, 4], [8, 4], [WARPS, 1], [1, 0])
    P: gl.constexpr = gl.BlockedLayout([1], [32], [WARPS], [0])
    ROW: gl.constexpr = gl.SliceLayout(1, X)
    blocks = gl.cdiv(dim, CHANNELS)
    begin = gl.program_id(0) % blocks * CHANNELS
    batch = (gl.program_id(0) // blocks).to(gl.int64)
    channel = begin + gl.arange(0, CHANNELS, P)
    valid = channel < dim
    out += batch * out_batch
    slot = batch
    padding = slot < 0
    if (flags & HAS_SOURCE) != 0:
        slot = gl.load(source + batch * source_batch).to(gl.int64)
        padding = is_padding(slot, slots, pad)
    if padding:
        # The output is 0 and no state is touched.
        zero = narrowed(gl.full([CHANNELS], 0.0, gl.float32, P), out.dtype.element_ty, flags)
        gl.store(out + channel, zero, valid)
    else:
        row = begin + gl.arange(0, CHANNELS, ROW)
        n = gl.arange(0, N, gl.SliceLayout(0, X))
        inside = (row < dim)[:, None] & (n >= 0)[None, :]
        at_state = state + slot * state_slot + (row[:, None] * state_channel + n[None, :])
        h = gl.load(at_state, inside, 0.0)
        rates = gl.load(A + (row[:, None] * A_channel + n[None, :]), inside, 0.0)
        x_bits = gl.load(x + batch * x_batch + channel, valid, 0)
        dt_bits = gl.load(dt + batch * dt_batch + channel, valid, 0)
        z_bits = gl.load(z + batch * z_batch + channel, valid & ((flags & HAS_Z) != 0), 0)
        bias = load_bits(dt_bias, channel, valid & ((flags & HAS_BIAS) != 0), dtype_code(flags, 4))
        skip = load_bits(D_skip, channel, valid & ((flags & HAS_D) != 0), dtype_code(flags, 3))
        b = load_bits(B, batch * B_batch + n, n >= 0, dtype_code(flags, 1))
        c = load_bits(C, batch * C_batch + n, n >= 0, dtype_code(flags, 2))
        value = widened(x_bits, flags)
        step = widened(dt_bits, flags) + decoded(bias, dtype_code(flags, 4))
        if (flags & SOFTPLUS) != 0:
            step = softplus(step)
        decay = exp2_fast(gl.convert_layout(step, ROW)[:, None] * (rates * LOG2E))
        inflow = gl.convert_layout(step * value, ROW)[:, None] * decoded(b, dtype_code(flags, 1))[None, :]
        h = gl.fma(decay, h, inflow)
        # Read again after all other layers' states, so there is no use in keeping it in the cache.
        gl.store(at_state, h, inside, cache_modifier=".cs")
        y = gl.convert_layout(gl.sum(decoded(c, dtype_code(flags, 2))[None, :] * h, 1), P)
        y += value * decoded(skip, dtype_code(flags, 3))
        if (flags & HAS_Z) != 0:
            zv = widened(z_bits, flags)
            y *= zv * sigmoid(zv)
        gl.store(out + channel, narrowed(y, out.dtype.element_ty, flags), valid)
