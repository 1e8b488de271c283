"""Products of a matrix and up to 64 vectors, both in sixteen bits, about as fast as memory gives the matrix.

By instructions of four warps that read both operands from shared memory (wgmma), which only sm_90 has.

A program takes TALL + EXTRA rows and all vectors. Columns come in chunks through rings of STAGES buffers.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    warpgroup_mma,
    warpgroup_mma_init,
    warpgroup_mma_wait,
)

# Rows of an instruction: fewer vectors are filled up with zeros.
VECTORS = gl.constexpr(64)
# 256 bytes of a row at a time: by the 128 that one pattern of a wgmma operand spans, memory is slower.
CHUNK = gl.constexpr(128)


@gluon.constexpr_function
def chunk_layout(warps):
    """Of [rows, CHUNK] on their way to shared memory: sixteen lanes ask for the 256 bytes of a row."""
    return gl.BlockedLayout([1, 8], [2, 16], [warps, 1], [1, 0])


@gluon.constexpr_function
def ring_layout():
    return gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)


@gluon.constexpr_function
def sums_layout(rows):
    """Of [VECTORS, rows]."""
    return gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, rows, 16])


@gluon.jit
def chunk_rows(first, COUNT: gl.constexpr):
    return first + gl.arange(0, COUNT, gl.SliceLayout(1, chunk_layout(gl.num_warps())))[:, None]


@gluon.jit
def chunk_columns():
    return gl.arange(0, CHUNK, gl.SliceLayout(0, chunk_layout(gl.num_warps())))[None, :]


@gluon.jit
def fetch(ring, slot, matrix, row, rows, width, column, limit):
    """Asks for a chunk of some rows, 0 behind `rows` and behind column `limit`."""
    k = chunk_columns()
    inside = (row < rows) & (k < limit - column)
    async_copy.async_copy_global_to_shared(ring.index(slot), (matrix + column) + (row * width + k), inside)


@gluon.jit
def allocate_rings(TYPE: gl.constexpr, STAGES: gl.constexpr, TALL: gl.constexpr, EXTRA: gl.constexpr):
    """Of vectors, of TALL rows and of EXTRA more."""
    vectors = gl.allocate_shared_memory(TYPE, [STAGES, VECTORS, CHUNK], ring_layout())
    tall = gl.allocate_shared_memory(TYPE, [STAGES, TALL, CHUNK], ring_layout())
    extra = tall
    if EXTRA > 0:
        extra = gl.allocate_shared_memory(TYPE, [STAGES, EXTRA, CHUNK], ring_layout())
    return vectors, tall, extra


@gluon.jit
def fetch_rows(rings, slot, matrix, rows, width, column, limit, TALL: gl.constexpr, EXTRA: gl.constexpr):
    fetch(rings[1], slot, matrix, chunk_rows(0, TALL), rows, width, column, limit)
    if EXTRA > 0:
        fetch(rings[2], slot, matrix, chunk_rows(TALL, EXTRA), rows, width, column, limit)


@gluon.jit
def fetch_vectors(rings, slot, x, batch, width, column, limit):
    fetch(rings[0], slot, x, chunk_rows(0, VECTORS), batch, width, column, limit)


@gluon.jit
def multiply_add(vectors, rows, slot, sums):
    """sums + vectors times rows of a chunk, which may still be going on when this returns."""
    return warpgroup_mma(vectors.index(slot), rows.index(slot).permute((1, 0)), sums, is_async=True)


@gluon.jit
def multiply_chunks(
    rings,
    x,
    batch,
    matrix,
    width,
    rows,
    begin,
    end,
    limit,
    STAGES: gl.constexpr,
    TALL: gl.constexpr,
    EXTRA: gl.constexpr,
):
    """The sums over chunks `begin` to `end`, [VECTORS, TALL] and [VECTORS, EXTRA].

    The first STAGES - 1 chunks have been asked for, a group of copies each.
    """
    sums = warpgroup_mma_init(gl.zeros([VECTORS, TALL], gl.float32, sums_layout(TALL)))
    more = sums
    if EXTRA > 0:
        more = warpgroup_mma_init(gl.zeros([VECTORS, EXTRA], gl.float32, sums_layout(EXTRA)))
    for i in range(0, end - begin):
        # What the last round multiplied is done with, and its buffers are free once all warps are here.
        sums = warpgroup_mma_wait(num_outstanding=0, deps=(sums,))
        if EXTRA > 0:
            more = warpgroup_mma_wait(num_outstanding=0, deps=(more,))
        async_copy.wait_group(STAGES - 2)
        fence_async_shared()
        slot = i % STAGES
        sums = multiply_add(rings[0], rings[1], slot, sums)
        if EXTRA > 0:
            more = multiply_add(rings[0], rings[2], slot, more)
        slot = (i + (STAGES - 1)) % STAGES
        column = (begin + i + (STAGES - 1)) * CHUNK
        fetch_vectors(rings, slot, x, batch, width, column, limit)
        fetch_rows(rings, slot, matrix, rows, width, column, limit, TALL, EXTRA)
        async_copy.commit_group()
    async_copy.wait_group(0)
    sums = warpgroup_mma_wait(num_outstanding=0, deps=(sums,))
    if EXTRA > 0:
        more = warpgroup_mma_wait(num_outstanding=0, deps=(more,))
    return sums, more


@gluon.jit
def store_sums(sums, out, shares, part, parts, first_row, rows, batch, COUNT: gl.constexpr):
    """Of COUNT rows of the matrix: into out [batch, rows], or a part of fp32 shares [parts, batch, rows]."""
    LAYOUT: gl.constexpr = gl.BlockedLayout([1, 4], [128 // COUNT, COUNT // 4], [gl.num_warps(), 1], [1, 0])
    y = gl.convert_layout(sums, LAYOUT)
    vector = gl.arange(0, VECTORS, gl.SliceLayout(1, LAYOUT))[:, None]
    row = first_row + gl.arange(0, COUNT, gl.SliceLayout(0, LAYOUT))[None, :]
    inside = (vector < batch) & (row < rows)
    if parts > 1:
        gl.store(shares + ((part * batch + vector).to(gl.int64) * rows + row), y, inside)
    else:
        gl.store(out + (vector.to(gl.int64) * rows + row), y.to(out.dtype.element_ty), inside)
