"""A tile of the plain forward: the copies of B and C that it reads, and its states, run by run."""

from _arithmetic import exp2_fast, polar
from _recurrence import reversed_steps, scale, where
from _selective_scan_sequences import after, shift_of
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy


@gluon.jit
def onward(a, h, kick, COMPLEX: gl.constexpr):
    """a h + kick, of which each part ends in a fused multiply-add."""
    if COMPLEX:
        real = gl.fma(a[0], h[0], gl.fma(-a[1], h[1], kick[0]))
        return (real, gl.fma(a[0], h[1], gl.fma(a[1], h[0], kick[1])))
    else:
        return (gl.fma(a[0], h[0], kick[0]),)


@gluon.jit
def follow(a_left, b_left, a_right, b_right):
    """Two steps of h -> a h + b as one, such that a step of the chain is one fused multiply-add."""
    return a_left * a_right, onward((a_right,), (b_left,), (b_right,), False)[0]


@gluon.jit
def follow_in_sequence(a_left, b_left, a_right, b_right):
    """The same where a step with a = 0 forgets what was before it, whatever that is."""
    return a_left * a_right, after(a_right, b_left, b_right)


@gluon.jit
def follow_complex(ar, ai, br, bi, cr, ci, dr, di):
    """follow() of a = ar + i ai, b = br + i bi, then c, d. Nobody asks for the product of a and c."""
    h = onward((cr, ci), (br, bi), (dr, di), True)
    return ar, ai, h[0], h[1]


@gluon.jit
def walk(a, kick, PACKED: gl.constexpr, COMPLEX: gl.constexpr):
    """The states of a run, from 0."""
    gl.static_assert(not (PACKED and COMPLEX), "packed sequences of complex states take the general kernels")
    if COMPLEX:
        h = gl.associative_scan((a[0], a[1], kick[0], kick[1]), 1, follow_complex)
        return (h[2], h[3])
    elif PACKED:
        return (gl.associative_scan((a[0], kick[0]), 1, follow_in_sequence)[1],)
    else:
        return (gl.associative_scan((a[0], kick[0]), 1, follow)[1],)


@gluon.jit
def decays_of(dt, rate, PACKED: gl.constexpr, COMPLEX: gl.constexpr):
    """exp(dt A), of a packed sequence's first step 0; `rate` is A in the units of scaled_rates()."""
    exponent = dt * gl.expand_dims(rate[0], 1)
    if PACKED:
        exponent += shift_of(dt)
    magnitude = exp2_fast(exponent)
    if COMPLEX:
        return polar(magnitude, dt, gl.expand_dims(rate[1], 1), gl.expand_dims(rate[2], 1))
    else:
        return (magnitude,)


@gluon.jit
def fetch_rows(
    slots, rows, begin_state, start, N, L, padded_length, COMPLEX: gl.constexpr, ENDS: gl.constexpr
):
    """Ask for B and C of a block of states in a tile, or for nothing past the end. `rows` are the two,
    offsets in them, and states.
    """
    B_slots, C_slots = slots
    B, C, weights, state = rows
    at = weights + (begin_state * (padded_length * (2 if COMPLEX else 1)) + start)
    any_row = (state < N - begin_state) & (start < L)
    async_copy.async_copy_global_to_shared(B_slots, B + at, any_row)
    if not ENDS:
        async_copy.async_copy_global_to_shared(C_slots, C + at, any_row)
    async_copy.commit_group()


@gluon.jit
def following(begin_state, start, N, STATES: gl.constexpr, STEPS: gl.constexpr):
    """The block of states, and its tile, that comes next."""
    more = begin_state + STATES < N
    return gl.where(more, begin_state + STATES, 0), gl.where(more, start, start + STEPS)


@gluon.jit
def scalars_of(dt_slots, dtx_slots, s: gl.constexpr, LAYOUT: gl.constexpr):
    """delta and delta u of a run."""
    dt = dt_slots.slice(s, 1, 2).load(LAYOUT)
    dtx = dtx_slots.slice(s, 1, 2).load(LAYOUT)
    return gl.expand_dims(dt, 0), gl.expand_dims(dtx, 0)


@gluon.jit
def row_of(slots, j: gl.constexpr, s: gl.constexpr, ROWS, RUNS: gl.constexpr, LAYOUT: gl.constexpr, COMPLEX):
    """B or C of a run, for the j-th of a thread's states."""
    real = gl.expand_dims(slots.slice(j * RUNS + s, 1, 2).load(LAYOUT), 2)
    if COMPLEX:
        return (real, gl.expand_dims(slots.slice((ROWS + j) * RUNS + s, 1, 2).load(LAYOUT), 2))
    else:
        return (real,)


@gluon.jit
def rows_of(
    B_slots,
    C_slots,
    s: gl.constexpr,
    ROWS: gl.constexpr,
    RUNS: gl.constexpr,
    LAYOUT: gl.constexpr,
    COMPLEX: gl.constexpr,
    ENDS: gl.constexpr,
):
    """B and C of a run, by turns, for each of a thread's states."""
    rows = ()
    for j in gl.static_range(ROWS):
        rows += (row_of(B_slots, j, s, ROWS, RUNS, LAYOUT, COMPLEX),)
        if not ENDS:
            rows += (row_of(C_slots, j, s, ROWS, RUNS, LAYOUT, COMPLEX),)
    return rows


@gluon.jit
def weighted(c, h, share, ADD: gl.constexpr, COMPLEX: gl.constexpr):
    """Re(c h), added to `share` if there is one."""
    share = gl.fma(c[0], h[0], share) if ADD else c[0] * h[0]
    return gl.fma(-c[1], h[1], share) if COMPLEX else share


@gluon.jit
def states_of_tile(
    slots,
    rates,
    states,
    first_step,
    nothing,
    ROWS: gl.constexpr,
    RUNS: gl.constexpr,
    X: gl.constexpr,
    COMPLEX: gl.constexpr,
    ENDS: gl.constexpr,
    PACKED: gl.constexpr,
    PREFETCH: gl.constexpr,
):
    """A thread's states in the last run, from those in the run before the tile, of which the last step goes
    on. The lanes' shares of y, of complex states of half of it, go into `y_slots`; with ENDS there are none.
    """
    dt_slots, dtx_slots, B_slots, C_slots, y_slots = slots
    SCALARS: gl.constexpr = gl.SliceLayout(0, X)
    WEIGHTS: gl.constexpr = gl.SliceLayout(2, X)
    ahead = scalars_of(dt_slots, dtx_slots, 0, SCALARS)
    rows_ahead = rows_of(B_slots, C_slots, 0, ROWS, RUNS, WEIGHTS, COMPLEX, ENDS)
    for s in gl.static_range(RUNS):
        dt_run, dtx_run = ahead
        rows_run = rows_ahead
        if s + 1 < RUNS:
            ahead = scalars_of(dt_slots, dtx_slots, s + 1, SCALARS)
            if PREFETCH:
                rows_ahead = rows_of(B_slots, C_slots, s + 1, ROWS, RUNS, WEIGHTS, COMPLEX, ENDS)
        share = nothing
        through = ()
        for j in gl.static_range(ROWS):
            b = rows_run[j if ENDS else 2 * j]
            a = decays_of(dt_run, rates[j], PACKED, COMPLEX)
            kick = scale(b, dtx_run, COMPLEX)
            entered = reversed_steps(states[j], COMPLEX)
            opened = (after(a[0], entered[0], kick[0]),) if PACKED else onward(a, entered, kick, COMPLEX)
            run = walk(a, where(first_step, opened, kick, COMPLEX), PACKED, COMPLEX)
            through += (run,)
            if not ENDS:
                c = rows_run[2 * j + 1]
                share = weighted(c, run, share, j > 0, COMPLEX)
        states = through
        if not ENDS:
            y_slots.slice(s, 1, 3).store(share)
        if s + 1 < RUNS and not PREFETCH:
            rows_ahead = rows_of(B_slots, C_slots, s + 1, ROWS, RUNS, WEIGHTS, COMPLEX, ENDS)
    return states
