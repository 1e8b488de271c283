"""The recurrence h_t = a_t h_{t-1} + b_t on a tile [segments, steps, channels].

A thread owns all steps of one segment of one channel, so a scan along `steps` is a chain of fused multiply-
adds in registers; segments lie in different lanes and meet in shared memory. Numbers are tuples (real,) or
(real, imaginary).
"""

from _arithmetic import (
    LOG2E,
    compose,
    compose_complex,
    exp2_fast,
    polar,
    turns_of,
)
from _registers import earlier, later, reverse
from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.jit
def multiply(x, y, COMPLEX: gl.constexpr):
    if COMPLEX:
        return (x[0] * y[0] - x[1] * y[1], x[0] * y[1] + x[1] * y[0])
    else:
        return (x[0] * y[0],)


@gluon.jit
def multiply_conjugate(x, y, COMPLEX: gl.constexpr):
    """x conj(y)."""
    if COMPLEX:
        return (x[0] * y[0] + x[1] * y[1], x[1] * y[0] - x[0] * y[1])
    else:
        return (x[0] * y[0],)


@gluon.jit
def conjugate(x, COMPLEX: gl.constexpr):
    if COMPLEX:
        return (x[0], -x[1])
    else:
        return x


@gluon.jit
def add(x, y, COMPLEX: gl.constexpr):
    if COMPLEX:
        return (x[0] + y[0], x[1] + y[1])
    else:
        return (x[0] + y[0],)


@gluon.jit
def scale(x, factor, COMPLEX: gl.constexpr):
    """x times a real factor."""
    if COMPLEX:
        return (x[0] * factor, x[1] * factor)
    else:
        return (x[0] * factor,)


@gluon.jit
def real_product(x, y, COMPLEX: gl.constexpr):
    """Re(x y)."""
    if COMPLEX:
        return x[0] * y[0] - x[1] * y[1]
    else:
        return x[0] * y[0]


@gluon.jit
def real_product_conjugate(x, y, COMPLEX: gl.constexpr):
    """Re(x conj(y))."""
    if COMPLEX:
        return x[0] * y[0] + x[1] * y[1]
    else:
        return x[0] * y[0]


@gluon.jit
def where(condition, x, y, COMPLEX: gl.constexpr):
    if COMPLEX:
        return (gl.where(condition, x[0], y[0]), gl.where(condition, x[1], y[1]))
    else:
        return (gl.where(condition, x[0], y[0]),)


@gluon.jit
def zero_where(condition, x, COMPLEX: gl.constexpr):
    if COMPLEX:
        return (gl.where(condition, 0.0, x[0]), gl.where(condition, 0.0, x[1]))
    else:
        return (gl.where(condition, 0.0, x[0]),)


@gluon.jit
def total(x, axis: gl.constexpr, COMPLEX: gl.constexpr):
    if COMPLEX:
        return (gl.sum(x[0], axis), gl.sum(x[1], axis))
    else:
        return (gl.sum(x[0], axis),)


@gluon.jit
def expand(x, axis: gl.constexpr, COMPLEX: gl.constexpr):
    if COMPLEX:
        return (gl.expand_dims(x[0], axis), gl.expand_dims(x[1], axis))
    else:
        return (gl.expand_dims(x[0], axis),)


@gluon.jit
def spread(x, tile, COMPLEX: gl.constexpr):
    """x in the shape of `tile`."""
    real, _ = gl.broadcast(x[0], tile)
    if COMPLEX:
        imaginary, _ = gl.broadcast(x[1], tile)
        return (real, imaginary)
    else:
        return (real,)


@gluon.jit
def exponential(dt, A, COMPLEX: gl.constexpr):
    """exp(dt A); A comes in the units of scaled_rates()."""
    magnitude = exp2_fast(dt * A[0])
    if COMPLEX:
        return polar(magnitude, dt, A[1], A[2])
    else:
        return (magnitude,)


@gluon.jit
def scaled_rates(A, COMPLEX: gl.constexpr):
    """A with its real part in powers of two and its imaginary part in turns, as exponential() wants it."""
    if COMPLEX:
        turns, low = turns_of(A[1])
        return (A[0] * LOG2E, turns, low)
    else:
        return (A[0] * LOG2E,)


@gluon.jit
def inverse(A, COMPLEX: gl.constexpr):
    """1 / A, and 0 for A = 0 (where the series is used instead)."""
    if COMPLEX:
        norm = A[0] * A[0] + A[1] * A[1]
        r = gl.where(norm == 0.0, 0.0, 1.0 / norm)
        return (A[0] * r, -A[1] * r)
    else:
        return (gl.where(A[0] == 0.0, 0.0, 1.0 / A[0]),)


@gluon.jit
def is_small(w, ORDER: gl.constexpr, COMPLEX: gl.constexpr):
    """|w| < 1/2, for ORDER = 2 |w| < 1: below, differences lose digits to cancellation and series() has few
    terms.
    """
    return real_product_conjugate(w, w, COMPLEX) < (0.25 if ORDER == 1 else 1.0)


@gluon.jit
def series(w, ORDER: gl.constexpr, COMPLEX: gl.constexpr):
    """sum_j w^j / (j + 1)! for ORDER = 1 (that is (e^w - 1) / w), sum_j (j + 1) w^j / (j + 2)! for ORDER = 2
    (its derivative).
    """
    terms: gl.constexpr = (
        (1 / 40320, 1 / 5040, 1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0)
        if ORDER == 1
        else (
            1 / 43545600,
            1 / 3991680,
            1 / 403200,
            1 / 45360,
            1 / 5760,
            1 / 840,
            1 / 144,
            1 / 30,
            1 / 8,
            1 / 3,
            1 / 2,
        )
    )
    real = gl.full_like(w[0], terms[0])
    if COMPLEX:
        imaginary = gl.full_like(w[0], 0.0)
        for k in gl.static_range(1, len(terms)):
            next_real = gl.fma(real, w[0], terms[k] - imaginary * w[1])
            imaginary = gl.fma(real, w[1], imaginary * w[0])
            real = next_real
        return (real, imaginary)
    else:
        for k in gl.static_range(1, len(terms)):
            real = gl.fma(real, w[0], gl.full_like(real, terms[k]))
        return (real,)


@gluon.jit
def euler_input(dt, COMPLEX: gl.constexpr):
    """phi = dt."""
    if COMPLEX:
        return (dt, gl.full_like(dt, 0.0))
    else:
        return (dt,)


@gluon.jit
def zoh_input(e, dt, A, inverse_A, COMPLEX: gl.constexpr):
    """phi = (exp(dt A) - 1) / A (Mamba paper, eq. 4), e = exp(dt A)."""
    w = scale(A, dt, COMPLEX)
    difference = (e[0] - 1.0, e[1]) if COMPLEX else (e[0] - 1.0,)
    far = multiply(difference, inverse_A, COMPLEX)
    near = scale(series(w, 1, COMPLEX), dt, COMPLEX)
    return where(is_small(w, 1, COMPLEX), near, far, COMPLEX)


@gluon.jit
def zoh_input_by_rate(e, phi, dt, A, inverse_A, COMPLEX: gl.constexpr):
    """d phi / d A = (dt exp(dt A) - phi) / A."""
    w = scale(A, dt, COMPLEX)
    numerator = add(scale(e, dt, COMPLEX), scale(phi, gl.full_like(dt, -1.0), COMPLEX), COMPLEX)
    far = multiply(numerator, inverse_A, COMPLEX)
    near = scale(series(w, 2, COMPLEX), dt * dt, COMPLEX)
    return where(is_small(w, 2, COMPLEX), near, far, COMPLEX)


@gluon.jit
def scan(a, b, COMPLEX: gl.constexpr):
    """h_i = a_i h_{i-1} + b_i along axis 1, from zero."""
    if COMPLEX:
        _, _, real, imaginary = gl.associative_scan((a[0], a[1], b[0], b[1]), 1, compose_complex)
        return (real, imaginary)
    else:
        _, h = gl.associative_scan((a[0], b[0]), 1, compose)
        return (h,)


@gluon.jit
def scan_from(entering, a, b, first, COMPLEX: gl.constexpr):
    """scan() of segments that `entering` [segments, channels] flows into; `first` marks each segment's first
    step.
    """
    opened = add(b, multiply(a, expand(entering, 1, COMPLEX), COMPLEX), COMPLEX)
    return scan(a, where(first, opened, b, COMPLEX), COMPLEX)


@gluon.jit
def earlier_steps(x, COMPLEX: gl.constexpr):
    if COMPLEX:
        return (earlier(x[0]), earlier(x[1]))
    else:
        return (earlier(x[0]),)


@gluon.jit
def later_steps(x, COMPLEX: gl.constexpr):
    if COMPLEX:
        return (later(x[0]), later(x[1]))
    else:
        return (later(x[0]),)


@gluon.jit
def reversed_steps(x, COMPLEX: gl.constexpr):
    if COMPLEX:
        return (reverse(x[0]), reverse(x[1]))
    else:
        return (reverse(x[0]),)


@gluon.jit
def product(x, y):
    return x * y


@gluon.jit
def scan_backward(a, b, COMPLEX: gl.constexpr):
    """h_i = a_i h_{i+1} + b_i along axis 1, from zero."""
    return reversed_steps(scan(reversed_steps(a, COMPLEX), reversed_steps(b, COMPLEX), COMPLEX), COMPLEX)


@gluon.jit
def pick(x, here, COMPLEX: gl.constexpr):
    """The one element along axis 1 where `here` holds; adding -0.0 is the identity, so no instruction is
    spent on the others.
    """
    if COMPLEX:
        return (gl.sum(gl.where(here, x[0], -0.0), 1), gl.sum(gl.where(here, x[1], -0.0), 1))
    else:
        return (gl.sum(gl.where(here, x[0], -0.0), 1),)


@gluon.jit
def publish(slots, ends, decays, COMPLEX: gl.constexpr):
    """Write each segment's end value from zero and its whole decay, both [segments, channels], into shared
    memory.
    """
    slots.index(0).store(ends[0])
    slots.index(1).store(decays[0])
    if COMPLEX:
        slots.index(2).store(ends[1])
        slots.index(3).store(decays[1])


@gluon.constexpr_function
def _place(k, segments, backward):
    return segments - 1 - k if backward else k


@gluon.jit
def collect(slots, carry, segment, BACKWARD: gl.constexpr, COMPLEX: gl.constexpr):
    """From the tile's carry [channels]: what enters each segment [segments, channels], and the carry after
    the tile.
    """
    SEGMENTS: gl.constexpr = slots.shape[1]
    LAYOUT: gl.constexpr = carry[0].type.layout.parent
    carry = expand(carry, 0, COMPLEX)
    entering = carry
    for k in gl.static_range(SEGMENTS):
        entering = where(segment[:, None] == _place(k, SEGMENTS, BACKWARD), carry, entering, COMPLEX)
        end = (slots.index(0).slice(_place(k, SEGMENTS, BACKWARD), 1).load(LAYOUT),)
        decay = (slots.index(1).slice(_place(k, SEGMENTS, BACKWARD), 1).load(LAYOUT),)
        if COMPLEX:
            end = (end[0], slots.index(2).slice(_place(k, SEGMENTS, BACKWARD), 1).load(LAYOUT))
            decay = (decay[0], slots.index(3).slice(_place(k, SEGMENTS, BACKWARD), 1).load(LAYOUT))
        carry = add(multiply(decay, carry, COMPLEX), end, COMPLEX)
    return entering, total(carry, 0, COMPLEX)
