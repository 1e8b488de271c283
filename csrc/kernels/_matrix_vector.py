"""Products of a matrix in sixteen bits and a vector in fp32, a few rows of the matrix a program.

A thread reads 16 bytes of each row and has all rows of its columns, so that what is done to the vector is
done once for all of them; the next tile is on its way while one is multiplied. Numbers of sixteen bits are
read two at a time, as int32, so that a matrix has columns in pairs: an even one and an odd one.
"""

from _half import FLOAT16
from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.constexpr_function
def tile_layout(rows, warps):
    """Of [rows, 128 warps] pairs."""
    return gl.BlockedLayout([rows, 4], [1, 32], [1, warps], [1, 0])


@gluon.constexpr_function
def split_layout(rows, warps):
    """Of [rows, 128 warps, 2] numbers, the halves of a pair in one thread."""
    return gl.BlockedLayout([rows, 4, 2], [1, 32, 1], [1, warps, 1], [2, 1, 0])


@gluon.jit
def split_float16(pairs):
    low = pairs.to(gl.int16).to(gl.float16, bitcast=True).to(gl.float32)
    return low, (pairs >> 16).to(gl.int16).to(gl.float16, bitcast=True).to(gl.float32)


@gluon.jit
def split_bfloat16(pairs):
    return (pairs << 16).to(gl.float32, bitcast=True), (pairs & -65536).to(gl.float32, bitcast=True)


@gluon.jit
def even_and_odd(pairs, float16):
    """What int32 pairs of either sixteen-bit format hold, in fp32."""
    if float16:
        even, odd = split_float16(pairs)
    else:
        even, odd = split_bfloat16(pairs)
    return even, odd


@gluon.jit
def load_wide_pairs(x, begin, half, ROWS: gl.constexpr):
    """Pairs from `begin` on of an fp32 vector of `half` pairs, 0 behind its end: even ones, odd ones."""
    WARPS: gl.constexpr = gl.num_warps()
    OF_PAIR: gl.constexpr = gl.SliceLayout(0, split_layout(ROWS, WARPS))
    COLUMN: gl.constexpr = gl.SliceLayout(0, tile_layout(ROWS, WARPS))
    k = begin + gl.arange(0, 128 * WARPS, gl.SliceLayout(1, OF_PAIR))
    at = (2 * k)[:, None] + gl.arange(0, 2, gl.SliceLayout(0, OF_PAIR))[None, :]
    even, odd = gl.split(gl.load(x + at, (k < half)[:, None], 0.0))
    even = gl.convert_layout(even, COLUMN, assert_trivial=True)
    return even, gl.convert_layout(odd, COLUMN, assert_trivial=True)


@gluon.jit
def load_tile(matrix, at_row, k, half):
    """A tile of a matrix as it is stored, zero behind its last column."""
    return gl.load(matrix + (at_row + k[None, :]), (at_row >= 0) & (k < half)[None, :], 0)


@gluon.jit
def multiply_add(tile, even, odd, sums, flags):
    """sums + tile times vector, column by column."""
    even = gl.zeros_like(sums) + even[None, :]
    odd = gl.zeros_like(sums) + odd[None, :]
    # One branch for a tile: two instructions an element to choose a format would be felt.
    if (flags & FLOAT16) != 0:
        low, high = split_float16(tile)
        sums = gl.fma(high, odd, gl.fma(low, even, sums))
    else:
        low, high = split_bfloat16(tile)
        sums = gl.fma(high, odd, gl.fma(low, even, sums))
    return sums


@gluon.jit
def matrix_vector(matrix, first, x, width, flags, ROWS: gl.constexpr):
    """ROWS rows from `first` on of [rows, width] int32 pairs, times fp32 [width]."""
    WARPS: gl.constexpr = gl.num_warps()
    TILE: gl.constexpr = tile_layout(ROWS, WARPS)
    half = width // 2
    matrix += first.to(gl.int64) * half
    k = gl.arange(0, 128 * WARPS, gl.SliceLayout(0, TILE))
    at_row = (gl.arange(0, ROWS, gl.SliceLayout(1, TILE)) * half)[:, None]
    sums = gl.zeros([ROWS, 128 * WARPS], gl.float32, TILE)
    tile = load_tile(matrix, at_row, k, half)
    for begin in range(0, half, 128 * WARPS):
        following = load_tile(matrix, at_row, begin + 128 * WARPS + k, half)
        even, odd = load_wide_pairs(x, begin, half, ROWS)
        sums = multiply_add(tile, even, odd, sums, flags)
        tile = following
    return gl.sum(sums, 1)
