"""The recurrences of complex states over a run of four steps, in a thread's registers."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.jit
def step_forward(ar, ai, kr, ki, hr, hi):
    """What a step passes on, d = a h, and the state d + k."""
    dr = ar * hr - ai * hi
    di = ar * hi + ai * hr
    return dr, di, dr + kr, di + ki


@gluon.jit
def step_gated(er, ei, g, kr, ki, hr, hi):
    """d = e h and g d + k."""
    dr = er * hr - ei * hi
    di = er * hi + ei * hr
    return dr, di, g * dr + kr, g * di + ki


@gluon.jit
def step_onward(ar, ai, kr, ki, hr, hi):
    """The state alone, in two instructions less."""
    return kr + ar * hr - ai * hi, ki + ar * hi + ai * hr


@gluon.jit
def step_backward(ar, ai, cr, ci, gr, gi):
    """c + conj(a) g: the adjoint of the step before the one whose decay and adjoint are a and g."""
    return cr + ar * gr + ai * gi, ci + ar * gi - ai * gr


@gluon.jit
def run_forward(
    ar0, ar1, ar2, ar3, ai0, ai1, ai2, ai3, kr0, kr1, kr2, kr3, ki0, ki1, ki2, ki3,
    hr, _hr1, _hr2, _hr3, hi, _hi1, _hi2, _hi3,
):  # fmt: skip
    dr0, di0, hr0, hi0 = step_forward(ar0, ai0, kr0, ki0, hr, hi)
    dr1, di1, hr1, hi1 = step_forward(ar1, ai1, kr1, ki1, hr0, hi0)
    dr2, di2, hr2, hi2 = step_forward(ar2, ai2, kr2, ki2, hr1, hi1)
    dr3, di3, hr3, hi3 = step_forward(ar3, ai3, kr3, ki3, hr2, hi2)
    return dr0, dr1, dr2, dr3, di0, di1, di2, di3, hr0, hr1, hr2, hr3, hi0, hi1, hi2, hi3


@gluon.jit
def run_gated(
    er0, er1, er2, er3, ei0, ei1, ei2, ei3, g0, g1, g2, g3, kr0, kr1, kr2, kr3, ki0, ki1, ki2, ki3,
    hr, _hr1, _hr2, _hr3, hi, _hi1, _hi2, _hi3,
):  # fmt: skip
    dr0, di0, hr0, hi0 = step_gated(er0, ei0, g0, kr0, ki0, hr, hi)
    dr1, di1, hr1, hi1 = step_gated(er1, ei1, g1, kr1, ki1, hr0, hi0)
    dr2, di2, hr2, hi2 = step_gated(er2, ei2, g2, kr2, ki2, hr1, hi1)
    dr3, di3, hr3, hi3 = step_gated(er3, ei3, g3, kr3, ki3, hr2, hi2)
    return dr0, dr1, dr2, dr3, di0, di1, di2, di3, hr0, hr1, hr2, hr3, hi0, hi1, hi2, hi3


@gluon.jit
def run_onward(
    ar0, ar1, ar2, ar3, ai0, ai1, ai2, ai3, kr0, kr1, kr2, kr3, ki0, ki1, ki2, ki3,
    hr, _hr1, _hr2, _hr3, hi, _hi1, _hi2, _hi3,
):  # fmt: skip
    hr, hi = step_onward(ar0, ai0, kr0, ki0, hr, hi)
    hr, hi = step_onward(ar1, ai1, kr1, ki1, hr, hi)
    hr, hi = step_onward(ar2, ai2, kr2, ki2, hr, hi)
    hr, hi = step_onward(ar3, ai3, kr3, ki3, hr, hi)
    return hr, hr, hr, hr, hi, hi, hi, hi


@gluon.jit
def run_backward(
    ar0, ar1, ar2, ar3, ai0, ai1, ai2, ai3, cr0, cr1, cr2, cr3, ci0, ci1, ci2, ci3,
    mr, _mr1, _mr2, _mr3, mi, _mi1, _mi2, _mi3,
):  # fmt: skip
    gr3 = cr3 + mr
    gi3 = ci3 + mi
    gr2, gi2 = step_backward(ar3, ai3, cr2, ci2, gr3, gi3)
    gr1, gi1 = step_backward(ar2, ai2, cr1, ci1, gr2, gi2)
    gr0, gi0 = step_backward(ar1, ai1, cr0, ci0, gr1, gi1)
    mr = ar0 * gr0 + ai0 * gi0
    mi = ar0 * gi0 - ai0 * gr0
    return gr0, gr1, gr2, gr3, gi0, gi1, gi2, gi3, mr, mr, mr, mr, mi, mi, mi, mi


@gluon.jit
def complex_states_of_run(a, kick, h):
    """d_i = a_i h_{i-1} and h_i = d_i + k_i, where h comes from before."""
    dr, di, hr, hi = gl.map_elementwise(run_forward, a[0], a[1], kick[0], kick[1], h[0], h[1], pack=4)
    return (dr, di), (hr, hi)


@gluon.jit
def gated_states_of_run(e, gate, kick, h):
    """d_i = e_i h_{i-1} and h_i = g_i d_i + k_i."""
    dr, di, hr, hi = gl.map_elementwise(run_gated, e[0], e[1], gate, kick[0], kick[1], h[0], h[1], pack=4)
    return (dr, di), (hr, hi)


@gluon.jit
def complex_states_onward(a, kick, h):
    """The last state, in each of the run's places."""
    hr, hi = gl.map_elementwise(run_onward, a[0], a[1], kick[0], kick[1], h[0], h[1], pack=4)
    return (hr, hi)


@gluon.jit
def complex_adjoints_of_run(a, entering, mu):
    """g_i = c_i + conj(a_{i+1}) g_{i+1}, where mu comes from behind; then what goes on to the step before."""
    gr, gi, mr, mi = gl.map_elementwise(
        run_backward, a[0], a[1], entering[0], entering[1], mu[0], mu[1], pack=4
    )
    return (gr, gi), (mr, mi)
