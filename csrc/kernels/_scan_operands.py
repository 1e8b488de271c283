"""How the scan kernels read and write their operands, and what the bits of `flags` mean."""

from _arithmetic import prefetch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

# Bits of `flags`, the same as in csrc/ops/selective_scan.cpp.
SOFTPLUS = gl.constexpr(1)
HAS_D = gl.constexpr(2)
HAS_Z = gl.constexpr(4)
HAS_BIAS = gl.constexpr(8)
HAS_GATE = gl.constexpr(16)
HAS_STATE = gl.constexpr(32)
SAVE_CHUNKS = gl.constexpr(64)
ZOH = gl.constexpr(128)

# Steps between two saved states; kChunk in csrc/ops/selective_scan.h.
CHUNK = gl.constexpr(64)


@gluon.jit
def load_steps(x, row, time, padded_length, any_row, COMPLEX: gl.constexpr):
    """One row of a packed fp32 [rows, (2,) padded_length]: no mask along time, for the padding is there."""
    if COMPLEX:
        at = x + row * 2 * padded_length + time
        real = gl.load(at, any_row, 0.0)
        return (gl.expand_dims(real, 2), gl.expand_dims(gl.load(at + padded_length, any_row, 0.0), 2))
    else:
        return (gl.expand_dims(gl.load(x + row * padded_length + time, any_row, 0.0), 2),)


@gluon.jit
def load_state(x, offset, plane, valid, COMPLEX: gl.constexpr):
    if COMPLEX:
        return (gl.load(x + offset, valid, 0.0), gl.load(x + offset + plane, valid, 0.0))
    else:
        return (gl.load(x + offset, valid, 0.0),)


@gluon.jit
def store_state(x, offset, plane, value, valid, COMPLEX: gl.constexpr):
    gl.store(x + offset, value[0], valid)
    if COMPLEX:
        gl.store(x + offset + plane, value[1], valid)


@gluon.jit
def prefetch_steps(x, row, time, padded_length, COMPLEX: gl.constexpr):
    """Bring the cache lines of load_steps() into L1."""
    if COMPLEX:
        prefetch(x + row * 2 * padded_length + time)
        prefetch(x + (row * 2 + 1) * padded_length + time)
    else:
        prefetch(x + row * padded_length + time)


@gluon.jit
def store_steps(x, row, time, padded_length, value, COMPLEX: gl.constexpr):
    if COMPLEX:
        gl.store(x + row * 2 * padded_length + time, value[0])
        gl.store(x + (row * 2 + 1) * padded_length + time, value[1])
    else:
        gl.store(x + row * padded_length + time, value[0])
