"""Products of a matrix in sixteen bits and a vector in fp32, for programs that own some rows each.

SPLIT warps share a row, with TILES tiles of 128 pairs of columns each; wider matrices go by parts. The rows
of the next round are on their way to shared memory while those of one are multiplied. The vector stays in
registers meanwhile, so a program reads it once. Numbers of sixteen bits are read two at a time, as int32, so
that a matrix has columns in pairs: an even one and an odd one.
"""

from _half import FLOAT16
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy

# Pairs of columns of a tile, of which a thread reads 16 bytes.
WIDE = gl.constexpr(128)
# The most rounds of a program, in which its warps take a row, or a part of one, each.
ROUNDS = gl.constexpr(32)
# Rounds whose rows are in shared memory or on their way there.
STAGES = gl.constexpr(2)


@gluon.constexpr_function
def rows_layout(split, warps):
    """Of [rows at once, split, WIDE] pairs."""
    return gl.BlockedLayout([1, 1, 4], [1, 1, 32], [warps // split, split, 1], [2, 1, 0])


@gluon.constexpr_function
def vector_layout(split, warps):
    """Of [split, WIDE] pairs, as the rows have them."""
    return gl.SliceLayout(0, rows_layout(split, warps))


@gluon.constexpr_function
def count_whole(split, tiles):
    """Rows of WIDE pairs that hold a part: a power of two."""
    return 1 << (split * tiles - 1).bit_length()


@gluon.constexpr_function
def whole_layout(split, tiles, warps):
    """Of [count_whole(), WIDE] pairs, each in one thread."""
    across = min(warps, count_whole(split, tiles))
    return gl.BlockedLayout([1, 1], [1, 32], [across, warps // across], [1, 0])


@gluon.jit
def tile_columns(part, tile, LAYOUT: gl.constexpr, SPLIT: gl.constexpr, TILES: gl.constexpr):
    """[split, WIDE]: which pairs are in a tile of a part."""
    share = gl.arange(0, SPLIT, gl.SliceLayout(1, LAYOUT))[:, None]
    lane = gl.arange(0, WIDE, gl.SliceLayout(0, LAYOUT))[None, :]
    return ((part * TILES + tile) * SPLIT + share) * WIDE + lane


@gluon.jit
def part_columns(part, half, SPLIT: gl.constexpr, TILES: gl.constexpr):
    """[count_whole(), WIDE]: which pairs are in a part, and whether there are any."""
    LAYOUT: gl.constexpr = whole_layout(SPLIT, TILES, gl.num_warps())
    row = gl.arange(0, count_whole(SPLIT, TILES), gl.SliceLayout(1, LAYOUT))[:, None]
    k = (part * (TILES * SPLIT) + row) * WIDE + gl.arange(0, WIDE, gl.SliceLayout(0, LAYOUT))[None, :]
    return k, (row < TILES * SPLIT) & (k < half)


@gluon.jit
def shared_tiles(numbers, SPLIT: gl.constexpr, TILES: gl.constexpr):
    """The tiles of a vector's part that threads hold once, as rows are multiplied with it."""
    IN_ORDER: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    slots = gl.allocate_shared_memory(gl.float32, numbers.shape, IN_ORDER, numbers)
    tiles = ()
    for t in gl.static_range(TILES):
        tiles += (slots.slice(t * SPLIT, SPLIT).load(vector_layout(SPLIT, gl.num_warps())),)
    return tiles


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
def multiply_add(pairs, even, odd, sums, flags):
    """sums + pairs times a vector, pair by pair."""
    even = gl.zeros_like(sums) + even
    odd = gl.zeros_like(sums) + odd
    # One branch for a tile: two instructions an element to choose a format would be felt.
    if (flags & FLOAT16) != 0:
        low, high = split_float16(pairs)
        sums = gl.fma(high, odd, gl.fma(low, even, sums))
    else:
        low, high = split_bfloat16(pairs)
        sums = gl.fma(high, odd, gl.fma(low, even, sums))
    return sums


@gluon.jit
def load_wide_tiles(x, part, half, SPLIT: gl.constexpr, TILES: gl.constexpr):
    """A part of an fp32 vector of `half` pairs, 0 behind its end: tiles of even ones, and of odd ones."""
    evens = ()
    odds = ()
    for t in gl.static_range(TILES):
        even, odd = load_wide_pairs(x, part, t, half, SPLIT, TILES)
        evens += (even,)
        odds += (odd,)
    return evens, odds


@gluon.jit
def load_wide_pairs(x, part, tile, half, SPLIT: gl.constexpr, TILES: gl.constexpr):
    WARPS: gl.constexpr = gl.num_warps()
    HALVES: gl.constexpr = gl.SliceLayout(
        0, gl.BlockedLayout([1, 1, 4, 2], [1, 1, 32, 1], [WARPS // SPLIT, SPLIT, 1, 1], [3, 2, 1, 0])
    )
    k = tile_columns(part, tile, gl.SliceLayout(2, HALVES), SPLIT, TILES)
    which = gl.arange(0, 2, gl.SliceLayout(0, gl.SliceLayout(1, HALVES)))[None, None, :]
    even, odd = gl.split(gl.load(x + ((2 * k)[:, :, None] + which), (k < half)[:, :, None], 0.0))
    even = gl.convert_layout(even, vector_layout(SPLIT, WARPS), assert_trivial=True)
    return even, gl.convert_layout(odd, vector_layout(SPLIT, WARPS), assert_trivial=True)


@gluon.jit
def allocate_rows(SPLIT: gl.constexpr, TILES: gl.constexpr):
    """Room for rows on their way, tile by tile: a thread copies and reads its own part."""
    IN_ORDER: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [2, 1, 0])
    slots = ()
    # Apart from each other, so that the compiler sees that copies to two of them need no barrier between.
    for _ in gl.static_range(TILES):
        slots += (
            gl.allocate_shared_memory(gl.int32, [STAGES, gl.num_warps() // SPLIT, SPLIT, WIDE], IN_ORDER),
        )
    return slots


@gluon.jit
def fetch_rows(slots, matrix, round, part, count, half, SPLIT: gl.constexpr, TILES: gl.constexpr):
    """Asks for a part of the rows of a round, as stored; 0 outside of `count` rows."""
    WARPS: gl.constexpr = gl.num_warps()
    AT_ONCE: gl.constexpr = WARPS // SPLIT
    ROWS: gl.constexpr = rows_layout(SPLIT, WARPS)
    row = round * AT_ONCE + gl.arange(0, AT_ONCE, gl.SliceLayout(1, gl.SliceLayout(2, ROWS)))[:, None, None]
    for t in gl.static_range(TILES):
        k = tile_columns(part, t, vector_layout(SPLIT, WARPS), SPLIT, TILES)[None, :, :]
        async_copy.async_copy_global_to_shared(
            slots[t].index(round % STAGES), matrix + (row * half + k), (row < count) & (k < half)
        )
    async_copy.commit_group()


@gluon.jit
def fetch_first_rows(slots, matrix, part, count, half, SPLIT: gl.constexpr, TILES: gl.constexpr):
    for round in gl.static_range(STAGES - 1):
        fetch_rows(slots, matrix, round, part, count, half, SPLIT, TILES)


@gluon.jit
def multiply_rows(
    slots, matrix, part, count, even, odd, half, flags, SPLIT: gl.constexpr, TILES: gl.constexpr
):
    """The sums of a part of each row times a vector, [ROUNDS * rows at once], 0 behind `count` rows.

    The first rows have been asked for; `even` and `odd` are the vector's tiles.
    """
    WARPS: gl.constexpr = gl.num_warps()
    AT_ONCE: gl.constexpr = WARPS // SPLIT
    ROWS: gl.constexpr = rows_layout(SPLIT, WARPS)
    # A lane keeps the sum of one round.
    FOUND: gl.constexpr = gl.BlockedLayout([1, 1, 1], [1, 1, 32], [AT_ONCE, SPLIT, 1], [2, 1, 0])
    turn = gl.arange(0, ROUNDS, gl.SliceLayout(0, gl.SliceLayout(1, FOUND)))[None, None, :]
    found = gl.zeros([AT_ONCE, SPLIT, ROUNDS], gl.float32, FOUND)
    for i in range(0, gl.cdiv(count, AT_ONCE)):
        fetch_rows(slots, matrix, i + (STAGES - 1), part, count, half, SPLIT, TILES)
        async_copy.wait_group(STAGES - 1)
        sums = gl.zeros([AT_ONCE, SPLIT, WIDE], gl.float32, ROWS)
        for t in gl.static_range(TILES):
            pairs = slots[t].index(i % STAGES).load(ROWS)
            sums = multiply_add(pairs, even[t][None, :, :], odd[t][None, :, :], sums, flags)
        total = gl.convert_layout(gl.sum(sums, 2), gl.SliceLayout(2, FOUND), assert_trivial=True)
        found = gl.where(turn == i, total[:, :, None], found)
    async_copy.wait_group(0)
    # [rows at once, rounds] as rows.
    return gl.reshape(gl.permute(gl.sum(found, 1), [1, 0]), [ROUNDS * AT_ONCE])
