"""The way back of the specialised backward: the states that a chunk's tiles begin with; then, tile by tile
from the last on, its states, its adjoints, and each thread's part of sums over states and over channels.
"""

from _arithmetic import LOG2E, anew, exp2_fast
from _scan_operands import CHUNK, HAS_STATE, SPANS, SPANS_AT_ONCE
from _selective_scan_adjoint import entering_adjoint
from _selective_scan_runs import run_backward, run_forward
from _selective_scan_specialized_slots import (
    load_inputs,
    load_outputs,
    load_start,
    slot_of,
    store_shares,
    store_start,
    store_terms,
)
from _selective_scan_specialized_states import of_step, walked
from _specialized_backward_layouts import CHANNELS, LANES, ROWS, STEPS, TILES, states_layout
from _specialized_layouts import PIECE
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier


@gluon.jit
def _states4(a0, a1, a2, a3, k0, k1, k2, k3, _g0, _g1, _g2, g3):
    """run_forward() from the last state of the piece before."""
    return run_forward(a0, a1, a2, a3, k0, k1, k2, k3, g3, g3, g3, g3)


@gluon.jit
def places_of_row(row: gl.constexpr, sums_row, group, first_in_group, D, N, groups, X: gl.constexpr):
    """Where a row of each lane's states lies, [lanes, channels, 1], in buffers that have a state [states,
    channels] for each span and batch row; which there are. Made anew, for registers are few.
    """
    OF_STATES: gl.constexpr = gl.SliceLayout(2, gl.SliceLayout(1, X))
    in_block = gl.arange(0, CHANNELS, gl.SliceLayout(0, OF_STATES))[None, :, None]
    place = anew(gl.arange(0, LANES, gl.SliceLayout(1, OF_STATES))[:, None, None] * CHANNELS + in_block)
    state = place // CHANNELS + row * LANES
    in_group = first_in_group + place % CHANNELS
    at = (sums_row.to(gl.int64) * N + state) * D + (group * (D // groups) + in_group)
    return at, (in_group < D // groups) & (state < N)


@gluon.jit
def rate_and_adjoint(row: gl.constexpr, pointers, place, sizes, span, flags, X: gl.constexpr):
    """Of a row of each lane's states, [lanes, channels, 1]: A, and the adjoint that comes from behind."""
    A, _, carry, incoming, span_ends, span_times = pointers
    sums_row, batches, group, first_in_group = place
    D, L, N, groups, _ = sizes
    _, own_end, spans, pieces = span
    OF_STATES: gl.constexpr = gl.SliceLayout(2, gl.SliceLayout(1, X))
    in_group = first_in_group + gl.arange(0, CHANNELS, gl.SliceLayout(0, OF_STATES))[None, :, None]
    state = gl.arange(0, LANES, gl.SliceLayout(1, OF_STATES))[:, None, None] + row * LANES
    channel = group * (D // groups) + in_group
    known = (in_group < D // groups) & (state < N)
    state_size = N * D.to(gl.int64)
    at = channel.to(gl.int64) + state.to(gl.int64) * D
    rate = gl.load(A + channel.to(gl.int64) * N + state, known, 0.0)
    returning = (own_end < gl.cdiv(L, CHUNK)) | ((flags & HAS_STATE) != 0)
    adjoint = gl.load(carry + sums_row * state_size + at, known & returning, 0.0)
    if (flags & SPANS) != 0:
        # There are no gates: what is given for them is not read.
        (adjoint,) = entering_adjoint(
            incoming,
            span_ends,
            span_times,
            span_times,
            (rate,),
            at,
            channel,
            known,
            sums_row,
            batches,
            spans - 1,
            D,
            state_size,
            flags,
            False,
            pieces,
            SPANS_AT_ONCE,
        )
    return rate, adjoint


@gluon.jit
def walk_back(shared, pointers, place, sizes, span, flags, KEPT: gl.constexpr):
    """Through all chunks of a span, from the last on. Once a tile's states are known it hands over terms of
    dC and shares of y; once its adjoints are, terms of dB and shares of the gradients of delta and delta u.
    """
    _, _, starts, slots_of_terms, shares, barriers = shared
    B_terms, C_terms = slots_of_terms
    y_shares, ddt_shares, dkick_shares = shares
    first_ready, second_ready, C_full, C_empty, B_full, B_empty = barriers
    _, dA, carry, _, _, _ = pointers
    sums_row, _, group, first_in_group = place
    D, _, N, groups, _ = sizes
    own_begin, own_end, _, _ = span
    PIECES: gl.constexpr = STEPS // PIECE
    X: gl.constexpr = states_layout()
    nothing = gl.full([LANES, PIECE, CHANNELS, 1], 0.0, gl.float32, X)
    # Rates times log2(e); adjoints that come from behind, as if a piece began with them.
    rates = ()
    adjoints = ()
    rate_sums = ()
    for row in gl.static_range(ROWS):
        rate, behind = rate_and_adjoint(row, pointers, place, sizes, span, flags, X)
        rates += (gl.expand_dims(rate * LOG2E, 1),)
        adjoints += (gl.broadcast(gl.expand_dims(behind, 1), nothing)[0],)
        rate_sums += (gl.zeros_like(rate),)

    for passed in range(own_end - own_begin):
        parity = passed & 1
        mbarrier.wait(first_ready, parity)
        # The states that tiles begin with. What a piece takes is asked for while the one before is walked.
        states = load_start(starts.index(parity), nothing, X)
        ahead = load_inputs(shared, slot_of(0, parity), 0, X)
        for tile in range(2 * TILES - 1):
            for p in gl.static_range(PIECES):
                dt, dtx, B = ahead
                if p == 0:
                    ahead = load_inputs(shared, slot_of(tile, parity), 1, X)
                else:
                    if tile == TILES - 1:
                        mbarrier.wait(second_ready, parity)
                    ahead = load_inputs(shared, slot_of(tile + 1, parity), 0, X)
                onward = ()
                for row in gl.static_range(ROWS):
                    a = exp2_fast(dt * rates[row])
                    onward += (walked(a, B[row] * dtx, states[row]),)
                states = onward
            store_start(starts.index(tile + 2), states, X)

        for back in range(2 * TILES):
            tile = 2 * TILES - 1 - back
            slot = slot_of(tile, parity)
            phase = back & 1
            # Loads come well before the stores that would hold them up.
            inputs = (ahead, load_inputs(shared, slot, 1, X))
            outputs = (load_outputs(shared, slot, 0, X), load_outputs(shared, slot, 1, X))
            kept = ()
            for p in gl.static_range(PIECES):
                dt, dtx, B = inputs[p]
                dy, C = outputs[p]
                y = nothing
                onward = ()
                terms = ()
                for row in gl.static_range(ROWS):
                    a = exp2_fast(dt * rates[row])
                    through, h = gl.map_elementwise(_states4, a, B[row] * dtx, states[row], pack=4)
                    y = gl.fma(C[row], h, y) if row > 0 else C[row] * h
                    terms += (h * dy,)
                    kept += ((a, through, C[row] * dy),)
                    onward += (h,)
                states = onward
                if p == 0:
                    mbarrier.wait(C_empty, phase ^ 1)
                store_terms(C_terms, p, terms)
                store_shares(y_shares, p, y)
            mbarrier.arrive(C_full, count=1)

            before = gl.maximum(tile - 1, 0)
            of_piece = inputs[PIECES - 1] if KEPT else load_inputs(shared, slot, PIECES - 1, X)
            for p in gl.static_range(PIECES - 1, -1, -1):
                dt, dtx, B = of_piece
                ddt = nothing
                dkick = nothing
                onward = ()
                sums = ()
                terms = ()
                for row in gl.static_range(ROWS):
                    decay, through, entering = kept[p * ROWS + row]
                    adjoint, gone = gl.map_elementwise(run_backward, decay, entering, adjoints[row], pack=4)
                    onward += (gone,)
                    to_decay = adjoint * through
                    sums += (rate_sums[row] + gl.sum(to_decay * dt, 1),)
                    b = gl.broadcast(B[row], adjoint)[0]
                    power = gl.broadcast(rates[row], adjoint)[0]
                    ddt = gl.fma(to_decay, power, ddt) if row > 0 else to_decay * power
                    dkick = gl.fma(adjoint, b, dkick) if row > 0 else adjoint * b
                    terms += (adjoint * dtx,)
                adjoints = onward
                rate_sums = sums
                if p > 0:
                    of_piece = load_inputs(shared, slot, p - 1, X)
                    mbarrier.wait(B_empty, phase ^ 1)
                else:
                    # The next tile's, for which registers are free from here on.
                    states = load_start(starts.index(gl.where(before == 0, parity, before + 1)), nothing, X)
                    ahead = load_inputs(shared, slot_of(before, parity), 0, X)
                store_terms(B_terms, p, terms)
                store_shares(ddt_shares, p, ddt)
                store_shares(dkick_shares, p, dkick)
            mbarrier.arrive(B_full, count=1)

    for row in gl.static_range(ROWS):
        at, known = places_of_row(row, anew(sums_row.to(gl.int32)), group, first_in_group, D, N, groups, X)
        gl.store(carry + at, of_step(adjoints[row], 0, X), known)
        gl.store(dA + at, rate_sums[row], known)
