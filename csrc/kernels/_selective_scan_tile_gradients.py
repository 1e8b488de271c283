"""A tile of the plain backward: its states from the first on, then its adjoints from the last on, and what
each thread has of the sums over states and over channels.
"""

# Triton has no starred tuples.
# ruff: noqa: RUF005

from _arithmetic import exp2_fast
from _selective_scan_tiles import RUN, adjoints_of_run, first_of, last_of, load_run, states_of_run
from triton.experimental import gluon
from triton.experimental.gluon import language as gl


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
