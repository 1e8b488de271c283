"""Sums of the specialised backward over a tile: over states in shared memory, where the gradients of elements
are made of them, and over channels in dB and dC.
"""

from _specialized_backward_layouts import (
    CHANNELS,
    LANES,
    ROWS,
    STEPS,
    eights_layout,
    fours_layout,
    shares_layout,
    terms_layout,
)
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier


@gluon.jit
def places_of_sums(row, row_length, N):
    """Of dB and dC [lanes, steps, rows]: offsets of a tile at the first step, which there are."""
    SUMS: gl.constexpr = gl.SliceLayout(2, eights_layout())
    lane = gl.arange(0, LANES, gl.SliceLayout(1, gl.SliceLayout(2, SUMS)))[:, None, None]
    step = gl.arange(0, STEPS, gl.SliceLayout(0, gl.SliceLayout(2, SUMS)))[None, :, None]
    state = lane + gl.arange(0, ROWS, gl.SliceLayout(0, gl.SliceLayout(1, SUMS)))[None, None, :] * LANES
    return (row + state) * row_length + step, state < N


@gluon.jit
def _over_channels(terms):
    """Of pairs of channels: four in a thread, then twice two threads', each of which goes on with half of the
    steps. [lanes, steps, rows] are left.
    """
    fours = gl.sum(gl.reshape(terms, [LANES, STEPS, 4, 2, 2, ROWS]), 2)
    eights = gl.sum(gl.convert_layout(fours, fours_layout()), 3)
    return gl.sum(gl.convert_layout(eights, eights_layout()), 2)


@gluon.jit
def _store_over_lanes(slots, shares):
    slots.store(gl.reshape(gl.sum(shares, 0), [STEPS, CHANNELS, 1]))


@gluon.jit
def add_up_tile(shared, sums, phase, slot, tile_begin):
    """What is known of a tile once its states are, for dC and y, then what once its adjoints are, for dB,
    delta and delta u. Sums over states take the place of what the way back has read: y of its gradient, and
    so on.
    """
    scalars, _, _, terms, shares, barriers = shared
    dt_slots, dtx_slots, dy_slots = scalars
    B_terms, C_terms = terms
    y_shares, ddt_shares, dkick_shares = shares
    _, _, C_full, C_empty, B_full, B_empty = barriers
    dB, dC, at, known = sums
    mbarrier.wait(C_full, phase)
    of_C = C_terms.load(terms_layout())
    of_y = y_shares.load(shares_layout())
    mbarrier.arrive(C_empty, count=1)
    gl.store(dC + (at + tile_begin), _over_channels(of_C), known)
    _store_over_lanes(dy_slots.index(slot), of_y)

    mbarrier.wait(B_full, phase)
    of_B = B_terms.load(terms_layout())
    of_dt = ddt_shares.load(shares_layout())
    of_kick = dkick_shares.load(shares_layout())
    mbarrier.arrive(B_empty, count=1)
    gl.store(dB + (at + tile_begin), _over_channels(of_B), known)
    _store_over_lanes(dt_slots.index(slot), of_dt)
    _store_over_lanes(dtx_slots.index(slot), of_kick)


@gluon.jit
def store_over_time(at, sums, slots):
    """Sums of threads [channels, runs], added up by way of slots that nobody needs any more."""
    RUNS: gl.constexpr = sums.shape[1]
    OF_CHANNEL: gl.constexpr = gl.BlockedLayout([1, RUNS], [32, 1], [4, 1], [1, 0])
    free = slots._reinterpret(gl.float32, [CHANNELS, RUNS], gl.SwizzledSharedLayout(1, 1, 1, [0, 1]))
    free.store(sums)
    channel = gl.arange(0, CHANNELS, gl.SliceLayout(1, OF_CHANNEL))
    gl.store(at + channel, gl.sum(free.load(OF_CHANNEL), 1))
