"""A token of many rows through a layer, six to eight kernels:

mamba1_step_rows_norm: residual + x, RMSNorm; before in_proj, or behind out_proj, whose parts it adds up
mamba1_step_rows_project: in_proj, x_proj and out_proj on tensor cores, whole or in parts of their columns, in
    _mamba1_step_rows_products.py
mamba1_step_rows_project_large: the same in larger tiles, of up to 64 vectors, on sm_90
mamba1_step_rows_sum: the sum of those parts, where no kernel adds them up as it reads them
mamba1_step_rows_convolution: convolution, SiLU
mamba1_step_rows_state: dt_proj, softplus, state update, gate, in _mamba1_step_rows_state.py

What goes from one kernel to the next is rounded to sixteen bits, as between modules, or comes in fp32 parts.
Every sum is in fp32 and has one order.
"""

from _half import narrowed, widened
from _mamba1_step_convolution import (
    IN_WORDS,
    convolution,
    keep,
    lagged_of_words,
    load_lagged,
    load_taps,
    load_words,
    store_words,
)
from _mamba1_step_sum import HAS_RESIDUAL, RESIDUAL_TYPE, SUM_TYPE, store_as
from _overlap import let_next_kernel_begin, wait_for_earlier_kernels
from _shares import some_shares, sum_of_shares
from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.jit
def mamba1_step_rows_norm_kernel(
    x, shares, residual, norm_weight, sum_out, out, eps, size, width, parts, flags, BLOCK: gl.constexpr
):
    """norm(x + residual), a row a program. With `parts`, x is the sum of so many shares of `size` numbers."""
    E: gl.constexpr = gl.BlockedLayout([BLOCK // 32 // gl.num_warps()], [32], [gl.num_warps()], [0])
    row = gl.program_id(0).to(gl.int64) * width
    # What an unknown kernel before this one may still write is not read. The next kernel may read its weights
    # before it waits, because it begins when this one has waited.
    wait_for_earlier_kernels()
    let_next_kernel_begin()
    k = gl.arange(0, BLOCK, E)
    value = added(x, shares, residual, row, k, size, width, parts, flags)
    weight = gl.load(norm_weight + k, k < width, 0)
    squares = value * value
    for first in range(BLOCK, width, BLOCK):
        following = added(x, shares, residual, row, first + k, size, width, parts, flags)
        squares += following * following
    scale = gl.rsqrt(gl.sum(squares, 0) / width + eps)
    for first in range(0, width, BLOCK):
        at = first + k
        if first > 0:
            value = added(x, shares, residual, row, at, size, width, parts, flags)
            weight = gl.load(norm_weight + at, at < width, 0)
        store_as(sum_out, row + at, value, at < width, (flags >> SUM_TYPE) & 3)
        normed = value * scale * widened(weight, flags)
        gl.store(out + row + at, narrowed(normed, out.dtype.element_ty, flags), at < width)


@gluon.jit
def added(x, shares, residual, row, at, size, width, parts, flags):
    """x + residual, fp32."""
    # Without a residual, neither is true.
    code = (flags >> RESIDUAL_TYPE) & 3
    is_wide = ((flags & HAS_RESIDUAL) != 0) & (code == 0)
    inside = at < width
    wide = residual.to(gl.pointer_type(gl.float32), bitcast=True) + row
    narrow = residual.to(gl.pointer_type(gl.int16), bitcast=True) + row
    several = some_shares(shares + row, at, size, inside, 0, parts)
    bits = gl.load(narrow + at, inside & (code > 0), 0)
    wide_bits = gl.load(wide + at, inside & is_wide, 0.0)
    sums = widened(gl.load(x + row + at, inside & (parts == 0), 0), flags) + wide_bits
    half = bits.to(gl.float16, bitcast=True).to(gl.float32)
    brain = (bits.to(gl.int32) << 16).to(gl.float32, bitcast=True)
    sums += gl.where(code == 1, half, brain)
    return sum_of_shares(sums, several, shares + row, at, size, inside, parts)


@gluon.jit
def mamba1_step_rows_convolution_kernel(
    xz,
    shares,
    conv_state,
    conv_weight,
    conv_bias,
    x,
    z,
    size,
    inner,
    taps,
    kept,
    parts,
    flags,
    CHANNELS: gl.constexpr,
):
    """x = silu(conv(xz[:, :inner])). CHANNELS of one row a program.

    With `parts`, xz is the sum of so many shares of `size` numbers, and its second half goes to z.
    """
    E: gl.constexpr = gl.BlockedLayout([2], [32], [gl.num_warps()], [0])
    OF_PAIR: gl.constexpr = gl.BlockedLayout([1], [32], [gl.num_warps()], [0])
    blocks = gl.cdiv(inner, CHANNELS)
    first = gl.program_id(0) % blocks * CHANNELS
    channel = first + gl.arange(0, CHANNELS, E)
    batch = gl.program_id(0) // blocks
    here = channel < inner
    place = batch * inner + channel
    first_pair = (batch * inner + first) // 2
    pairs = (inner - first) // 2
    pair = gl.arange(0, CHANNELS // 2, OF_PAIR)
    let_next_kernel_begin()
    # Older than this layer's first kernel.
    in_words = (flags & IN_WORDS) != 0
    words = load_words(conv_state, first_pair + pair, in_words & (pair < pairs))
    lagged = load_lagged(conv_state, place, here & (in_words == 0), taps, kept)
    weights, bias = load_taps(conv_weight, conv_bias, channel, here, taps, flags)
    wait_for_earlier_kernels()
    TYPE: gl.constexpr = x.dtype.element_ty
    row = batch.to(gl.int64) * (2 * inner)
    u = widened(gl.load(xz + row + channel, here & (parts == 0), 0), flags)
    if parts > 0:
        of_u = some_shares(shares + row, channel, size, here, 0, parts)
        of_z = some_shares(shares + row, inner + channel, size, here, 0, parts)
        u = sum_of_shares(u, of_u, shares + row, channel, size, here, parts)
        gate = sum_of_shares(gl.zeros_like(u), of_z, shares + row, inner + channel, size, here, parts)
        gl.store(z + place, narrowed(gate, TYPE, flags), here)
    new = narrowed(u, conv_state.dtype.element_ty, flags)
    if in_words:
        lagged = lagged_of_words(words, E)
    gl.store(x + place, narrowed(convolution(new, lagged, weights, bias, flags), TYPE, flags), here)
    if in_words:
        store_words(conv_state, first_pair, pairs, words, new)
    else:
        keep(conv_state, place, here, kept, lagged, new)
