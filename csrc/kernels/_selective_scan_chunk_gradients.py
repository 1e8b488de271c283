"""A chunk of the plain backward, each element once: what it puts into shared memory for its tiles, and the
gradients of its inputs, of what they leave there.
"""

from _arithmetic import sigmoid, sigmoid_fast, softplus
from _half import widened_pairs
from _scan_operands import HAS_Z, SOFTPLUS, ZOH
from _selective_scan_sequences import marked, unmarked
from _selective_scan_slots import in_runs, joined, load_tiles, whole
from _selective_scan_tiles import write
from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.jit
def delta_of(raw_dt, bias, flags):
    """delta after its bias and softplus."""
    dt = widened_pairs(raw_dt, flags) + bias
    if (flags & SOFTPLUS) != 0:
        dt = softplus(dt, raw_dt.dtype == gl.int16)
    return dt


@gluon.jit
def store_inputs(inputs, dt, raw, used, live, fresh, flags, PACKED: gl.constexpr, COMPLEX: gl.constexpr):
    """delta, delta u, under zero-order hold u alone, and the gradient of y."""
    dt_slots, dtx_slots, dy_slots, _, _ = inputs
    raw_x, raw_dy, raw_z = raw
    if PACKED:
        used = used & live
    # A step of length 0 leaves the state alone: so do the steps past the end.
    dt = gl.where(used, dt, 0.0)
    dy = widened_pairs(raw_dy, flags)
    if (flags & HAS_Z) != 0:
        z = widened_pairs(raw_z, flags)
        dy *= z * sigmoid_fast(z)
    x = widened_pairs(raw_x, flags)
    if PACKED:
        x = gl.where(live, x, 0.0)
        dy = gl.where(live, dy, 0.0)
        whole(dt_slots).store(in_runs(marked(dt, fresh)))
    else:
        whole(dt_slots).store(in_runs(dt))
    taken = dt * x
    if COMPLEX:
        taken = gl.where((flags & ZOH) != 0, x, taken)
    whole(dtx_slots).store(in_runs(taken))
    whole(dy_slots).store(in_runs(dy))


@gluon.jit
def input_gradients(
    outs,
    place,
    slots,
    inputs,
    used,
    live,
    complete,
    flags,
    LAYOUT: gl.constexpr,
    LAYOUTS: gl.constexpr,
    PACKED: gl.constexpr,
    COMPLEX: gl.constexpr,
):
    """Writes the gradients of u and delta to `outs`; the gradient of y, and that of delta."""
    TILE: gl.constexpr = LAYOUTS[0]
    IN_RUNS: gl.constexpr = LAYOUTS[1]
    dt_slots, dy_slots, dkick_slots, ddt_slots = slots
    x, raw_dt, D_value, bias = inputs
    dy = joined(whole(dy_slots).load(IN_RUNS), TILE)
    dkick = joined(load_tiles(dkick_slots, LAYOUTS), TILE)
    by_delta = x
    if COMPLEX:
        # A hold has its own derivative, and the gradient of u is whole.
        by_delta = gl.where((flags & ZOH) != 0, 0.0, x)
    ddt = joined(load_tiles(ddt_slots, LAYOUTS), TILE) + dkick * by_delta
    dt = joined(whole(dt_slots).load(IN_RUNS), TILE)
    if PACKED:
        dt = unmarked(dt)
    if COMPLEX:
        dt = gl.where((flags & ZOH) != 0, 1.0, dt)
    dx = D_value * dy + dkick * dt
    if (flags & SOFTPLUS) != 0:
        before = widened_pairs(raw_dt, flags) + bias
        ddt *= sigmoid_fast(before) if raw_dt.dtype == gl.int16 else sigmoid(before)
    # An adjoint of the last state passes through the padding, where there is no delta to take a gradient of.
    if PACKED:
        ddt = gl.where(used & live, ddt, 0.0)
        dx = gl.where(live, dx, 0.0)
    else:
        ddt = gl.where(used, ddt, 0.0)
    write(outs[0], place, dx, used, live, complete, flags, LAYOUT, PACKED)
    write(outs[1], place, ddt, used, live, complete, flags, LAYOUT, PACKED)
    return dy, ddt


@gluon.jit
def gate_gradient(
    out, place, y, raw_dy, raw_z, used, live, complete, flags, LAYOUT: gl.constexpr, PACKED: gl.constexpr
):
    """Writes the gradient of z, where `y` is what the gate takes."""
    z = widened_pairs(raw_z, flags)
    s = sigmoid_fast(z)
    slope = widened_pairs(raw_dy, flags) * y * s * (1.0 + z * (1.0 - s))
    if PACKED:
        slope = gl.where(live, slope, 0.0)
    write(out, place, slope, used, live, complete, flags, LAYOUT, PACKED)
