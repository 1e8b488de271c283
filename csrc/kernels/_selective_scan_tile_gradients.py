"""A tile of the plain backward: its states from the first on, then its adjoints from the last on, and what
each thread has of the sums over states and over channels.
"""

# Triton has no starred tuples.
# ruff: noqa: RUF005

from _recurrence import (
    add,
    conjugate,
    exponential,
    multiply_conjugate,
    real_product,
    real_product_conjugate,
    scale,
    total,
    where,
)
from _selective_scan_runs import RUN, adjoints_of_run, states_of_run
from _selective_scan_slots import (
    load_parts,
    load_run,
    load_weights,
    over_channels,
    stacked,
    store_parts,
    whole,
)
from _selective_scan_tiles import store_sums
from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.jit
def allocate_slots(
    RUNS: gl.constexpr,
    TILES: gl.constexpr,
    ROWS: gl.constexpr,
    LANES: gl.constexpr,
    CHANNELS: gl.constexpr,
    COMPLEX: gl.constexpr,
    APART: gl.constexpr,
):
    """Shared memory: what tiles of a chunk take of channels and of B and C; each thread's shares of sums over
    states; these sums; terms of sums over channels, of B and of C, with APART not in one place; states that
    tiles begin with; of complex states gates of a chunk and terms of their gradient, in a place of others.
    """
    FLAT: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [2, 1, 0])
    ROWS_OF_RUNS: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    TERM: gl.constexpr = gl.SwizzledSharedLayout(RUN, 1, 8, [1, 0])
    PARTS: gl.constexpr = 2 if COMPLEX else 1
    TERMS: gl.constexpr = PARTS * RUNS * ROWS * LANES
    dt_slots = gl.allocate_shared_memory(gl.float32, [TILES * RUNS, CHANNELS, RUN], ROWS_OF_RUNS)
    dtx_slots = gl.allocate_shared_memory(gl.float32, [TILES * RUNS, CHANNELS, RUN], ROWS_OF_RUNS)
    dy_slots = gl.allocate_shared_memory(gl.float32, [TILES * RUNS, CHANNELS, RUN], ROWS_OF_RUNS)
    y_slots = gl.allocate_shared_memory(gl.float32, [TILES, RUNS, CHANNELS, RUN], FLAT)
    ddt_slots = gl.allocate_shared_memory(gl.float32, [TILES, RUNS, CHANNELS, RUN], FLAT)
    dkick_slots = gl.allocate_shared_memory(gl.float32, [TILES, RUNS, CHANNELS, RUN], FLAT)
    y_shares = gl.allocate_shared_memory(gl.float32, [RUNS, LANES, CHANNELS, RUN], FLAT)
    ddt_shares = gl.allocate_shared_memory(gl.float32, [RUNS, LANES, CHANNELS, RUN], FLAT)
    dkick_shares = gl.allocate_shared_memory(gl.float32, [RUNS, LANES, CHANNELS, RUN], FLAT)
    starts = gl.allocate_shared_memory(gl.float32, [TILES - 2, PARTS * ROWS, LANES, CHANNELS], FLAT)
    B_slots = gl.allocate_shared_memory(gl.float32, [TILES * RUNS, PARTS * ROWS, LANES, RUN], FLAT)
    C_slots = gl.allocate_shared_memory(gl.float32, [TILES * RUNS, PARTS * ROWS, LANES, RUN], FLAT)
    B_halves = gl.allocate_shared_memory(gl.float32, [2, TERMS // 2, CHANNELS * RUN], TERM)
    C_halves = B_halves
    if APART:
        C_halves = gl.allocate_shared_memory(gl.float32, [2, TERMS // 2, CHANNELS * RUN], TERM)
    B_terms = B_halves._reinterpret(gl.float32, [TERMS, CHANNELS * RUN], TERM)
    C_terms = C_halves._reinterpret(gl.float32, [TERMS, CHANNELS * RUN], TERM)
    GATES: gl.constexpr = [TILES * RUNS, ROWS, LANES, RUN]
    gates = (B_slots, B_slots)
    if COMPLEX:
        if APART:
            # With a gate nothing else is there.
            gate_slots = C_halves.index(1)._reinterpret(gl.float32, GATES, FLAT)
        else:
            gate_slots = gl.allocate_shared_memory(gl.float32, GATES, FLAT)
        gates = (gate_slots, C_halves.index(0))
    inputs = (dt_slots, dtx_slots, dy_slots, B_slots, C_slots)
    shares = (y_shares, ddt_shares, dkick_shares)
    sums = (y_slots, ddt_slots, dkick_slots)
    return inputs, shares, sums, (B_terms, C_terms), starts, gates


@gluon.jit
def terms_of(values):
    """[states, channels and steps of a run]: what is summed up over channels."""
    STATES: gl.constexpr = values.shape[0] * values.shape[1]
    return gl.reshape(values, [STATES, values.shape[2] * RUN])


@gluon.jit
def part_of(runs, part: gl.constexpr):
    """One part of each run's numbers."""
    parts = ()
    for k in gl.static_range(len(runs)):
        parts += (runs[k][part],)
    return parts


@gluon.jit
def store_terms(slots, runs, COMPLEX: gl.constexpr):
    """Terms of all runs, a row for each part, run and state, in this order."""
    PARTS: gl.constexpr = 2 if COMPLEX else 1
    SHAPE: gl.constexpr = [slots.shape[0] // PARTS, slots.shape[1]]
    terms = ()
    for part in gl.static_range(PARTS):
        terms += (gl.reshape(stacked(part_of(runs, part)), SHAPE),)
    store_parts(slots, terms, COMPLEX)


@gluon.jit
def states_of_tile(
    dt_slots,
    dtx_slots,
    dy_slots,
    B_slots,
    C_slots,
    tile,
    rates,
    h,
    RUNS: gl.constexpr,
    X: gl.constexpr,
    PACKED: gl.constexpr,
    COMPLEX: gl.constexpr,
):
    """From the state `h` before the tile: what the way back takes up again, which reads B alone once more;
    shares of y, of complex states of half of it, and terms of dC, of each run; the last state.
    """
    kept = ()
    shares = ()
    terms = ()
    for k in gl.static_range(RUNS):
        step_dt = load_run(dt_slots, tile * RUNS + k, X)
        step_dtx = load_run(dtx_slots, tile * RUNS + k, X)
        step_dy = load_run(dy_slots, tile * RUNS + k, X)
        b = load_weights(B_slots, tile * RUNS + k, X, COMPLEX)
        c = load_weights(C_slots, tile * RUNS + k, X, COMPLEX)
        a = exponential(step_dt, rates, COMPLEX)
        through, states, h = states_of_run(a, scale(b, step_dtx, COMPLEX), h, step_dt, PACKED, COMPLEX)
        if COMPLEX:
            # y is twice a real part.
            step_dy *= 2.0
        entering = scale(conjugate(c, COMPLEX), step_dy, COMPLEX)
        kept += ((a, through, entering, step_dt, step_dtx),)
        shares += (gl.sum(real_product(c, states, COMPLEX), 0),)
        of_run = scale(conjugate(states, COMPLEX), step_dy, COMPLEX)
        terms += ((terms_of(of_run[0]), terms_of(of_run[1])) if COMPLEX else (terms_of(of_run[0]),),)
    return kept, shares, terms, h


@gluon.jit
def adjoints_of_tile(
    kept,
    B_slots,
    tile,
    rate_x,
    mu,
    rate_sum,
    RUNS: gl.constexpr,
    X: gl.constexpr,
    PACKED: gl.constexpr,
    COMPLEX: gl.constexpr,
):
    """From the adjoint `mu` behind the tile: shares of the gradients of delta and of delta u and terms of dB,
    of each run; the adjoint before the tile, and `rate_sum` with what the tile adds to the gradient of A.
    """
    shares = ()
    kick_shares = ()
    terms = ()
    for k in gl.static_range(RUNS - 1, -1, -1):
        decay, passed, entering, step_dt, step_dtx = kept[k]
        adjoint, mu = adjoints_of_run(decay, entering, mu, step_dt, PACKED, COMPLEX)
        p = multiply_conjugate(adjoint, passed, COMPLEX)
        rate_sum = add(rate_sum, total(scale(p, step_dt, COMPLEX), 3, COMPLEX), COMPLEX)
        shares = (gl.sum(real_product_conjugate(p, rate_x, COMPLEX), 0),) + shares
        b = load_weights(B_slots, tile * RUNS + k, X, COMPLEX)
        kick_shares = (gl.sum(real_product_conjugate(adjoint, b, COMPLEX), 0),) + kick_shares
        of_run = scale(adjoint, step_dtx, COMPLEX)
        terms = ((terms_of(of_run[0]), terms_of(of_run[1])) if COMPLEX else (terms_of(of_run[0]),),) + terms
    return shares, kick_shares, terms, mu, rate_sum


@gluon.jit
def gradients_of_tile(
    slots,
    tile,
    states,
    carried,
    sums_at,
    further,
    LAYOUTS: gl.constexpr,
    KINDS: gl.constexpr,
    RESTARTS: gl.constexpr,
):
    """What a tile adds to sums over states, in `slots`, and over channels, in dB and dC. `states` are the one
    that the chunk begins with, and rates, times log2(e) and as they are; `carried` the state before the tile,
    the adjoint behind it and the sums of A's gradient; returned are those of the tile before. With RESTARTS
    sequences begin inside the tile; `further` blocks of states add to what is there.
    """
    PACKED: gl.constexpr = KINDS[0]
    COMPLEX: gl.constexpr = KINDS[1]
    APART: gl.constexpr = KINDS[2]
    inputs, shares, sums, terms, starts, _ = slots
    dt_slots, dtx_slots, dy_slots, B_slots, C_slots = inputs
    y_shares, ddt_shares, dkick_shares = shares
    y_slots, ddt_slots, dkick_slots = sums
    B_terms, C_terms = terms
    opened, rates, rate_x = states
    h, mu, rate_sum = carried
    dB, dC, to, own, inside, complete = sums_at
    if PACKED:
        s_time, tile_begin, first, stop = inside
        inside = own & (tile_begin + s_time >= first) & (tile_begin + s_time < stop)
    SHARES: gl.constexpr = LAYOUTS[0]
    SUMS: gl.constexpr = LAYOUTS[1]
    SUM: gl.constexpr = LAYOUTS[2]
    X: gl.constexpr = LAYOUTS[3]
    STATES: gl.constexpr = gl.SliceLayout(3, X)
    EACH: gl.constexpr = gl.SliceLayout(1, SHARES)
    RUNS: gl.constexpr = y_shares.shape[0]
    CHANNELS: gl.constexpr = y_shares.shape[2]
    kept, of_y, of_states, h = states_of_tile(
        dt_slots, dtx_slots, dy_slots, B_slots, C_slots, tile, rates, h, RUNS, X, RESTARTS, COMPLEX
    )
    whole(y_shares).store(stacked(of_y))
    store_terms(C_terms, of_states, COMPLEX)
    if not APART:
        store_sums(dC + to, over_channels(C_terms.load(SUMS), SUM), own, inside, complete, PACKED)

    of_ddt, of_dkick, of_kicks, mu, rate_sum = adjoints_of_tile(
        kept, B_slots, tile, rate_x, mu, rate_sum, RUNS, X, RESTARTS, COMPLEX
    )
    whole(ddt_shares).store(stacked(of_ddt))
    whole(dkick_shares).store(stacked(of_dkick))
    if APART:
        store_terms(B_terms, of_kicks, COMPLEX)
        y = whole(y_shares).load(SHARES)
        ddt = whole(ddt_shares).load(SHARES)
        dkick = whole(dkick_shares).load(SHARES)
        of_C = C_terms.load(SUMS)
        of_B = B_terms.load(SUMS)
        h = load_parts(starts.index(gl.maximum(tile - 2, 0)), STATES, COMPLEX)
        h = where(tile == 1, opened, h, COMPLEX)
        y = gl.sum(y, 1)
        ddt = gl.sum(ddt, 1)
        dkick = gl.sum(dkick, 1)
        if further:
            y += y_slots.index(tile).load(EACH)
            ddt += ddt_slots.index(tile).load(EACH)
            dkick += dkick_slots.index(tile).load(EACH)
        y_slots.index(tile).store(y)
        ddt_slots.index(tile).store(ddt)
        dkick_slots.index(tile).store(dkick)
        store_sums(dC + to, over_channels(of_C, SUM), own, inside, complete, PACKED)
        store_sums(dB + to, over_channels(of_B, SUM), own, inside, complete, PACKED)
    else:
        # Loads come before the stores that would hold them up.
        y = gl.zeros([RUNS, CHANNELS, RUN], gl.float32, EACH)
        ddt = y
        dkick = y
        if further:
            y = y_slots.index(tile).load(EACH)
            ddt = ddt_slots.index(tile).load(EACH)
            dkick = dkick_slots.index(tile).load(EACH)
        y_of_lanes = whole(y_shares).load(SHARES)
        ddt_of_lanes = whole(ddt_shares).load(SHARES)
        dkick_of_lanes = whole(dkick_shares).load(SHARES)
        store_terms(B_terms, of_kicks, COMPLEX)
        h = load_parts(starts.index(gl.maximum(tile - 2, 0)), STATES, COMPLEX)
        h = where(tile == 1, opened, h, COMPLEX)
        y_slots.index(tile).store(y + gl.sum(y_of_lanes, 1))
        ddt_slots.index(tile).store(ddt + gl.sum(ddt_of_lanes, 1))
        dkick_slots.index(tile).store(dkick + gl.sum(dkick_of_lanes, 1))
        store_sums(dB + to, over_channels(B_terms.load(SUMS), SUM), own, inside, complete, PACKED)
    return h, mu, rate_sum
