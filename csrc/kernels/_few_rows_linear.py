"""The logits of a few tokens: the last norm, and a product that takes as long as reading its weight."""

from _half import narrowed
from _matrix_vector import ROUNDS, WIDE, allocate_rows, fetch_first_rows, multiply_rows
from _overlap import let_next_kernel_begin, prefetch_into_l2, wait_for_earlier_kernels
from _scaled_token import scaled_token
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

# Bytes of its rows that a program asks for before it may read x.
PREFETCHED = gl.constexpr(16384)


@gluon.jit
def few_rows_linear_kernel(
    x,
    residual,
    norm_weight,
    matrix,
    out,
    eps,
    rows,
    width,
    count,
    flags,
    SPLIT: gl.constexpr,
    TILES: gl.constexpr,
):
    """out = matrix norm(x + residual) for each row of x.

    `count` rows of the matrix a program, as many at a time as it has sums for.
    """
    E: gl.constexpr = gl.BlockedLayout([1], [32], [gl.num_warps()], [0])
    MOST_ROWS: gl.constexpr = ROUNDS * gl.num_warps() // SPLIT
    programs = gl.cdiv(rows, count)
    first = gl.program_id(0) % programs * count
    batch = (gl.program_id(0) // programs).to(gl.int64)
    count = gl.minimum(count, rows - first)
    half = width // 2
    matrix += first.to(gl.int64) * half
    out += batch * rows + first
    slots = allocate_rows(SPLIT, TILES)
    prefetch_into_l2(matrix, gl.minimum(count * width * 2, PREFETCHED))
    wait_for_earlier_kernels()
    let_next_kernel_begin()
    own = gl.arange(0, MOST_ROWS, E)
    for done in range(0, count, MOST_ROWS):
        here = matrix + done.to(gl.int64) * half
        left = gl.minimum(count - done, MOST_ROWS)
        square = 0.0
        y = gl.zeros([MOST_ROWS], gl.float32, E)
        for part in range(0, gl.cdiv(half, SPLIT * TILES * WIDE)):
            fetch_first_rows(slots, here, part, left, half, SPLIT, TILES)
            even, odd, squares = scaled_token(
                x, residual, batch * width, norm_weight, x, part, half, False, flags, SPLIT, TILES
            )
            square += squares
            sums = multiply_rows(slots, here, part, left, even, odd, half, flags, SPLIT, TILES)
            y += gl.convert_layout(sums, E)
        # The row's 1 / rms is one factor of all sums.
        y *= gl.rsqrt(square / width + eps)
        gl.store(out + done + own, narrowed(y, out.dtype.element_ty, flags), own < left)
