"""A token as products of few rows take it: normed, but for the root mean square, a factor of all sums."""

from _half import FLOAT16
from _mamba1_step_sum import HAS_RESIDUAL, RESIDUAL_TYPE, SUM_TYPE, store_as
from _matrix_vector import even_and_odd, part_columns, shared_tiles
from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.jit
def scaled_token(
    x,
    residual,
    at_token,
    norm_weight,
    sum_out,
    part,
    half,
    stores,
    flags,
    SPLIT: gl.constexpr,
    TILES: gl.constexpr,
):
    """A part of (x + residual) norm_weight: tiles of even ones, of odd ones, and the sum of squares without
    the weight. One program of a token stores x + residual.
    """
    float16 = (flags & FLOAT16) != 0
    # Without a residual, neither is true.
    code = (flags >> RESIDUAL_TYPE) & 3
    is_wide = ((flags & HAS_RESIDUAL) != 0) & (code == 0)
    wide_residual = residual.to(gl.pointer_type(gl.float32), bitcast=True) + at_token
    k, inside = part_columns(part, half, SPLIT, TILES)
    pairs = gl.load(x + at_token // 2 + k, inside, 0)
    scales = gl.load(norm_weight + k, inside, 0)
    narrow_residual = gl.load(residual + at_token // 2 + k, inside & (code > 0), 0)
    added_even = gl.load(wide_residual + 2 * k, inside & is_wide, 0.0)
    added_odd = gl.load(wide_residual + 2 * k + 1, inside & is_wide, 0.0)
    if code > 0:
        added_even, added_odd = even_and_odd(narrow_residual, code == 1)
    even, odd = even_and_odd(pairs, float16)
    scale_even, scale_odd = even_and_odd(scales, float16)
    even += added_even
    odd += added_odd
    if stores:
        store_as(sum_out, at_token + 2 * k, even, inside, (flags >> SUM_TYPE) & 3)
        store_as(sum_out, at_token + 2 * k + 1, odd, inside, (flags >> SUM_TYPE) & 3)
    square = gl.sum(gl.sum(even * even + odd * odd, 1), 0)
    even = shared_tiles(even * scale_even, SPLIT, TILES)
    return even, shared_tiles(odd * scale_odd, SPLIT, TILES), square
