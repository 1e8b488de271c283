"""How the scan kernels read and write their operands, and what the bits of `flags` mean."""

from _arithmetic import prefetch
from _recurrence import add, expand, spread, total
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
CONSTANT_B = gl.constexpr(1024)
CONSTANT_C = gl.constexpr(2048)
SPANS = gl.constexpr(8192)
NEXT_FILLS_GPU = gl.constexpr(16384)

# What spans of time leave is asked for so many at once, for each takes as long to come as all.
SPANS_AT_ONCE = gl.constexpr(4)
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
def load_weight(
    x,
    row,
    time,
    padded_length,
    any_row,
    constant,
    offset,
    valid,
    tile,
    COMPLEX: gl.constexpr,
):
    """B or C of one state: a row along time that channels share, or what each channel has for all steps."""
    if constant:
        of_channel = expand(load_state(x, offset, 1, valid & any_row, COMPLEX), 0, COMPLEX)
        weight = spread(expand(of_channel, 1, COMPLEX), tile, COMPLEX)
    else:
        weight = spread(load_steps(x, row, time, padded_length, any_row, COMPLEX), tile, COMPLEX)
    return weight


@gluon.jit
def prefetch_weight(x, row, time, padded_length, constant, COMPLEX: gl.constexpr):
    """Bring the cache lines of load_weight() into L1; a constant is there already."""
    if constant == 0:
        prefetch_steps(x, row, time, padded_length, COMPLEX)


@gluon.jit
def prefetch_steps(x, row, time, padded_length, COMPLEX: gl.constexpr):
    if COMPLEX:
        prefetch(x + row * 2 * padded_length + time)
        prefetch(x + (row * 2 + 1) * padded_length + time)
    else:
        prefetch(x + row * padded_length + time)


@gluon.jit
def store_steps(x, value, steps, COMPLEX: gl.constexpr):
    """The other way."""
    row, time, padded_length, own = steps
    parts = 2 if COMPLEX else 1
    for part in gl.static_range(2 if COMPLEX else 1):
        at = x + (row * parts + part) * padded_length + time
        gl.store(at, value[part], own)


@gluon.jit
def store_weight(x, value, steps, constant, sums, COMPLEX: gl.constexpr):
    """Of a gradient of B or C, a tile of one state: its sum over channels, or for a constant over time.

    `steps` are the row, the times, the length of a row, and which times are the tile's own; `sums` the offset
    of the state, the channels, how far its parts lie apart, which channels have a sum already, and which
    there are.
    """
    if constant:
        offset, channel, plane, begun, valid = sums
        known = load_state(x + offset, channel, plane, begun, COMPLEX)
        known = add(known, total(total(value, 1, COMPLEX), 0, COMPLEX), COMPLEX)
        store_state(x + offset, channel, plane, known, valid, COMPLEX)
    else:
        store_steps(x, total(value, 2, COMPLEX), steps, COMPLEX)
