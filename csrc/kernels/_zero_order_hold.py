"""A step's input of complex states under zero-order hold, phi = (e^w - 1) / A with w = dt A, and its
derivative: no series of complex numbers, no division a step.

Where w is small both are differences that lose digits. There the parts of e^w that cancel are left out
instead of taken off: the polynomials of 2^t, of the sine and of the cosine have tails without them.
"""

from _arithmetic import COSINE, HALVES, LOG2E, SINE, angle_of, exp2_fast, reciprocal, tail_of, turned
from _recurrence import multiply
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

# (2^t - 1) / t by powers of t, |t| <= log2(e), the highest first (minimax, 2e-8).
POWER = gl.constexpr(
    (
        1.3214803443032376e-06,
        1.5675415430608118e-05,
        0.00015410399555128735,
        0.0013328152588596976,
        0.009618034885855421,
        0.05550432700297169,
        0.240226534012725,
        0.6931471670940486,
    )
)
# Where |A|^2 is less, phi is dt to the last digit: so it is for 2^-40, which has an inverse.
LEAST_NORM = gl.constexpr(2.0**-80)
LEAST_RATE = gl.constexpr(2.0**-40)


@gluon.jit
def held_rate(A, held):
    """A, or of a hold 2^-40 where A is too small to be divided by."""
    tiny = held & (A[0] * A[0] + A[1] * A[1] < LEAST_NORM)
    return (gl.where(tiny, LEAST_RATE, A[0]), gl.where(tiny, 0.0, A[1]))


@gluon.jit
def held_inverse(A, held):
    """1 / A of held_rate(); without a hold 0, see held_input()."""
    r = gl.where(held, reciprocal(A[0] * A[0] + A[1] * A[1]), 0.0)
    return (A[0] * r, -A[1] * r)


@gluon.jit
def held_input(difference, inverse, unheld):
    """phi of e^w - 1; without a hold, where `inverse` is 0 and `unheld` 1, 1: the input has its step size
    already.
    """
    real = gl.fma(difference[0], inverse[0], gl.fma(-difference[1], inverse[1], unheld))
    return (real, gl.fma(difference[0], inverse[1], difference[1] * inverse[0]))


@gluon.jit
def decay_and_difference(dt, rates):
    """e^w and e^w - 1, `rates` in the units of scaled_rates()."""
    exponent = dt * rates[0]
    rounded, r, w, sine, cosine = angle_of(dt, rates[1], rates[2])
    sine = r * gl.fma(w, sine, gl.full_like(w, SINE[-1]))
    less = w * cosine
    cosine = gl.fma(w, cosine, gl.full_like(w, COSINE[-1]))
    magnitude = turned(exp2_fast(exponent), rounded)
    decay = (magnitude * cosine, magnitude * sine)
    power = gl.fma(exponent, tail_of(exponent, POWER), gl.full_like(exponent, POWER[-1]))
    # Of an odd number of half turns the decay is negative, and nothing cancels.
    near = (decay[0] > 0.0) & (gl.abs(exponent) < LOG2E)
    real = gl.where(near, gl.fma(exponent * power, cosine, less), decay[0] - 1.0)
    return decay, (real, decay[1])


@gluon.jit
def decay_and_slope(dt, rates, A):
    """e^w, e^w - 1, and (w e^w - e^w + 1), which is A^2 times the derivative of phi by A."""
    exponent = dt * rates[0]
    rounded, r, w, sine_tail, cosine = angle_of(dt, rates[1], rates[2])
    sine = r * gl.fma(w, sine_tail, gl.full_like(w, SINE[-1]))
    less = w * cosine
    cosine = gl.fma(w, cosine, gl.full_like(w, COSINE[-1]))
    growth = exp2_fast(exponent)
    magnitude = turned(growth, rounded)
    decay = (magnitude * cosine, magnitude * sine)
    tail = tail_of(exponent, POWER)
    power = exponent * gl.fma(exponent, tail, gl.full_like(exponent, POWER[-1]))
    within = gl.abs(exponent) < LOG2E
    real = gl.where((decay[0] > 0.0) & within, gl.fma(power, cosine, less), decay[0] - 1.0)
    # Near 0 w (e^w - 1) - (e^w - 1 - w), else w e^w - (e^w - 1).
    near = (rounded == HALVES) & within
    x = dt * A[0]
    y = dt * A[1]
    rest_real = gl.fma(growth, less, exponent * exponent * tail)
    rest_imaginary = gl.fma(power, sine, r * w * sine_tail)
    factor = gl.where(near, real, decay[0])
    rest_real = gl.where(near, rest_real, real)
    rest_imaginary = gl.where(near, rest_imaginary, decay[1])
    slope_real = gl.fma(x, factor, gl.fma(-y, decay[1], -rest_real))
    slope_imaginary = gl.fma(x, decay[1], gl.fma(y, factor, -rest_imaginary))
    return decay, (real, decay[1]), (slope_real, slope_imaginary)


@gluon.jit
def held_kick(difference, inverse, unheld, b, x):
    """phi b x."""
    phi = held_input(difference, inverse, unheld)
    return multiply(phi, (b[0] * x, b[1] * x), True)
