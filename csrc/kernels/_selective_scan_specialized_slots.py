"""What the way back of the specialised backward reads and writes in shared memory: of a tile the numbers of
its elements, B and C, the states that it begins with; terms of sums over channels, and shares of sums over
states.
"""

from _selective_scan_specialized_states import of_step
from _specialized_backward_layouts import CHANNELS, LANES, ROWS, TILES, starts_layout
from _specialized_layouts import PIECE
from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.jit
def slot_of(tile, parity):
    """Where a tile of a chunk lies: of the first half by turns in one of two places, of the second in a
    third.
    """
    return gl.where(tile < TILES, parity * TILES, TILES) + tile


@gluon.jit
def scalars_of(slots, p: gl.constexpr, X: gl.constexpr):
    """Of a tile's numbers of elements those of a piece."""
    return gl.expand_dims(slots.slice(p * PIECE, PIECE, 0).load(gl.SliceLayout(0, X)), 0)


@gluon.jit
def weights_of(slots, p: gl.constexpr, row: gl.constexpr, X: gl.constexpr):
    """Of a tile's B or C those of a piece and a row of states."""
    of_piece = slots.slice(p * PIECE, PIECE, 1).slice(row, 1, 2)
    return gl.expand_dims(of_piece.load(gl.SliceLayout(2, X)), 2)


@gluon.jit
def load_inputs(shared, slot, p: gl.constexpr, X: gl.constexpr):
    """delta, delta u and the rows of B of a piece."""
    dt_slots, dtx_slots, _ = shared[0]
    B_slots, _ = shared[1]
    B = ()
    for row in gl.static_range(ROWS):
        B += (weights_of(B_slots.index(slot), p, row, X),)
    return scalars_of(dt_slots.index(slot), p, X), scalars_of(dtx_slots.index(slot), p, X), B


@gluon.jit
def load_outputs(shared, slot, p: gl.constexpr, X: gl.constexpr):
    """The gradient of y and the rows of C of a piece."""
    _, C_slots = shared[1]
    C = ()
    for row in gl.static_range(ROWS):
        C += (weights_of(C_slots.index(slot), p, row, X),)
    return scalars_of(shared[0][2].index(slot), p, X), C


@gluon.jit
def load_start(slots, nothing, X: gl.constexpr):
    """The states that a tile begins with, as the recurrence takes them: as if a piece ended with them."""
    OF_STATES: gl.constexpr = gl.SliceLayout(2, gl.SliceLayout(1, X))
    states = ()
    for row in gl.static_range(ROWS):
        state = gl.split(slots.load(starts_layout()))[row]
        state = gl.convert_layout(state, OF_STATES, assert_trivial=True)
        states += (gl.broadcast(gl.expand_dims(gl.expand_dims(state, 2), 1), nothing)[0],)
    return states


@gluon.jit
def store_start(slots, states, X: gl.constexpr):
    both = gl.join(of_step(states[0], PIECE - 1, X), of_step(states[1], PIECE - 1, X))
    both = gl.reshape(both, [LANES, CHANNELS, ROWS])
    slots.store(gl.convert_layout(both, starts_layout(), assert_trivial=True))


@gluon.jit
def store_terms(slots, p: gl.constexpr, terms):
    """Terms of a piece, for each row of states, added up over the two channels of a thread."""
    for row in gl.static_range(ROWS):
        pairs = gl.sum(gl.reshape(terms[row], [LANES, PIECE, CHANNELS // 2, 2]), 3)
        of_piece = slots.slice(p * PIECE, PIECE, 1).slice(row, 1, 3)
        of_piece.store(gl.reshape(pairs, [LANES, PIECE, CHANNELS // 2, 1]))


@gluon.jit
def store_shares(slots, p: gl.constexpr, shares):
    slots.slice(p * PIECE, PIECE, 1).store(gl.reshape(shares, [LANES, PIECE, CHANNELS]))
