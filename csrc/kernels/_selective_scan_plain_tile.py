"""A tile of the plain forward: the copies of B and C that it reads, and its states, run by run."""

from _arithmetic import exp2_fast
from _registers import reverse
from _selective_scan_sequences import after, shift_of
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy


@gluon.jit
def follow(a_left, b_left, a_right, b_right):
    """Two steps of h -> a h + b as one, such that a step of the chain is one fused multiply-add."""
    return a_left * a_right, gl.fma(a_right, b_left, b_right)


@gluon.jit
def follow_in_sequence(a_left, b_left, a_right, b_right):
    """The same where a step with a = 0 forgets what was before it, whatever that is."""
    return a_left * a_right, after(a_right, b_left, b_right)


@gluon.jit
def fetch_rows(
    B_slots, C_slots, B, C, weights, state, begin_state, start, N, L, padded_length, ENDS: gl.constexpr
):
    """Ask for B and C of a block of states in a tile, or for nothing past the end."""
    at = weights + (begin_state * padded_length + start)
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
def rows_of(
    B_slots,
    C_slots,
    s: gl.constexpr,
    ROWS: gl.constexpr,
    RUNS: gl.constexpr,
    LAYOUT: gl.constexpr,
    ENDS: gl.constexpr,
):
    """B and C of a run, by turns, for each of a thread's states."""
    rows = ()
    for j in gl.static_range(ROWS):
        rows += (gl.expand_dims(B_slots.slice(j * RUNS + s, 1, 2).load(LAYOUT), 2),)
        if not ENDS:
            rows += (gl.expand_dims(C_slots.slice(j * RUNS + s, 1, 2).load(LAYOUT), 2),)
    return rows


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
    ENDS: gl.constexpr,
    PACKED: gl.constexpr,
    PREFETCH: gl.constexpr,
):
    """A thread's states in the last run, from those in the run before the tile, of which the last step goes
    on. The lanes' shares of y go into `y_slots`; with ENDS there are none.
    """
    dt_slots, dtx_slots, B_slots, C_slots, y_slots = slots
    SCALARS: gl.constexpr = gl.SliceLayout(0, X)
    WEIGHTS: gl.constexpr = gl.SliceLayout(2, X)
    ahead = scalars_of(dt_slots, dtx_slots, 0, SCALARS)
    rows_ahead = rows_of(B_slots, C_slots, 0, ROWS, RUNS, WEIGHTS, ENDS)
    for s in gl.static_range(RUNS):
        dt_run, dtx_run = ahead
        rows_run = rows_ahead
        if PACKED:
            shift = shift_of(dt_run)
        if s + 1 < RUNS:
            ahead = scalars_of(dt_slots, dtx_slots, s + 1, SCALARS)
            if PREFETCH:
                rows_ahead = rows_of(B_slots, C_slots, s + 1, ROWS, RUNS, WEIGHTS, ENDS)
        share = nothing
        through = ()
        for j in gl.static_range(ROWS):
            b = rows_run[j if ENDS else 2 * j]
            exponent = dt_run * gl.expand_dims(rates[j], 1)
            if PACKED:
                exponent += shift
            a = exp2_fast(exponent)
            kick = b * dtx_run
            if PACKED:
                kick = gl.where(first_step, after(a, reverse(states[j]), kick), kick)
                run = gl.associative_scan((a, kick), 1, follow_in_sequence)[1]
            else:
                kick = gl.where(first_step, gl.fma(a, reverse(states[j]), kick), kick)
                run = gl.associative_scan((a, kick), 1, follow)[1]
            through += (run,)
            if not ENDS:
                c = rows_run[2 * j + 1]
                share = c * run if j == 0 else share + c * run
        states = through
        if not ENDS:
            y_slots.slice(s, 1, 3).store(share)
        if s + 1 < RUNS and not PREFETCH:
            rows_ahead = rows_of(B_slots, C_slots, s + 1, ROWS, RUNS, WEIGHTS, ENDS)
    return states
