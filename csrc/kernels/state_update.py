"""One step of the selective scan, state in place (decoding). Memory-bound: every state element is read and
written once.
"""

from _arithmetic import sigmoid, softplus
from _recurrence import (
    add,
    euler_input,
    exponential,
    inverse,
    multiply,
    real_product,
    scale,
    scaled_rates,
    zoh_input,
)
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from tools.aot.spec import Config, Kernel

# Bits of `flags`, the same as in csrc/ops/state_update.cpp.
SOFTPLUS = gl.constexpr(1)
HAS_D = gl.constexpr(2)
HAS_Z = gl.constexpr(4)
HAS_BIAS = gl.constexpr(8)
HAS_GATE = gl.constexpr(16)
HAS_INDICES = gl.constexpr(32)
ZOH = gl.constexpr(64)
# From this bit on: the dtype of A, B, C, D, dt_bias, gate, two bits each (0 fp32, 1 fp16, 2 bf16).
DTYPES = gl.constexpr(8)


@gluon.jit
def load_as(x, offset, mask, other, flags, POSITION: gl.constexpr):
    """Load fp32, fp16 or bf16, whichever `flags` says: small operands then need no variants and no conversion
    kernels.
    """
    code = (flags >> (DTYPES + 2 * POSITION)) & 3
    if code == 0:
        value = gl.load(x.to(gl.pointer_type(gl.float32), bitcast=True) + offset, mask, other)
    elif code == 1:
        value = gl.load(x.to(gl.pointer_type(gl.float16), bitcast=True) + offset, mask, other).to(gl.float32)
    else:
        value = gl.load(x.to(gl.pointer_type(gl.bfloat16), bitcast=True) + offset, mask, other).to(gl.float32)
    return value


@gluon.jit
def load_parts(x, offset, part, mask, flags, POSITION: gl.constexpr, COMPLEX: gl.constexpr):
    if COMPLEX:
        real = load_as(x, offset, mask, 0.0, flags, POSITION)
        return (real, load_as(x, offset + part, mask, 0.0, flags, POSITION))
    else:
        return (load_as(x, offset, mask, 0.0, flags, POSITION),)


@gluon.jit
def state_update_kernel(
    state,
    x,
    dt,
    A,
    B,
    C,
    D_skip,
    z,
    dt_bias,
    gate,
    indices,
    out,
    D,
    N,
    groups,
    state_slot,
    state_channel,
    state_n,
    x_batch,
    x_channel,
    dt_batch,
    dt_channel,
    z_batch,
    z_channel,
    A_channel,
    A_n,
    A_part,
    B_batch,
    B_group,
    B_n,
    B_part,
    C_batch,
    C_group,
    C_n,
    C_part,
    D_channel,
    bias_channel,
    gate_batch,
    gate_n,
    indices_batch,
    flags,
    COMPLEX: gl.constexpr,
    STATES: gl.constexpr,
    CHANNELS: gl.constexpr,
):
    LANES: gl.constexpr = STATES // 4
    X: gl.constexpr = gl.BlockedLayout([1, 4], [32 // LANES, LANES], [gl.num_warps(), 1], [1, 0])
    blocks = gl.cdiv(D, CHANNELS)
    batch = (gl.program_id(0) // blocks).to(gl.int64)
    channel = (gl.program_id(0) % blocks) * CHANNELS + gl.arange(0, CHANNELS, gl.SliceLayout(1, X))
    valid = channel < D
    group = channel // (D // groups)
    slot = batch
    if (flags & HAS_INDICES) != 0:
        slot = gl.load(indices + batch * indices_batch).to(gl.int64)

    wide = channel.to(gl.int64)
    at_out = out + batch * D + wide
    if slot < 0:
        # A padding slot: the output is 0 and no state is touched.
        gl.store(
            at_out, gl.full([CHANNELS], 0.0, gl.float32, gl.SliceLayout(1, X)).to(out.dtype.element_ty), valid
        )
    else:
        value = gl.load(x + batch * x_batch + wide * x_channel, valid, 0.0).to(gl.float32)
        step = gl.load(dt + batch * dt_batch + wide * dt_channel, valid, 0.0).to(gl.float32)
        if (flags & HAS_BIAS) != 0:
            step += load_as(dt_bias, wide * bias_channel, valid, 0.0, flags, 4)
        if (flags & SOFTPLUS) != 0:
            step = softplus(step)
        y = gl.full_like(value, 0.0)
        if (flags & HAS_D) != 0:
            y += value * load_as(D_skip, wide * D_channel, valid, 0.0, flags, 3)
        step = step[:, None]
        x_tile = value[:, None]

        for first in range(0, N, STATES):
            n = first + gl.arange(0, STATES, gl.SliceLayout(0, X))
            wide_n = n.to(gl.int64)[None, :]
            inside = valid[:, None] & (n < N)[None, :]
            A_value = load_parts(
                A, wide[:, None] * A_channel + wide_n * A_n, A_part, inside, flags, 0, COMPLEX
            )
            at_B = batch * B_batch + group.to(gl.int64)[:, None] * B_group + wide_n * B_n
            b = load_parts(B, at_B, B_part, inside, flags, 1, COMPLEX)
            at_C = batch * C_batch + group.to(gl.int64)[:, None] * C_group + wide_n * C_n
            c = load_parts(C, at_C, C_part, inside, flags, 2, COMPLEX)
            at = state + slot * state_slot + wide[:, None] * state_channel + wide_n * state_n
            if COMPLEX:
                h = (gl.load(at, inside, 0.0), gl.load(at + 1, inside, 0.0))
            else:
                h = (gl.load(at, inside, 0.0).to(gl.float32),)

            a = exponential(step, scaled_rates(A_value, COMPLEX), COMPLEX)
            if (flags & ZOH) != 0:
                phi = zoh_input(a, step, A_value, inverse(A_value, COMPLEX), COMPLEX)
            else:
                phi = euler_input(step + gl.full_like(a[0], 0.0), COMPLEX)
            if (flags & HAS_GATE) != 0:
                g = load_as(gate, batch * gate_batch + wide_n * gate_n, (n < N)[None, :], 0.0, flags, 5)
                a = scale(a, g, COMPLEX)
            h = add(multiply(a, h, COMPLEX), scale(multiply(phi, b, COMPLEX), x_tile, COMPLEX), COMPLEX)
            y += gl.sum(real_product(c, h, COMPLEX), 1) * (2.0 if COMPLEX else 1.0)
            gl.store(at, h[0].to(state.dtype.element_ty), inside)
            if COMPLEX:
                gl.store(at + 1, h[1].to(state.dtype.element_ty), inside)

        if (flags & HAS_Z) != 0:
            zv = gl.load(z + batch * z_batch + wide * z_channel, valid, 0.0).to(gl.float32)
            y *= zv * sigmoid(zv)
        gl.store(at_out, y.to(out.dtype.element_ty), valid)


_STRIDES = [
    *("state_slot", "state_channel", "state_n", "x_batch", "x_channel", "dt_batch", "dt_channel"),
    *("z_batch", "z_channel", "A_channel", "A_n", "A_part", "B_batch", "B_group", "B_n", "B_part"),
    *(
        "C_batch",
        "C_group",
        "C_n",
        "C_part",
        "D_channel",
        "bias_channel",
        "gate_batch",
        "gate_n",
        "indices_batch",
    ),
]

KERNELS = [
    Kernel(
        state_update_kernel,
        args={
            **dict.fromkeys(("x", "dt", "z", "out"), "*T"),
            **dict.fromkeys(("A", "B", "C", "D_skip", "dt_bias", "gate"), "*u8"),
            **dict.fromkeys(_STRIDES, "i64"),
            **dict(state="*S", indices="*i32", D="i32", N="i32", groups="i32", flags="i32"),
        },
        axes=dict(T=["f32", "f16", "bf16"], S=["f32", "f16", "bf16"], COMPLEX=[False, True]),
        # A complex state is kept in fp32 pairs.
        skip=lambda values: values["COMPLEX"] and values["S"] != "f32",
        configs=[Config("states16", STATES=16, CHANNELS=32, num_warps=4)],
    ),
]
