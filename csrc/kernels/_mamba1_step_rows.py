"""A token of many rows through a layer: products on tensor cores, which read each weight once for all rows.

mamba1_step_rows_norm: residual + x, RMSNorm
mamba1_step_rows_project: in_proj, x_proj and out_proj, whole or in parts of their columns
mamba1_step_rows_project_large: the same in larger tiles, of up to 64 vectors, on sm_90
mamba1_step_rows_sum: the sum of those parts
mamba1_step_rows_convolution: convolution, SiLU
mamba1_step_rows_state: dt_proj, softplus, state update, gate, in _mamba1_step_rows_state.py

What goes from one kernel to the next is rounded to sixteen bits, as between modules. Every sum is in fp32 and
has one order.
"""

from _half import narrowed, widened
from _mamba1_step_convolution import convolved, load_convolution
from _mamba1_step_sum import HAS_RESIDUAL, RESIDUAL_TYPE, SUM_TYPE, store_as
from _matrix_rows import WIDE, first_rows, multiply_rows, result_places, results
from _matrix_streams import (
    CHUNK,
    allocate_rings,
    fetch_rows,
    fetch_vectors,
    multiply_chunks,
    store_sums,
)
from _overlap import let_next_kernel_begin, wait_for_earlier_kernels
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy


@gluon.jit
def mamba1_step_rows_norm_kernel(
    x, residual, norm_weight, sum_out, out, eps, width, flags, BLOCK: gl.constexpr
):
    """norm(x + residual), a row a program."""
    E: gl.constexpr = gl.BlockedLayout([8], [32], [gl.num_warps()], [0])
    row = gl.program_id(0).to(gl.int64) * width
    # What an unknown kernel before this one may still write is not read. The next kernel may read its weights
    # before it waits, because it begins when this one has waited.
    wait_for_earlier_kernels()
    let_next_kernel_begin()
    k = gl.arange(0, BLOCK, E)
    value = added(x, residual, row, k, width, flags)
    weight = gl.load(norm_weight + k, k < width, 0)
    squares = value * value
    for first in range(BLOCK, width, BLOCK):
        following = added(x, residual, row, first + k, width, flags)
        squares += following * following
    scale = gl.rsqrt(gl.sum(squares, 0) / width + eps)
    for first in range(0, width, BLOCK):
        at = first + k
        if first > 0:
            value = added(x, residual, row, at, width, flags)
            weight = gl.load(norm_weight + at, at < width, 0)
        store_as(sum_out, row + at, value, at < width, (flags >> SUM_TYPE) & 3)
        normed = value * scale * widened(weight, flags)
        gl.store(out + row + at, narrowed(normed, out.dtype.element_ty, flags), at < width)


@gluon.jit
def added(x, residual, row, at, width, flags):
    """x + residual, fp32."""
    # Without a residual, neither is true.
    code = (flags >> RESIDUAL_TYPE) & 3
    is_wide = ((flags & HAS_RESIDUAL) != 0) & (code == 0)
    inside = at < width
    wide = residual.to(gl.pointer_type(gl.float32), bitcast=True) + row
    narrow = residual.to(gl.pointer_type(gl.int16), bitcast=True) + row
    bits = gl.load(narrow + at, inside & (code > 0), 0)
    sums = widened(gl.load(x + row + at, inside, 0), flags) + gl.load(wide + at, inside & is_wide, 0.0)
    half = bits.to(gl.float16, bitcast=True).to(gl.float32)
    brain = (bits.to(gl.int32) << 16).to(gl.float32, bitcast=True)
    return sums + gl.where(code == 1, half, brain)


@gluon.jit
def mamba1_step_rows_convolution_kernel(
    xz, conv_state, conv_weight, conv_bias, inner, taps, kept, flags, CHANNELS: gl.constexpr
):
    """xz[:, :inner] becomes silu(conv(xz[:, :inner])). CHANNELS of one row a program."""
    E: gl.constexpr = gl.BlockedLayout([1], [32], [gl.num_warps()], [0])
    blocks = gl.cdiv(inner, CHANNELS)
    channel = gl.program_id(0) % blocks * CHANNELS + gl.arange(0, CHANNELS, E)
    batch = gl.program_id(0) // blocks
    here = channel < inner
    place = batch * inner + channel
    let_next_kernel_begin()
    # Older than this layer's first kernel.
    lagged, weights, bias = load_convolution(
        conv_state, conv_weight, conv_bias, place, channel, here, taps, kept, flags
    )
    wait_for_earlier_kernels()
    at = batch.to(gl.int64) * (2 * inner) + channel
    u = widened(gl.load(xz + at, here, 0), flags)
    y = convolved(u, conv_state, place, here, kept, lagged, weights, bias, flags)
    gl.store(xz + at, narrowed(y, xz.dtype.element_ty, flags), here)


@gluon.jit
def mamba1_step_rows_project_kernel(
    x,
    matrix,
    out,
    shares,
    rows,
    width,
    batch,
    x_row,
    parts,
    flags,
    M: gl.constexpr,
    N: gl.constexpr,
    SPLIT: gl.constexpr,
    STEPS: gl.constexpr,
):
    """Matrix [rows, width] times `batch` vectors into out [batch, rows]; or, with columns cut into several
    parts, into fp32 `shares` [parts, batch, rows].
    """
    groups = gl.cdiv(batch, 8 * N)
    part = gl.program_id(0) % parts
    first_vector = gl.program_id(0) // parts % groups * (8 * N)
    first_row = gl.program_id(0) // parts // groups * (16 * M)
    half = width // 2
    steps = gl.cdiv(half, WIDE * SPLIT * STEPS)
    each = gl.cdiv(steps, parts)
    begin = gl.minimum(part * each, steps)
    end = gl.minimum(begin + each, steps)
    let_next_kernel_begin()
    ahead = first_rows(matrix, first_row, rows, begin, end, half, M, N, SPLIT, STEPS)
    wait_for_earlier_kernels()
    sums = multiply_rows(
        ahead,
        x,
        x_row // 2,
        first_vector,
        batch,
        begin,
        end,
        half,
        flags,
        M,
        N,
        SPLIT,
        STEPS,
    )
    y = results(sums, M, N, SPLIT)
    row, vector = result_places(first_row, first_vector, M, N)
    inside = (row < rows) & (vector < batch)
    if parts > 1:
        gl.store(shares + ((part * batch + vector).to(gl.int64) * rows + row), y, inside)
    else:
        at = vector.to(gl.int64) * rows + row
        gl.store(out + at, narrowed(y, out.dtype.element_ty, flags), inside)


@gluon.jit
def mamba1_step_rows_project_large_kernel(
    x,
    matrix,
    out,
    shares,
    rows,
    width,
    batch,
    x_row,
    parts,
    TALL: gl.constexpr,
    EXTRA: gl.constexpr,
    STAGES: gl.constexpr,
):
    """Matrix [rows, width] times `batch` vectors into out [batch, rows]; or, with columns cut into several
    parts, into fp32 `shares` [parts, batch, rows].
    """
    part = gl.program_id(0) % parts
    first_row = gl.program_id(0) // parts * (TALL + EXTRA)
    chunks = gl.cdiv(width, CHUNK)
    each = gl.cdiv(chunks, parts)
    begin = gl.minimum(part * each, chunks)
    end = gl.minimum(begin + each, chunks)
    limit = gl.minimum(width, end * CHUNK)
    matrix += first_row.to(gl.int64) * width
    here = rows - first_row
    stride = x_row.to(gl.int32)
    rings = allocate_rings(matrix.dtype.element_ty, STAGES, TALL, EXTRA)
    let_next_kernel_begin()
    for stage in gl.static_range(STAGES - 1):
        fetch_rows(rings, stage, matrix, here, width, (begin + stage) * CHUNK, limit, TALL, EXTRA)
    wait_for_earlier_kernels()
    for stage in gl.static_range(STAGES - 1):
        fetch_vectors(rings, stage, x, batch, stride, (begin + stage) * CHUNK, limit)
        async_copy.commit_group()
    sums, more = multiply_chunks(
        rings, x, stride, batch, matrix, width, here, begin, end, limit, STAGES, TALL, EXTRA
    )
    store_sums(sums, out, shares, part, parts, first_row, rows, batch, TALL)
    if EXTRA > 0:
        store_sums(more, out, shares, part, parts, first_row + TALL, rows, batch, EXTRA)


@gluon.jit
def mamba1_step_rows_sum_kernel(shares, out, size, parts, flags, BLOCK: gl.constexpr):
    """out = the sum of `parts` times `size` numbers."""
    E: gl.constexpr = gl.BlockedLayout([4], [32], [gl.num_warps()], [0])
    at = gl.program_id(0).to(gl.int64) * BLOCK + gl.arange(0, BLOCK, E)
    let_next_kernel_begin()
    wait_for_earlier_kernels()
    total = gl.zeros([BLOCK], gl.float32, E)
    for part in range(0, parts):
        total += gl.load(shares + (at + part * size), at < size, 0.0)
    gl.store(out + at, narrowed(total, out.dtype.element_ty, flags), at < size)
