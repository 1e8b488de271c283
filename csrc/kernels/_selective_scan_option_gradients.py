"""A tile of the plain backward, of complex states with a gate or under zero-order hold.

Most of what the way back takes is made again there, for registers are few. Without a hold phi is 1, and delta
u stands where u does with it.
"""

# Triton has no starred tuples.
# ruff: noqa: RUF005

from _arithmetic import anew
from _recurrence import (
    add,
    conjugate,
    multiply,
    multiply_conjugate,
    real_product,
    real_product_conjugate,
    scale,
    total,
    where,
)
from _scan_operands import HAS_GATE
from _selective_scan_complex_runs import complex_adjoints_of_run, complex_states_onward, gated_states_of_run
from _selective_scan_runs import RUN, first_of, last_of
from _selective_scan_slots import (
    load_inputs,
    load_parts,
    load_run,
    load_weights,
    over_channels,
    stacked,
    store_parts,
    whole,
)
from _selective_scan_tile_gradients import terms_of
from _selective_scan_tiles import sums_layouts
from _zero_order_hold import decay_and_difference, decay_and_slope, held_input, held_inverse, held_kick
from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.jit
def hidden(x):
    """anew() of numbers."""
    return anew(x.to(gl.int32, bitcast=True)).to(gl.float32, bitcast=True)


@gluon.jit
def once(tile):
    """1, which no compiler knows. What a loop of so many rounds adds up it adds up in there: sums that
    nothing waits for would be put off, and their terms would need more registers than there are.
    """
    return anew(tile) - tile + 1


@gluon.jit
def expanded(x):
    """Of states, as a run takes it."""
    return (gl.expand_dims(x[0], 3), gl.expand_dims(x[1], 3))


@gluon.jit
def load_gated_inputs(slots, run, X: gl.constexpr):
    """load_inputs() of complex states, and the gate."""
    dt_slots, dtx_slots, B_slots, gate_slots = slots
    dt, x, b = load_inputs(dt_slots, dtx_slots, B_slots, run, X, True)
    return dt, x, b, load_weights(gate_slots, run, X, False)[0]


@gluon.jit
def first_states_with_options(
    slots, gate_slots, starts, rates, held, h, TILES: gl.constexpr, X: gl.constexpr
):
    """The states that tiles begin with go into `starts`, but for the first one's and the last one's, which is
    returned. `held` are the rates' inverses and held_input()'s `unheld`.
    """
    dt_slots, dtx_slots, _, B_slots, _ = slots
    inputs = (dt_slots, dtx_slots, B_slots, gate_slots)
    inverse, unheld = held
    RUNS: gl.constexpr = dt_slots.shape[0] // TILES
    for i in range(0, TILES - 1):
        t = anew(i)
        store_parts(starts.index(gl.maximum(t - 1, 0)), h, True)
        for k in gl.static_range(RUNS):
            dt, x, b, gate = load_gated_inputs(inputs, t * RUNS + k, X)
            e, difference = decay_and_difference(dt, rates)
            kick = held_kick(difference, inverse, unheld, b, x)
            states = complex_states_onward(scale(e, gate, True), kick, expanded(h))
            h = (gl.reduce(states[0], 3, last_of), gl.reduce(states[1], 3, last_of))
    return h


@gluon.jit
def store_run(slots, run, terms, COMPLEX: gl.constexpr):
    """A run's terms of sums over channels, where store_terms() has them."""
    PARTS: gl.constexpr = 2 if COMPLEX else 1
    STATES: gl.constexpr = terms[0].shape[0] * terms[0].shape[1]
    OF_PART: gl.constexpr = slots.shape[0] // PARTS
    for part in gl.static_range(PARTS):
        slots.slice(part * OF_PART + run * STATES, STATES, 0).store(terms_of(terms[part]))


@gluon.jit
def states_with_options(
    slots,
    shares,
    term_slots,
    tile,
    rates,
    rate_x,
    held,
    h,
    RUNS: gl.constexpr,
    X: gl.constexpr,
):
    """From the state `h` before the tile: what each run begins with; of the last one, where the way back
    begins, decay_and_slope() and what decays leave of the states before, without the gate; the last state.
    Shares of half of y go into `shares`, terms of dC into `term_slots`.
    """
    dt_slots, dtx_slots, dy_slots, B_slots, C_slots, gate_slots = slots
    inputs = (dt_slots, dtx_slots, B_slots, gate_slots)
    inverse, unheld = held
    kept = ()
    for k in gl.static_range(RUNS):
        dt, x, b, gate = load_gated_inputs(inputs, tile * RUNS + k, X)
        if k + 1 < RUNS:
            e, difference = decay_and_difference(dt, rates)
        else:
            zero = gl.zeros_like(b[0] + dt)
            e = (zero, zero)
            difference = e
            slope = e
            for _ in range(0, once(tile)):
                e, difference, slope = decay_and_slope(hidden(dt), rates, rate_x)
        kick = held_kick(difference, inverse, unheld, b, x)
        kept += (h,)
        left, states = gated_states_of_run(e, gate, kick, expanded(h))
        if k + 1 == RUNS:
            last = (e, difference, slope, left)
        h = (gl.reduce(states[0], 3, last_of), gl.reduce(states[1], 3, last_of))
        c = load_weights(C_slots, tile * RUNS + k, X, True)
        shares.index(k).store(gl.sum(real_product(c, states, True), 0))
        dy = 2.0 * load_run(dy_slots, tile * RUNS + k, X)
        store_run(term_slots, k, scale(conjugate(states, True), dy, True), True)
    return kept, last, h


@gluon.jit
def adjoints_with_options(
    kept,
    last,
    slots,
    shares,
    term_slots,
    tile,
    rates,
    rate_x,
    held,
    mu,
    rate_sum,
    RUNS: gl.constexpr,
    X: gl.constexpr,
    APART: gl.constexpr,
):
    """From the adjoint `mu` behind the tile: the adjoint before it, and `rate_sum` with what the tile adds to
    the gradient of A; of each run terms of the gate's gradient, where these have no place of their own.
    Shares of the gradients of delta and of phi's input go into `shares`, terms of dB into `term_slots`.
    """
    dt_slots, dtx_slots, dy_slots, B_slots, C_slots, gate_slots = slots
    inputs = (dt_slots, dtx_slots, B_slots, gate_slots)
    ddt_shares, dkick_shares, gate_terms_slots = shares
    inverse, unheld = held
    gate_terms = ()
    zero = gl.zeros_like(rate_sum[0])
    slope_sum = (zero, zero)
    for k in gl.static_range(RUNS - 1, -1, -1):
        of_gate = last[0][0]
        for _ in range(0, once(tile)):
            dt, x, b, gate = load_gated_inputs(inputs, tile * RUNS + k, X)
            c = load_weights(C_slots, tile * RUNS + k, X, True)
            dy = 2.0 * load_run(dy_slots, tile * RUNS + k, X)
            if k + 1 < RUNS:
                e, difference, slope = decay_and_slope(dt, rates, rate_x)
                kick = held_kick(difference, inverse, unheld, b, x)
                left = gated_states_of_run(e, gate, kick, expanded(kept[k]))[0]
            else:
                e, difference, slope, left = last
            entering = scale(conjugate(c, True), dy, True)
            adjoint, mu = complex_adjoints_of_run(scale(e, gate, True), entering, expanded(mu))
            mu = (gl.reduce(mu[0], 3, first_of), gl.reduce(mu[1], 3, first_of))
            p = multiply_conjugate(adjoint, left, True)
            if APART:
                store_run(gate_terms_slots, k, (p[0],), False)
            else:
                of_gate = p[0]
            p = scale(p, gate, True)
            rate_sum = add(rate_sum, total(scale(p, dt, True), 3, True), True)
            share = gl.sum(real_product_conjugate(p, rate_x, True), 0)
            into = multiply_conjugate(adjoint, b, True)
            of_hold = gl.where(unheld > 0.0, 0.0, gl.reduce(x, 0, first_of))
            share += of_hold * gl.sum(real_product_conjugate(into, e, True), 0)
            ddt_shares.index(k).store(share)
            into = multiply_conjugate(scale(into, x, True), slope, True)
            slope_sum = add(slope_sum, total(into, 3, True), True)
            of_phi = multiply_conjugate(adjoint, held_input(difference, inverse, unheld), True)
            dkick_shares.index(k).store(gl.sum(real_product_conjugate(of_phi, b, True), 0))
            store_run(term_slots, k, scale(of_phi, x, True), True)
        gate_terms = (terms_of(of_gate),) + gate_terms
    inverse = (gl.reduce(inverse[0], 3, first_of), gl.reduce(inverse[1], 3, first_of))
    of_slopes = multiply_conjugate(slope_sum, multiply(inverse, inverse, True), True)
    return gate_terms, mu, add(rate_sum, of_slopes, True)


@gluon.jit
def store_gate_sums(slots, gate_terms, gate_at, APART: gl.constexpr):
    """The gradient of the gate, as far as these channels go: sums of terms [runs and states, steps], which
    are in `slots` already if they are APART. `gate_at` are where its planes have the tile, their length, and
    how many states there are.
    """
    to, partial_length, states = gate_at
    ROWS: gl.constexpr = slots.shape[0]
    STATES: gl.constexpr = ROWS // len(gate_terms)
    LAYOUTS: gl.constexpr = sums_layouts(ROWS, slots.shape[1] // RUN, gl.num_warps())
    SUM: gl.constexpr = LAYOUTS[1]
    if not APART:
        slots.store(gl.reshape(stacked(gate_terms), slots.shape))
    sums = over_channels(slots.load(LAYOUTS[0]), SUM)
    term = anew(gl.arange(0, ROWS, gl.SliceLayout(1, SUM)))
    step = gl.arange(0, RUN, gl.SliceLayout(0, SUM))
    at = (term % STATES).to(gl.int64) * partial_length + term // STATES * RUN
    gl.store(to + (at[:, None] + step[None, :]), sums, (term % STATES < states)[:, None])


@gluon.jit
def gradients_with_options(
    slots,
    tile,
    states,
    zoh,
    carried,
    sums_at,
    gate_at,
    further,
    flags,
    LAYOUTS: gl.constexpr,
    APART: gl.constexpr,
):
    """gradients_of_tile() with a gate or under zero-order hold, and what the tile adds to the gradient of the
    gate.
    """
    inputs, shares, sums, terms, starts, gates = slots
    gate_slots, gate_terms_slots = gates
    y_shares, ddt_shares, dkick_shares = shares
    y_slots, ddt_slots, dkick_slots = sums
    term_slots = terms[0]
    opened, rates, rate = states
    # Made anew, or what is made of it would be kept from before the loop over tiles on.
    rate = (hidden(rate[0]), hidden(rate[1]))
    rate_x = expanded(rate)
    held = (expanded(held_inverse(rate, zoh)), gl.where(zoh, 0.0, 1.0))
    h, mu, rate_sum = carried
    dB, dC, to, own = sums_at
    SHARES: gl.constexpr = LAYOUTS[0]
    SUMS: gl.constexpr = LAYOUTS[1]
    SUM: gl.constexpr = LAYOUTS[2]
    X: gl.constexpr = LAYOUTS[3]
    EACH: gl.constexpr = gl.SliceLayout(1, SHARES)
    RUNS: gl.constexpr = y_shares.shape[0]
    CHANNELS: gl.constexpr = y_shares.shape[2]
    inputs += (gate_slots,)
    kept, last, h = states_with_options(inputs, y_shares, term_slots, tile, rates, rate_x, held, h, RUNS, X)
    gl.store(dC + to, over_channels(term_slots.load(SUMS), SUM), own)
    gate_terms, mu, rate_sum = adjoints_with_options(
        kept,
        last,
        inputs,
        (ddt_shares, dkick_shares, gate_terms_slots),
        term_slots,
        tile,
        rates,
        rate_x,
        held,
        mu,
        rate_sum,
        RUNS,
        X,
        APART,
    )
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
    h = load_parts(starts.index(gl.maximum(tile - 2, 0)), gl.SliceLayout(3, X), True)
    h = where(tile == 1, opened, h, True)
    y_slots.index(tile).store(y + gl.sum(y_of_lanes, 1))
    ddt_slots.index(tile).store(ddt + gl.sum(ddt_of_lanes, 1))
    dkick_slots.index(tile).store(dkick + gl.sum(dkick_of_lanes, 1))
    gl.store(dB + to, over_channels(term_slots.load(SUMS), SUM), own)
    if (flags & HAS_GATE) != 0:
        store_gate_sums(gate_terms_slots, gate_terms, gate_at, APART)
    return h, mu, rate_sum
