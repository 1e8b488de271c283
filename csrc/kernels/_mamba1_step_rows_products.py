"""The products of a token of many rows, each weight read once for all of them: in_proj, x_proj, out_proj."""

from _half import narrowed
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
def mamba1_step_rows_project_kernel(
    x,
    matrix,
    out,
    shares,
    rows,
    width,
    batch,
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
        half,
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
    rings = allocate_rings(matrix.dtype.element_ty, STAGES, TALL, EXTRA)
    for stage in gl.static_range(STAGES - 1):
        fetch_rows(rings, stage, matrix, here, width, (begin + stage) * CHUNK, limit, TALL, EXTRA)
    wait_for_earlier_kernels()
    # Not before: programs of the next kernel would gather on multiprocessors that this one leaves free.
    let_next_kernel_begin()
    for stage in gl.static_range(STAGES - 1):
        fetch_vectors(rings, stage, x, batch, width, (begin + stage) * CHUNK, limit)
        async_copy.commit_group()
    sums, more = multiply_chunks(rings, x, batch, matrix, width, here, begin, end, limit, STAGES, TALL, EXTRA)
    store_sums(sums, out, shares, part, parts, first_row, rows, batch, TALL)
    if EXTRA > 0:
        store_sums(more, out, shares, part, parts, first_row + TALL, rows, batch, EXTRA)


@gluon.constexpr_function
def parts_layout(block, warps):
    """Of [PARTS, BLOCK]: lanes lie along the numbers, warps along the parts where a block is short."""
    lanes = min(32, block // 4)
    across = min(warps, max(1, block // 128))
    return gl.BlockedLayout([1, 4], [32 // lanes, lanes], [warps // across, across], [1, 0])


@gluon.jit
def mamba1_step_rows_sum_kernel(shares, out, size, parts, flags, PARTS: gl.constexpr, BLOCK: gl.constexpr):
    """out = the sum of `parts` times `size` numbers, PARTS of them at a time."""
    E: gl.constexpr = parts_layout(BLOCK, gl.num_warps())
    at = gl.program_id(0).to(gl.int64) * BLOCK + gl.arange(0, BLOCK, gl.SliceLayout(0, E))
    part = gl.arange(0, PARTS, gl.SliceLayout(1, E))
    let_next_kernel_begin()
    wait_for_earlier_kernels()
    totals = gl.zeros([PARTS, BLOCK], gl.float32, E)
    for first in range(0, parts, PARTS):
        inside = (first + part < parts)[:, None] & (at < size)[None, :]
        totals += gl.load(shares + ((first + part)[:, None] * size + at[None, :]), inside, 0.0)
    total = gl.sum(totals, 0)
    gl.store(out + at, narrowed(total, out.dtype.element_ty, flags), at < size)
