"""How the steps of state_update read their operands and keep the state. Numbers are tuples (real,) or (real,
imaginary).
"""

from _half import narrowed, widened
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

# Bits of `flags`, the same as in csrc/ops/state_update.cpp.
SOFTPLUS = gl.constexpr(1)
HAS_D = gl.constexpr(2)
HAS_Z = gl.constexpr(4)
HAS_BIAS = gl.constexpr(8)
HAS_GATE = gl.constexpr(16)
HAS_SOURCE = gl.constexpr(32)
HAS_TARGET = gl.constexpr(64)
HAS_ACCEPTED = gl.constexpr(128)
HAS_INTERMEDIATE = gl.constexpr(256)
UPDATE = gl.constexpr(512)
ZOH = gl.constexpr(1024)
# ROWS only: A is one number per head.
TIED = gl.constexpr(2048)
# From this bit of `flags` on: the dtype of A, B, C, D, dt_bias, gate, two bits each (0 fp32, 1 fp16, 2 bf16).
DTYPES = gl.constexpr(12)
# How far the bit for the format of the state lies below the one for x, dt, z and out: see _half.py.
STATE_FORMAT = gl.constexpr(1)


@gluon.jit
def dtype_code(flags, POSITION: gl.constexpr):
    return (flags >> (DTYPES + 2 * POSITION)) & 3


@gluon.jit
def load_bits(x, offset, mask, code):
    """Load fp32, fp16 or bf16 as it is, so that small operands need no variants: one of two loads is masked
    out. decoded() makes numbers of it, later: anything in here that joins the two would wait for them before
    the next load is issued.
    """
    words = gl.load(x.to(gl.pointer_type(gl.int32), bitcast=True) + offset, mask & (code == 0), 0)
    halves = gl.load(x.to(gl.pointer_type(gl.int16), bitcast=True) + offset, mask & (code != 0), 0)
    return (words, halves)


@gluon.jit
def decoded(bits, code):
    word = bits[0].to(gl.float32, bitcast=True)
    half = bits[1].to(gl.float16, bitcast=True).to(gl.float32)
    brain = (bits[1].to(gl.int32) << 16).to(gl.float32, bitcast=True)
    return gl.where(code == 0, word, gl.where(code == 1, half, brain))


@gluon.jit
def load_parts(x, offset, part, mask, flags, POSITION: gl.constexpr, COMPLEX: gl.constexpr):
    bits = load_bits(x, offset, mask, dtype_code(flags, POSITION))
    if COMPLEX:
        return (bits, load_bits(x, offset + part, mask, dtype_code(flags, POSITION)))
    else:
        return (bits,)


@gluon.jit
def decoded_parts(bits, flags, POSITION: gl.constexpr, COMPLEX: gl.constexpr):
    code = dtype_code(flags, POSITION)
    if COMPLEX:
        return (decoded(bits[0], code), decoded(bits[1], code))
    else:
        return (decoded(bits[0], code),)


@gluon.jit
def row(x, COMPLEX: gl.constexpr):
    """Numbers of the states, the same for all channels of a tile."""
    if COMPLEX:
        return (x[0][None, :], x[1][None, :])
    else:
        return (x[0][None, :],)


@gluon.jit
def load_state(at, mask, COMPLEX: gl.constexpr):
    if COMPLEX:
        return (gl.load(at, mask, 0), gl.load(at + 1, mask, 0))
    else:
        return (gl.load(at, mask, 0),)


@gluon.jit
def widened_state(h, flags, COMPLEX: gl.constexpr):
    if COMPLEX:
        return h
    else:
        return (widened(h[0], flags << STATE_FORMAT),)


@gluon.jit
def store_state(at, h, mask, flags, COMPLEX: gl.constexpr):
    """`h` in fp32."""
    gl.store(at, narrowed(h[0], at.dtype.element_ty, flags << STATE_FORMAT), mask)
    if COMPLEX:
        gl.store(at + 1, h[1], mask)


@gluon.jit
def along(index, stride, SHORT: gl.constexpr):
    """index * stride, in 32 bits where the host has checked that this holds it: half the instructions."""
    if SHORT:
        return index * stride.to(gl.int32)
    else:
        return index.to(gl.int64) * stride


@gluon.jit
def is_padding(slot, slots, pad):
    """Slots beyond the state are padding too: nothing outside it is ever touched."""
    return (slot < 0) | (slot >= slots) | (slot == pad)
