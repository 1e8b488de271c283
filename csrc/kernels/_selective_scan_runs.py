"""The recurrences of the backward of plain scans over a run of steps, in a thread's registers."""

from _recurrence import expand
from _selective_scan_complex_runs import (
    complex_adjoints_of_run,
    complex_states_of_run,
    complex_states_onward,
)
from _selective_scan_sequences import goes_on
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

# Steps that a thread takes at a time: 16 bytes of shared memory.
RUN = gl.constexpr(4)


@gluon.jit
def run_forward(a0, a1, a2, a3, k0, k1, k2, k3, h, _h1, _h2, _h3):
    """Of h_i = d_i + k_i, d_i = a_i h_{i-1}: all d, then all h."""
    d0 = a0 * h
    h0 = d0 + k0
    d1 = a1 * h0
    h1 = d1 + k1
    d2 = a2 * h1
    h2 = d2 + k2
    d3 = a3 * h2
    return d0, d1, d2, d3, h0, h1, h2, d3 + k3


@gluon.jit
def run_backward(a0, a1, a2, a3, c0, c1, c2, c3, m, _m1, _m2, _m3):
    """g_i = c_i + a_{i+1} g_{i+1}, where m comes from behind; then what goes on to the step before."""
    g3 = c3 + m
    g2 = c2 + a3 * g3
    g1 = c1 + a2 * g2
    g0 = c0 + a1 * g1
    m = a0 * g0
    return g0, g1, g2, g3, m, m, m, m


@gluon.jit
def run_forward_in_sequence(a0, a1, a2, a3, k0, k1, k2, k3, h, _h1, _h2, _h3, on0, on1, on2, on3):
    """The same where a step takes the state before it only if its sequence goes on."""
    d0 = a0 * gl.where(on0, h, 0.0)
    h0 = d0 + k0
    d1 = a1 * gl.where(on1, h0, 0.0)
    h1 = d1 + k1
    d2 = a2 * gl.where(on2, h1, 0.0)
    h2 = d2 + k2
    d3 = a3 * gl.where(on3, h2, 0.0)
    return d0, d1, d2, d3, h0, h1, h2, d3 + k3


@gluon.jit
def run_backward_in_sequence(a0, a1, a2, a3, c0, c1, c2, c3, m, _m1, _m2, _m3, on0, on1, on2, on3):
    """And the other way."""
    g3 = c3 + m
    g2 = c2 + gl.where(on3, a3 * g3, 0.0)
    g1 = c1 + gl.where(on2, a2 * g2, 0.0)
    g0 = c0 + gl.where(on1, a1 * g1, 0.0)
    m = gl.where(on0, a0 * g0, 0.0)
    return g0, g1, g2, g3, m, m, m, m


@gluon.jit
def states_of_run(a, kick, h, dt, PACKED: gl.constexpr, COMPLEX: gl.constexpr):
    """What a run's states pass on, the states, and the last of these."""
    h = expand(h, 3, COMPLEX)
    if COMPLEX:
        through, states = complex_states_of_run(a, kick, h)
        return through, states, (gl.reduce(states[0], 3, last_of), gl.reduce(states[1], 3, last_of))
    elif PACKED:
        through, states = gl.map_elementwise(
            run_forward_in_sequence, a[0], kick[0], h[0], goes_on(dt), pack=4
        )
        return (through,), (states,), (gl.reduce(states, 3, last_of),)
    else:
        through, states = gl.map_elementwise(run_forward, a[0], kick[0], h[0], pack=4)
        return (through,), (states,), (gl.reduce(states, 3, last_of),)


@gluon.jit
def state_after_run(a, kick, h, dt, PACKED: gl.constexpr, COMPLEX: gl.constexpr):
    """The last of these states alone."""
    if COMPLEX:
        states = complex_states_onward(a, kick, expand(h, 3, COMPLEX))
        return (gl.reduce(states[0], 3, last_of), gl.reduce(states[1], 3, last_of))
    else:
        return states_of_run(a, kick, h, dt, PACKED, COMPLEX)[2]


@gluon.jit
def adjoints_of_run(a, entering, mu, dt, PACKED: gl.constexpr, COMPLEX: gl.constexpr):
    """The adjoints of a run, and what goes on to the step before it."""
    mu = expand(mu, 3, COMPLEX)
    if COMPLEX:
        adjoint, mu = complex_adjoints_of_run(a, entering, mu)
        return adjoint, (gl.reduce(mu[0], 3, first_of), gl.reduce(mu[1], 3, first_of))
    elif PACKED:
        adjoint, through = gl.map_elementwise(
            run_backward_in_sequence, a[0], entering[0], mu[0], goes_on(dt), pack=4
        )
        return (adjoint,), (gl.reduce(through, 3, first_of),)
    else:
        adjoint, through = gl.map_elementwise(run_backward, a[0], entering[0], mu[0], pack=4)
        return (adjoint,), (gl.reduce(through, 3, first_of),)


@gluon.jit
def of_run(rates, COMPLEX: gl.constexpr):
    """scaled_rates() of states, as a run takes them."""
    power = gl.expand_dims(rates[0], 3)
    if COMPLEX:
        return (power, gl.expand_dims(rates[1], 3), gl.expand_dims(rates[2], 3))
    else:
        return (power,)


@gluon.jit
def first_of(x, y):
    return x


@gluon.jit
def last_of(x, y):
    return y
