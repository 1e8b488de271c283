"""A tile of the plain backward: its states from the first on, then its adjoints from the last on, and what
each thread has of the sums over states and over channels.
"""

# Triton has no starred tuples.
# ruff: noqa: RUF005

from _arithmetic import exp2_fast
from _selective_scan_tiles import (
    RUN,
    adjoints_of_run,
    first_of,
    last_of,
    load_inputs,
    load_run,
    over_channels,
    stacked,
    states_of_run,
    store_sums,
    whole,
)
from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.jit
def allocate_slots(
    RUNS: gl.constexpr,
    TILES: gl.constexpr,
    ROWS: gl.constexpr,
    LANES: gl.constexpr,
    CHANNELS: gl.constexpr,
    APART: gl.constexpr,
):
    """Shared memory: what tiles of a chunk take of channels and of B and C; each thread's shares of sums over
    states; these sums; terms of sums over channels, of B and of C, with APART not in one place; states that
    tiles begin with.
    """
    FLAT: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [2, 1, 0])
    ROWS_OF_RUNS: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    TERM: gl.constexpr = gl.SwizzledSharedLayout(RUN, 1, 8, [1, 0])
    TERMS: gl.constexpr = RUNS * ROWS * LANES
    dt_slots = gl.allocate_shared_memory(gl.float32, [TILES * RUNS, CHANNELS, RUN], ROWS_OF_RUNS)
    dtx_slots = gl.allocate_shared_memory(gl.float32, [TILES * RUNS, CHANNELS, RUN], ROWS_OF_RUNS)
    dy_slots = gl.allocate_shared_memory(gl.float32, [TILES * RUNS, CHANNELS, RUN], ROWS_OF_RUNS)
    y_slots = gl.allocate_shared_memory(gl.float32, [TILES, RUNS, CHANNELS, RUN], FLAT)
    ddt_slots = gl.allocate_shared_memory(gl.float32, [TILES, RUNS, CHANNELS, RUN], FLAT)
    dkick_slots = gl.allocate_shared_memory(gl.float32, [TILES, RUNS, CHANNELS, RUN], FLAT)
    y_shares = gl.allocate_shared_memory(gl.float32, [RUNS, LANES, CHANNELS, RUN], FLAT)
    ddt_shares = gl.allocate_shared_memory(gl.float32, [RUNS, LANES, CHANNELS, RUN], FLAT)
    dkick_shares = gl.allocate_shared_memory(gl.float32, [RUNS, LANES, CHANNELS, RUN], FLAT)
    starts = gl.allocate_shared_memory(gl.float32, [TILES - 2, ROWS, LANES, CHANNELS], FLAT)
    B_slots = gl.allocate_shared_memory(gl.float32, [TILES * RUNS, ROWS, LANES, RUN], FLAT)
    C_slots = gl.allocate_shared_memory(gl.float32, [TILES * RUNS, ROWS, LANES, RUN], FLAT)
    B_terms = gl.allocate_shared_memory(gl.float32, [TERMS, CHANNELS * RUN], TERM)
    C_terms = gl.allocate_shared_memory(gl.float32, [TERMS, CHANNELS * RUN], TERM) if APART else B_terms
    inputs = (dt_slots, dtx_slots, dy_slots, B_slots, C_slots)
    shares = (y_shares, ddt_shares, dkick_shares)
    sums = (y_slots, ddt_slots, dkick_slots)
    return inputs, shares, sums, (B_terms, C_terms), starts


@gluon.jit
def of_states(slots, run, X: gl.constexpr):
    """B or C of a run."""
    return gl.expand_dims(slots.index(run).load(gl.SliceLayout(2, X)), 2)


@gluon.jit
def terms_of(values):
    """[states, channels and steps of a run]: what is summed up over channels."""
    STATES: gl.constexpr = values.shape[0] * values.shape[1]
    return gl.reshape(values, [STATES, values.shape[2] * RUN])


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
):
    """From the state `h` before the tile: what the way back takes up again, which reads B alone once more;
    shares of y and terms of dC, of each run; the last state.
    """
    kept = ()
    shares = ()
    terms = ()
    for k in gl.static_range(RUNS):
        step_dt = load_run(dt_slots, tile * RUNS + k, X)
        step_dtx = load_run(dtx_slots, tile * RUNS + k, X)
        step_dy = load_run(dy_slots, tile * RUNS + k, X)
        b = of_states(B_slots, tile * RUNS + k, X)
        c = of_states(C_slots, tile * RUNS + k, X)
        a = exp2_fast(step_dt * rates)
        through, states = states_of_run(a, b * step_dtx, h, step_dt, PACKED)
        h = gl.reduce(states, 3, last_of)
        kept += ((a, through, c * step_dy, step_dt, step_dtx),)
        shares += (gl.sum(c * states, 0),)
        terms += (terms_of(states * step_dy),)
    return kept, shares, terms, h


@gluon.jit
def adjoints_of_tile(
    kept, B_slots, tile, rate_x, mu, rate_sum, RUNS: gl.constexpr, X: gl.constexpr, PACKED: gl.constexpr
):
    """From the adjoint `mu` behind the tile: shares of the gradients of delta and of delta u and terms of dB,
    of each run; the adjoint before the tile, and `rate_sum` with what the tile adds to the gradient of A.
    """
    shares = ()
    kick_shares = ()
    terms = ()
    for k in gl.static_range(RUNS - 1, -1, -1):
        decay, passed, entering, step_dt, step_dtx = kept[k]
        adjoint, through = adjoints_of_run(decay, entering, mu, step_dt, PACKED)
        mu = gl.reduce(through, 3, first_of)
        p = adjoint * passed
        rate_sum += gl.sum(p * step_dt, 3)
        shares = (gl.sum(p * rate_x, 0),) + shares
        b = of_states(B_slots, tile * RUNS + k, X)
        kick_shares = (gl.sum(adjoint * b, 0),) + kick_shares
        terms = (terms_of(adjoint * step_dtx),) + terms
    return shares, kick_shares, terms, mu, rate_sum


@gluon.jit
def state_after_tile(
    inputs, ahead, tile, rates, h, RUNS: gl.constexpr, X: gl.constexpr, RESTARTS: gl.constexpr
):
    """The state behind a tile, from that before it, and what the next tile reads first."""
    dt_slots, dtx_slots, _, B_slots, _ = inputs
    for k in gl.static_range(RUNS):
        step_dt, step_dtx, b = ahead
        ahead = load_inputs(dt_slots, dtx_slots, B_slots, tile * RUNS + k + 1, X)
        _, states = states_of_run(exp2_fast(step_dt * rates), b * step_dtx, h, step_dt, RESTARTS)
        h = gl.reduce(states, 3, last_of)
    return h, ahead


@gluon.jit
def gradients_of_tile(
    slots,
    tile,
    states,
    carried,
    sums_at,
    further,
    LAYOUTS: gl.constexpr,
    RESTARTS: gl.constexpr,
    PACKED: gl.constexpr,
    APART: gl.constexpr,
):
    """What a tile adds to sums over states, in `slots`, and over channels, in dB and dC. `states` are the one
    that the chunk begins with, and rates, times log2(e) and as they are; `carried` the state before the tile,
    the adjoint behind it and the sums of A's gradient; returned are those of the tile before. With RESTARTS
    sequences begin inside the tile; `further` blocks of states add to what is there.
    """
    inputs, shares, sums, terms, starts = slots
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
        dt_slots, dtx_slots, dy_slots, B_slots, C_slots, tile, rates, h, RUNS, X, RESTARTS
    )
    whole(y_shares).store(stacked(of_y))
    C_terms.store(gl.reshape(stacked(of_states), [C_terms.shape[0], C_terms.shape[1]]))
    if not APART:
        store_sums(dC + to, over_channels(C_terms.load(SUMS), SUM), own, inside, complete, PACKED)

    of_ddt, of_dkick, of_kicks, mu, rate_sum = adjoints_of_tile(
        kept, B_slots, tile, rate_x, mu, rate_sum, RUNS, X, RESTARTS
    )
    whole(ddt_shares).store(stacked(of_ddt))
    whole(dkick_shares).store(stacked(of_dkick))
    if APART:
        B_terms.store(gl.reshape(stacked(of_kicks), [B_terms.shape[0], B_terms.shape[1]]))
        y = whole(y_shares).load(SHARES)
        ddt = whole(ddt_shares).load(SHARES)
        dkick = whole(dkick_shares).load(SHARES)
        of_C = C_terms.load(SUMS)
        of_B = B_terms.load(SUMS)
        h = starts.index(gl.maximum(tile - 2, 0)).load(STATES)
        h = gl.where(tile == 1, opened, h)
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
        B_terms.store(gl.reshape(stacked(of_kicks), [B_terms.shape[0], B_terms.shape[1]]))
        h = starts.index(gl.maximum(tile - 2, 0)).load(STATES)
        h = gl.where(tile == 1, opened, h)
        y_slots.index(tile).store(y + gl.sum(y_of_lanes, 1))
        ddt_slots.index(tile).store(ddt + gl.sum(ddt_of_lanes, 1))
        dkick_slots.index(tile).store(dkick + gl.sum(dkick_of_lanes, 1))
        store_sums(dB + to, over_channels(B_terms.load(SUMS), SUM), own, inside, complete, PACKED)
    return h, mu, rate_sum
