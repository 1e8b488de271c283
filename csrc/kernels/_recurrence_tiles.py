"""Moves tiles [segments, steps, rows] of a linear recurrence between memory and registers, in fp32.

Rows are (p, q, r) in three leading dimensions of any strides. Numbers are tuples (real,) or (real,
imaginary), whose parts lie side by side in memory.
"""

from _arithmetic import compose, compose_complex, prefetch
from _half import narrowed, widened
from _recurrence import pick
from _registers import reverse
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

# States are saved every CHUNK steps: `kRecurrenceChunk` in csrc/ops/linear_recurrence.h.
CHUNK = gl.constexpr(64)
# Bits of `flags`, the same as in csrc/ops/linear_recurrence.cpp.
REVERSE = gl.constexpr(1)
HAS_STATE = gl.constexpr(2)
SAVE_CHUNKS = gl.constexpr(4)


@gluon.jit
def start_of_rows(row, Q, R, p_stride, q_stride, r_stride):
    """Where row p * Q * R + q * R + r starts; fits 64 bits."""
    r = (row % R).to(gl.int64)
    q = (row // R % Q).to(gl.int64)
    p = (row // R // Q).to(gl.int64)
    return p * p_stride + q * q_stride + r * r_stride


@gluon.jit
def places(first, step, L, flags, STEPS: gl.constexpr, LAYOUT: gl.constexpr):
    """Where in memory the steps of segments that begin at step `first` lie: [segments, STEPS].

    Along rows the steps of a thread come in the order of memory, which may be against time.
    """
    backwards = (flags & REVERSE) != 0
    if LAYOUT == "seq":
        return gl.where(backwards, L - STEPS - first, first)[:, None] + step[None, :]
    else:
        place = first[:, None] + step[None, :]
        return gl.where(backwards, L - 1 - place, place)


@gluon.jit
def in_order(value, flags, LAYOUT: gl.constexpr):
    """The steps of a thread from the order of memory to that of time, or the other way."""
    if LAYOUT == "seq":
        return gl.where((flags & REVERSE) != 0, reverse(value), value)
    else:
        return value


@gluon.jit
def load_tile(x, place, time_stride, inside, other, flags, LAYOUT: gl.constexpr, COMPLEX: gl.constexpr):
    """Steps in the order of time, in fp32, `other` where not `inside`; x [rows] points to starts of rows."""
    at = x[None, None, :] + place.to(gl.int64)[:, :, None] * time_stride
    real = gl.where(inside, widened(gl.load(at, inside, 0), flags), other)
    if COMPLEX:
        return (real, widened(gl.load(at + 1, inside, 0), flags))
    else:
        return (in_order(real, flags, LAYOUT),)


@gluon.jit
def store_tile(x, place, time_stride, inside, value, flags, LAYOUT: gl.constexpr, COMPLEX: gl.constexpr):
    at = x[None, None, :] + place.to(gl.int64)[:, :, None] * time_stride
    real = in_order(value[0], flags, LAYOUT)
    gl.store(at, narrowed(real, x.dtype.element_ty, flags), inside)
    if COMPLEX:
        gl.store(at + 1, narrowed(value[1], x.dtype.element_ty, flags), inside)


@gluon.jit
def prefetch_tile(x, first, L, flags, STEPS: gl.constexpr):
    """Bring the steps of segments [segments, 1] that begin at step `first` into L1, where each is one line or
    less; those beyond either end are replaced by ones that are not.
    """
    place = gl.maximum(gl.minimum(first, L - STEPS), 0)
    place = gl.where((flags & REVERSE) != 0, gl.maximum(L - STEPS - place, 0), place)
    prefetch(x[None, :] + place)


@gluon.jit
def load_numbers(x, valid, flags, COMPLEX: gl.constexpr):
    if COMPLEX:
        return (widened(gl.load(x, valid, 0), flags), widened(gl.load(x + 1, valid, 0), flags))
    else:
        return (widened(gl.load(x, valid, 0), flags),)


@gluon.jit
def store_numbers(x, value, valid, COMPLEX: gl.constexpr):
    gl.store(x, value[0], valid)
    if COMPLEX:
        gl.store(x + 1, value[1], valid)


@gluon.jit
def whole_segments(a, b, last, COMPLEX: gl.constexpr):
    """The product of all decays of a segment, and its end value from zero: both [segments, rows]."""
    if COMPLEX:
        ar, ai, hr, hi = gl.associative_scan((a[0], a[1], b[0], b[1]), 1, compose_complex)
        return pick((ar, ai), last, COMPLEX), pick((hr, hi), last, COMPLEX)
    else:
        decays, h = gl.associative_scan((a[0], b[0]), 1, compose)
        return pick((decays,), last, COMPLEX), pick((h,), last, COMPLEX)
