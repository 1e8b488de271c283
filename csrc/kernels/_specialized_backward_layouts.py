"""How the warps of the specialised backward divide a tile between them, and how what they hand over lies in
shared memory: in pieces of 16 bytes, of which eight that are written or read at once never share a bank.

In arrays of a tile, [lanes, steps, channels], LANES threads of a warp have a channel's states, each ROWS of
them. A thread has two channels, so that sums over these never leave it.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

# Lanes that share the states of a channel, and channels of a program.
LANES = gl.constexpr(8)
CHANNELS = gl.constexpr(32)
ROWS = gl.constexpr(2)
# Steps of a tile, and tiles of half a chunk.
STEPS = gl.constexpr(8)
TILES = gl.constexpr(4)
# Halves of chunks that are under way at once.
STAGES = gl.constexpr(3)


@gluon.constexpr_function
def states_layout():
    """Of a piece, [lanes, steps, channels, 1]. Of neighbouring threads two share a lane, and two such pairs a
    channel: what both read of shared memory is read once.
    """
    registers = [[0, 1, 0, 0], [0, 2, 0, 0], [0, 0, 1, 0]]
    threads = [[0, 0, 2, 0], [1, 0, 0, 0], [2, 0, 0, 0], [4, 0, 0, 0], [0, 0, 4, 0]]
    return gl.DistributedLinearLayout(registers, threads, [[0, 0, 8, 0], [0, 0, 16, 0]], [], [8, 4, 32, 1])


@gluon.constexpr_function
def starts_layout():
    """States of a lane's rows, [lanes, channels, rows], as states_layout() has the other two."""
    threads = [[0, 2, 0], [1, 0, 0], [2, 0, 0], [4, 0, 0], [0, 4, 0]]
    return gl.DistributedLinearLayout(
        [[0, 0, 1], [0, 1, 0]], threads, [[0, 8, 0], [0, 16, 0]], [], [8, 32, 2]
    )


@gluon.constexpr_function
def starts_slots():
    """The same in shared memory: as threads have them."""
    threads = [[0, 2, 0], [1, 0, 0], [2, 0, 0], [4, 0, 0], [0, 4, 0]]
    return gl.SharedLinearLayout([[0, 0, 1], [0, 1, 0], *threads, [0, 8, 0], [0, 16, 0]])


@gluon.constexpr_function
def _tile_bases(ALONG_TIME):
    """Offsets in a tile of (step, channel). Where elements lie ALONG_TIME a thread has a channel's eight,
    else two of each of four channels, and what eight threads write at once is spread by exclusive or.
    """
    if ALONG_TIME:
        return [(1, 0), (2, 0), (0, 2), (0, 4), (0, 8), (0, 1), (0, 16), (4, 0)]
    return [(1, 0), (2, 0), (0, 2), (0, 4), (0, 16), (0, 1), (0, 8 | 2 | 16), (4, 0)]


@gluon.constexpr_function
def scalars_slots(ALONG_TIME):
    """Numbers of a tile's elements, [steps, channels, 1]."""
    bases = [[step, channel, 0] for step, channel in _tile_bases(ALONG_TIME)]
    if ALONG_TIME:
        return gl.PaddedSharedLayout([[256, 4]], bases, [], [8, 32, 1])
    return gl.SharedLinearLayout(bases)


@gluon.constexpr_function
def half_shape(ALONG_TIME):
    """Of half a chunk: [steps of a thread, channels, runs of so many steps]."""
    return [8, 32, 4] if ALONG_TIME else [2, 32, 16]


@gluon.constexpr_function
def half_slots(ALONG_TIME):
    """The same numbers of half a chunk."""
    if ALONG_TIME:
        bases = [[step, channel, 0] for step, channel in _tile_bases(ALONG_TIME)]
        return gl.PaddedSharedLayout([[256, 4]], [*bases, [0, 0, 1], [0, 0, 2]], [], half_shape(ALONG_TIME))
    bases = [[step & 1, channel, step >> 1] for step, channel in _tile_bases(ALONG_TIME)]
    return gl.SharedLinearLayout([*bases, [0, 0, 4], [0, 0, 8]])


@gluon.constexpr_function
def elements_layout(ALONG_TIME):
    """Half a chunk outside of the recurrence: each element once."""
    if ALONG_TIME:
        registers = [[1, 0, 0], [2, 0, 0], [4, 0, 0]]
        threads = [[0, 0, 1], [0, 0, 2], [0, 8, 0], [0, 2, 0], [0, 4, 0]]
        return gl.DistributedLinearLayout(registers, threads, [[0, 1, 0], [0, 16, 0]], [], [8, 32, 4])
    registers = [[0, 1, 0], [0, 2, 0], [1, 0, 0]]
    threads = [[0, 4, 0], [0, 8, 0], [0, 16, 0], [0, 0, 1], [0, 0, 2]]
    return gl.DistributedLinearLayout(registers, threads, [[0, 0, 4], [0, 0, 8]], [], [2, 32, 16])


@gluon.constexpr_function
def words_layout(ALONG_TIME):
    """The same of words of two elements: two steps of a channel, or two channels at a step."""
    if ALONG_TIME:
        threads = [[0, 0, 1], [0, 0, 2], [0, 8, 0], [0, 2, 0], [0, 4, 0]]
        return gl.DistributedLinearLayout(
            [[1, 0, 0], [2, 0, 0]], threads, [[0, 1, 0], [0, 16, 0]], [], [4, 32, 4]
        )
    threads = [[0, 2, 0], [0, 4, 0], [0, 8, 0], [0, 0, 1], [0, 0, 2]]
    return gl.DistributedLinearLayout(
        [[0, 1, 0], [1, 0, 0]], threads, [[0, 0, 4], [0, 0, 8]], [], [2, 16, 16]
    )


@gluon.constexpr_function
def weights_slots():
    """B or C of a tile, [lanes, steps, rows]."""
    bases = [[0, 1, 0], [0, 2, 0], [1, 0, 0], [2, 0, 0], [4, 0, 0], [0, 0, 1], [0, 4, 0]]
    return gl.SharedLinearLayout(bases)


@gluon.constexpr_function
def half_weights_slots():
    """And of half a chunk, [lanes, steps, rows, tiles]."""
    bases = [[0, 1, 0, 0], [0, 2, 0, 0], [1, 0, 0, 0], [2, 0, 0, 0], [4, 0, 0, 0]]
    bases += [[0, 0, 1, 0], [0, 4, 0, 0], [0, 0, 0, 1], [0, 0, 0, 2]]
    return gl.SharedLinearLayout(bases)


@gluon.constexpr_function
def weights_layout():
    """The same where they are loaded."""
    threads = [[0, 4, 0, 0], [1, 0, 0, 0], [2, 0, 0, 0], [4, 0, 0, 0], [0, 0, 0, 1]]
    return gl.DistributedLinearLayout(
        [[0, 1, 0, 0], [0, 2, 0, 0]], threads, [[0, 0, 1, 0], [0, 0, 0, 2]], [], [8, 8, 2, 4]
    )


@gluon.constexpr_function
def terms_slots():
    """Terms of sums over channels, [lanes, steps, pairs of channels, rows]."""
    bases = [[0, 1, 0, 0], [0, 2, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0], [2, 0, 0, 0], [4, 0, 0, 0]]
    bases += [[0, 0, 2, 0], [0, 0, 4, 0], [0, 0, 8, 0], [0, 0, 0, 1], [0, 4, 0, 0]]
    return gl.SharedLinearLayout(bases)


@gluon.constexpr_function
def terms_layout():
    """Where they are added up: four pairs in a thread."""
    registers = [[0, 1, 0, 0], [0, 2, 0, 0], [0, 0, 4, 0], [0, 0, 8, 0]]
    threads = [[1, 0, 0, 0], [2, 0, 0, 0], [0, 0, 1, 0], [0, 0, 2, 0], [0, 4, 0, 0]]
    return gl.DistributedLinearLayout(registers, threads, [[4, 0, 0, 0], [0, 0, 0, 1]], [], [8, 8, 16, 2])


@gluon.constexpr_function
def fours_layout():
    """Sums of four pairs, [lanes, steps, 2, 2, rows], of which a thread has two to add up, of two steps."""
    threads = [[1, 0, 0, 0, 0], [2, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 4, 0, 0, 0]]
    return gl.DistributedLinearLayout(
        [[0, 0, 0, 1, 0], [0, 2, 0, 0, 0]], threads, [[4, 0, 0, 0, 0], [0, 0, 0, 0, 1]], [], [8, 8, 2, 2, 2]
    )


@gluon.constexpr_function
def eights_layout():
    """Sums of eight pairs, [lanes, steps, 2, rows], of which a thread has two to add up, of one step."""
    threads = [[1, 0, 0, 0], [2, 0, 0, 0], [0, 1, 0, 0], [0, 2, 0, 0], [0, 4, 0, 0]]
    return gl.DistributedLinearLayout([[0, 0, 1, 0]], threads, [[4, 0, 0, 0], [0, 0, 0, 1]], [], [8, 8, 2, 2])


@gluon.constexpr_function
def shares_slots():
    """The lanes' shares of sums over states, [lanes, steps, channels]."""
    bases = [[0, 1, 0], [0, 2, 0], [0, 0, 2], [1, 0, 0], [2, 0, 0], [4, 0, 0]]
    bases += [[1, 0, 4], [2, 0, 8], [0, 0, 1], [0, 0, 16], [0, 4, 0]]
    return gl.SharedLinearLayout(bases)


@gluon.constexpr_function
def shares_layout():
    """Where they are added up: all lanes in a thread, for two steps."""
    registers = [[0, 1, 0], [1, 0, 0], [2, 0, 0], [4, 0, 0]]
    threads = [[0, 0, 2], [0, 0, 4], [0, 0, 8], [0, 2, 0], [0, 0, 1]]
    return gl.DistributedLinearLayout(registers, threads, [[0, 0, 16], [0, 4, 0]], [], [8, 8, 32])
