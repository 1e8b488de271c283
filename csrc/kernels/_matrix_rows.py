"""Products of a matrix in sixteen bits and many vectors of the same, on tensor cores.

A program takes 16 M rows and 8 N vectors. SPLIT of its warps share the columns, 32 each at a time, the others
the rows. Rows, which one warp needs once, go to registers; vectors, which many need, to shared memory; both a
chunk of STEPS steps ahead. mma.m16n8k16 adds up pairs of columns that a lane holds, and which pairs these are
is open as long as matrix and vectors agree: a lane takes 16 bytes of a row as they lie, so tiles need no
ldmatrix. Numbers are read two at a time, as int32.
"""

from _half import FLOAT16
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy

# Pairs of columns of a tile; a lane has four.
WIDE = gl.constexpr(16)


@gluon.constexpr_function
def sums_layout(m, n, split, warps):
    """Of [SPLIT, M, N, 8, WIDE]: a lane has two sums each of rows r and r + 8."""
    across = warps // split
    return gl.BlockedLayout(
        [1, m // across, n, 1, 4], [1, 1, 1, 8, 4], [split, across, 1, 1, 1], [4, 3, 2, 1, 0]
    )


@gluon.constexpr_function
def shares_layout(m, warps):
    """Of [1, M, N, 8, WIDE], a part of them in each warp."""
    across = min(m, warps)
    return gl.BlockedLayout(
        [1, 1, 1, 1, 4], [1, 1, 1, 8, 4], [1, across, warps // across, 1, 1], [4, 3, 2, 1, 0]
    )


@gluon.constexpr_function
def results_layout(m, warps):
    """Of [vectors, 16 M rows]: lanes lie along the rows."""
    lanes = min(32, 16 * m)
    return gl.BlockedLayout([1, 1], [32 // lanes, lanes], [warps, 1], [1, 0])


@gluon.constexpr_function
def vectors_layout(n, warps):
    """Of [SPLIT, N, 8, WIDE] on their way to shared memory."""
    across = min(n, warps)
    return gl.BlockedLayout([1, 1, 1, 4], [1, 1, 8, 4], [warps // across, across, 1, 1], [3, 2, 1, 0])


@gluon.constexpr_function
def axis_layout(layout, axis):
    """Of numbers along one axis of four."""
    for other in (3, 2, 1, 0):
        if other != axis:
            layout = gl.SliceLayout(other, layout)
    return layout


@gluon.jit
def tile_rows(spacing, COUNT: gl.constexpr, LAYOUT: gl.constexpr):
    """[1, COUNT, 8, 1]: COUNT times eight rows, `spacing` apart."""
    tile = gl.arange(0, COUNT, axis_layout(LAYOUT, 1))[None, :, None, None]
    return tile * spacing + gl.arange(0, 8, axis_layout(LAYOUT, 2))[None, None, :, None]


@gluon.jit
def step_columns(SPLIT: gl.constexpr, LAYOUT: gl.constexpr):
    """[SPLIT, 1, 1, WIDE]: pairs of columns of a step."""
    share = gl.arange(0, SPLIT, axis_layout(LAYOUT, 0))[:, None, None, None]
    return share * WIDE + gl.arange(0, WIDE, axis_layout(LAYOUT, 3))[None, None, None, :]


@gluon.jit
def load_chunk(rows, columns, column, limit, STEPS: gl.constexpr, SPLIT: gl.constexpr):
    """Rows of STEPS steps from a column on, 0 behind `limit`."""
    tiles = ()
    for step in gl.static_range(STEPS):
        at = column + step * (WIDE * SPLIT)
        tiles += (gl.load(rows + at, columns < limit - at, 0),)
    return tiles


@gluon.jit
def fetch_chunk(
    slots, slot, x, x_row, vectors, column, limit, N: gl.constexpr, SPLIT: gl.constexpr, STEPS: gl.constexpr
):
    """Asks for as many columns of `vectors` vectors, 0 behind them and behind `limit`."""
    LAYOUT: gl.constexpr = vectors_layout(N, gl.num_warps())
    vector = tile_rows(8, N, LAYOUT)
    columns = step_columns(SPLIT, LAYOUT)
    offsets = vector * x_row.to(gl.int32) + columns
    for step in gl.static_range(STEPS):
        at = column + step * (WIDE * SPLIT)
        inside = (vector < vectors) & (columns < limit - at)
        async_copy.async_copy_global_to_shared(slots[step].index(slot), (x + at) + offsets, inside)
    async_copy.commit_group()


@gluon.constexpr_function
def _instruction(format, upper, lower, vectors):
    """mma of two pairs of columns of each row: numbered as multiply_add() passes operands."""
    a, b = f"${upper}, ${lower}, ${upper + 1}, ${lower + 1}", f"${vectors}, ${vectors + 1}"
    kind = f"mma.sync.aligned.m16n8k16.row.col.f32.{format}.{format}.f32"
    return f"{kind} {{$0, $1, $2, $3}}, {{{a}}}, {{{b}}}, {{$16, $17, $18, $19}};"


@gluon.jit
def multiply_add(upper, lower, vectors, sums, FORMAT: gl.constexpr):
    """sums + rows times vectors, [SPLIT, M, N, 8, WIDE]; `upper` are rows 0 to 7 of 16, `lower` 8 to 15."""
    # The first half of all tiles before the second of any: an instruction takes long to finish.
    for half in gl.static_range(2):
        sums = gl.inline_asm_elementwise(
            _instruction(FORMAT, 4 + 2 * half, 8 + 2 * half, 12 + 2 * half),
            "=f,=f,=f,=f,r,r,r,r,r,r,r,r,r,r,r,r,f,f,f,f",
            [upper[:, :, None, :, :], lower[:, :, None, :, :], vectors[:, None, :, :, :], sums],
            dtype=gl.float32,
            is_pure=True,
            pack=4,
        )
    return sums


@gluon.jit
def multiply_chunk(above, below, slots, slot, sums, FORMAT: gl.constexpr, STEPS: gl.constexpr):
    for step in gl.static_range(STEPS):
        vectors = slots[step].index(slot).load(gl.SliceLayout(1, sums.type.layout))
        sums = multiply_add(above[step], below[step], vectors, sums, FORMAT)
    return sums


@gluon.jit
def first_rows(
    matrix,
    first_row,
    rows,
    begin,
    end,
    half,
    M: gl.constexpr,
    N: gl.constexpr,
    SPLIT: gl.constexpr,
    STEPS: gl.constexpr,
):
    """Where the rows of a program lie, and those of chunk `begin`, asked for: multiply_rows() takes both."""
    OF_ROWS: gl.constexpr = gl.SliceLayout(2, sums_layout(M, N, SPLIT, gl.num_warps()))
    CHUNK: gl.constexpr = STEPS * SPLIT * WIDE
    limit = gl.minimum(half, end * CHUNK)
    columns = step_columns(SPLIT, OF_ROWS)
    matrix += first_row.to(gl.int64) * half
    # Behind the last row it is read again; no one looks at what comes of it.
    upper = matrix + (gl.minimum(tile_rows(16, M, OF_ROWS), rows - 1 - first_row) * half + columns)
    lower = matrix + (gl.minimum(tile_rows(16, M, OF_ROWS) + 8, rows - 1 - first_row) * half + columns)
    above = load_chunk(upper, columns, begin * CHUNK, limit, STEPS, SPLIT)
    below = load_chunk(lower, columns, begin * CHUNK, limit, STEPS, SPLIT)
    return upper, lower, above, below


@gluon.jit
def multiply_rows(
    ahead,
    x,
    x_row,
    first_vector,
    batch,
    begin,
    end,
    half,
    flags,
    M: gl.constexpr,
    N: gl.constexpr,
    SPLIT: gl.constexpr,
    STEPS: gl.constexpr,
):
    """The sums over the columns of chunks `begin` to `end`, in SPLIT shares in shared memory, for results().

    `x_row` pairs lie from one vector to the next.
    """
    SUMS: gl.constexpr = sums_layout(M, N, SPLIT, gl.num_warps())
    CHUNK: gl.constexpr = STEPS * SPLIT * WIDE
    upper, lower, above, below = ahead
    limit = gl.minimum(half, end * CHUNK)
    columns = step_columns(SPLIT, gl.SliceLayout(2, SUMS))
    x += first_vector.to(gl.int64) * x_row
    vectors = batch - first_vector
    column = begin * CHUNK
    IN_ORDER: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [3, 2, 1, 0])
    slots = ()
    # Apart from each other, so that the compiler sees that copies to two of them need no barrier between.
    for _ in gl.static_range(STEPS):
        slots += (gl.allocate_shared_memory(gl.int32, [2, SPLIT, N, 8, WIDE], IN_ORDER),)
    fetch_chunk(slots, 0, x, x_row, vectors, column, limit, N, SPLIT, STEPS)
    sums = gl.zeros([SPLIT, M, N, 8, WIDE], gl.float32, SUMS)
    for i in range(0, end - begin):
        column += CHUNK
        next_above = load_chunk(upper, columns, column, limit, STEPS, SPLIT)
        next_below = load_chunk(lower, columns, column, limit, STEPS, SPLIT)
        fetch_chunk(slots, (i + 1) % 2, x, x_row, vectors, column, limit, N, SPLIT, STEPS)
        async_copy.wait_group(1)
        if (flags & FLOAT16) != 0:
            sums = multiply_chunk(above, below, slots, i % 2, sums, "f16", STEPS)
        else:
            sums = multiply_chunk(above, below, slots, i % 2, sums, "bf16", STEPS)
        above = next_above
        below = next_below
    async_copy.wait_group(0)
    SHARES: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [4, 3, 2, 1, 0])
    return gl.allocate_shared_memory(gl.float32, sums.shape, SHARES, sums)


@gluon.jit
def results(shares, M: gl.constexpr, N: gl.constexpr, SPLIT: gl.constexpr):
    """[8 N vectors, 16 M rows]: the sums of all shares."""
    LAYOUT: gl.constexpr = shares_layout(M, gl.num_warps())
    total = shares.slice(0, 1).load(LAYOUT)
    for share in gl.static_range(1, SPLIT):
        total += shares.slice(share, 1).load(LAYOUT)
    # A lane's four are (row, vectors 2 t and 2 t + 1), (row + 8, the same).
    parts = gl.reshape(total, [M, N, 8, 4, 2, 2])
    by_vector = gl.reshape(gl.permute(parts, [1, 3, 5, 0, 4, 2]), [8 * N, 16 * M])
    return gl.convert_layout(by_vector, results_layout(M, gl.num_warps()))


@gluon.jit
def result_places(first_row, first_vector, M: gl.constexpr, N: gl.constexpr):
    """Which rows and which vectors results() are of: [1, 16 M] and [8 N, 1]."""
    LAYOUT: gl.constexpr = results_layout(M, gl.num_warps())
    row = first_row + gl.arange(0, 16 * M, gl.SliceLayout(0, LAYOUT))[None, :]
    return row, first_vector + gl.arange(0, 8 * N, gl.SliceLayout(1, LAYOUT))[:, None]
