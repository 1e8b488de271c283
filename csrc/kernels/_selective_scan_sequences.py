"""How the plain scan kernels take packed sequences.

By cu_seqlens a program has one sequence, or a span of it, by seq_idx a row of them, one after the other, or a
span of that. Where a sequence of a row begins, the last bit of the step's delta is set, that of all others is
clear, and nothing comes over from the sequence beside it, even if that is no number. Padding has steps of
length 0, like all that lies outside of a program's sequences.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

# The length of a span in which a sequence begins: nothing passes through it.
FORGOTTEN = gl.constexpr(float("inf"))


@gluon.jit
def load_entries(runs, row, at, L, by_index):
    """Where the sequences of steps `at` of a batch row begin, negative for padding; by ends, all 0."""
    return gl.load(runs + (row * L + at), by_index & (at < L), 0)


@gluon.jit
def begins_with_sequence(runs, row, L, by_index):
    """Whether a batch row begins with a sequence, which then begins with the initial state."""
    return gl.load(runs + row * L, by_index, 0) >= 0


@gluon.jit
def load_last_entry(runs, row, begin, count, L, by_index):
    """load_entries() of the last of some steps, padding's where there is none; to be asked for early."""
    last = gl.minimum(begin + count, L) - 1
    return gl.load(runs + (row * L + last), by_index & (begin >= 0) & (last >= begin), -1)


@gluon.jit
def in_one_sequence(entry, begin, count, first, stop, by_index):
    """Whether steps [begin, begin + count), the last one's entry given, belong to one sequence, which goes on
    from before or begins the row: none of them needs a mask.
    """
    going_on = (entry >= 0) & ((entry < begin) | (entry == 0))
    return gl.where(by_index, going_on, (begin >= first) & (begin + count <= stop))


@gluon.jit
def load_tile_entries(runs, row, begin, TILES: gl.constexpr, STEPS: gl.constexpr, L, by_index):
    """load_entries() of the last steps of a chunk's tiles, one a lane."""
    tile = gl.arange(0, TILES, gl.BlockedLayout([1], [32], [gl.num_warps()], [0]))
    first = begin + tile * STEPS
    last = gl.minimum(first + STEPS, L) - 1
    return gl.load(runs + (row * L + last), by_index & (first >= 0) & (last >= first), 0)


@gluon.jit
def tiles_in_one_sequence(entries, begin, STEPS: gl.constexpr):
    """Of each tile of a chunk, a bit that says that none of its steps begins a sequence or is padding."""
    tile = gl.arange(0, entries.shape[0], entries.type.layout)
    going_on = (entries >= 0) & ((entries < begin + tile * STEPS) | (entries == 0))
    return gl.sum(going_on.to(gl.int32) << tile, 0)


@gluon.jit
def of_sequence(entry, at, first, stop):
    """Which steps belong to a program's sequences, and which of them begin one but the first of a row."""
    live = (at >= first) & (at < stop) & (entry >= 0)
    return live, live & (entry == at) & (at > 0)


@gluon.jit
def unmarked(dt):
    """delta whose last bit is clear."""
    return (dt.to(gl.int32, bitcast=True) & -2).to(gl.float32, bitcast=True)


@gluon.jit
def marked(dt, fresh):
    """An unmarked delta whose last bit says which steps begin a sequence."""
    return (dt.to(gl.int32, bitcast=True) | fresh.to(gl.int32)).to(gl.float32, bitcast=True)


@gluon.jit
def goes_on(dt):
    """Of each step, whether its sequence goes on from the step before."""
    return (dt.to(gl.int32, bitcast=True) & 1) == 0


@gluon.jit
def shift_of(dt):
    """What to add to exponents of 2 such that the powers of marked steps, if they are numbers, are 0."""
    return gl.where(goes_on(dt), 0.0, -1e30)


@gluon.jit
def after(a, h, kick):
    """a h + kick, or kick alone where a is 0."""
    return gl.where(a != 0.0, gl.fma(a, h, kick), kick)
