"""Steps of the selective scan, state in place (decoding). Memory-bound: every state element is read and
written once, so the loads of the state are issued before anything else, and as wide as its strides allow.
"""

from _arithmetic import sigmoid, softplus
from _half import narrowed, widened
from _recurrence import (
    add,
    exponential,
    inverse,
    multiply,
    real_product,
    scale,
    scaled_rates,
    zoh_input,
)
from _state_update_operands import (
    HAS_ACCEPTED,
    HAS_BIAS,
    HAS_D,
    HAS_GATE,
    HAS_INTERMEDIATE,
    HAS_SOURCE,
    HAS_TARGET,
    HAS_Z,
    SOFTPLUS,
    TIED,
    UPDATE,
    ZOH,
    along,
    decoded,
    decoded_parts,
    dtype_code,
    is_padding,
    load_bits,
    load_parts,
    load_state,
    row,
    store_state,
    widened_state,
)
from _state_update_plain import state_update_plain_kernel
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.language import debug_barrier

from tools.aot.spec import Config, Kernel


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
    source,
    target,
    accepted,
    out,
    intermediate,
    partial,
    heads,
    dim,
    N,
    group_heads,
    slots,
    steps,
    pad,
    state_slot,
    state_head,
    state_channel,
    state_n,
    x_batch,
    x_step,
    x_head,
    x_channel,
    dt_batch,
    dt_step,
    dt_head,
    dt_channel,
    z_batch,
    z_step,
    z_head,
    z_channel,
    out_batch,
    out_step,
    out_head,
    out_channel,
    intermediate_batch,
    intermediate_step,
    intermediate_head,
    intermediate_channel,
    intermediate_n,
    A_head,
    A_channel,
    A_n,
    A_part,
    A_tied,
    B_batch,
    B_step,
    B_group,
    B_n,
    B_part,
    C_batch,
    C_step,
    C_group,
    C_n,
    C_part,
    D_head,
    D_channel,
    bias_head,
    bias_channel,
    gate_batch,
    gate_step,
    gate_n,
    source_batch,
    target_batch,
    accepted_batch,
    flags,
    COMPLEX: gl.constexpr,
    ROWS: gl.constexpr,
    MANY: gl.constexpr,
    STATES: gl.constexpr,
    CHANNELS: gl.constexpr,
):
    LANES: gl.constexpr = STATES // 4
    X: gl.constexpr = gl.BlockedLayout([1, 4], [32 // LANES, LANES], [gl.num_warps(), 1], [1, 0])
    # What there is one of per channel is computed once, not by every lane that holds states of the channel.
    P: gl.constexpr = gl.BlockedLayout([1], [32], [gl.num_warps()], [0])
    if not MANY:
        steps = 1
    if ROWS and STATES == 16:
        # The only multiple of 16 that this config is picked for: no mask, one pass.
        N = 16
    blocks = gl.cdiv(dim, CHANNELS)
    block = gl.program_id(0) % blocks
    row_of_heads = gl.program_id(0) // blocks
    head = row_of_heads % heads
    group = (head // group_heads).to(gl.int64)
    head = head.to(gl.int64)
    batch = (row_of_heads // heads).to(gl.int64)
    begin = (block * CHANNELS).to(gl.int64)
    channel = gl.arange(0, CHANNELS, P)
    valid = channel < dim - block * CHANNELS

    slot = batch
    padding = slot < 0
    if (flags & HAS_SOURCE) != 0:
        slot = gl.load(source + batch * source_batch).to(gl.int64)
        padding = is_padding(slot, slots, pad)
    at_out = out + batch * out_batch + head * out_head + begin * out_channel
    at_out = at_out + along(channel, out_channel, ROWS)
    if padding:
        # The output is 0 and no state is touched.
        zero = narrowed(gl.full([CHANNELS], 0.0, gl.float32, P), out.dtype.element_ty, flags)
        for t in range(0, steps):
            gl.store(at_out + t.to(gl.int64) * out_step, zero, valid)
    else:
        # The state is stored after `last` steps, or never if that is negative.
        last = steps
        to = slot
        if (flags & HAS_ACCEPTED) != 0:
            last = gl.minimum(gl.maximum(gl.load(accepted + batch * accepted_batch), 0), steps)
        if (flags & HAS_TARGET) != 0:
            to = gl.load(target + batch * target_batch).to(gl.int64)
            last = gl.where(is_padding(to, slots, pad), -1, last)
        if (flags & UPDATE) == 0:
            last = -1

        at_x = x + batch * x_batch + head * x_head + begin * x_channel
        at_x = at_x + along(channel, x_channel, ROWS)
        at_dt = dt + batch * dt_batch + head * dt_head + begin * dt_channel
        at_dt = at_dt + along(channel, dt_channel, ROWS)
        at_z = z + batch * z_batch + head * z_head + begin * z_channel
        at_z = at_z + along(channel, z_channel, ROWS)
        valid_z = valid & ((flags & HAS_Z) != 0)
        at_partial = partial + (batch * steps * heads + head) * dim + begin + channel
        y = gl.full([CHANNELS], 0.0, gl.float32, P)
        row_channel = gl.arange(0, CHANNELS, gl.SliceLayout(1, X))
        valid_row = row_channel < dim - block * CHANNELS
        own = along(row_channel, state_channel, ROWS)
        own_A = along(row_channel, A_channel, ROWS)
        at_source = state + slot * state_slot + head * state_head + begin * state_channel
        at_target = state + to * state_slot + head * state_head + begin * state_channel
        A_begin = head * A_head + begin * A_channel
        # One pass over the steps for each tile of states; without states there is one pass all the same.
        for first in range(0, gl.maximum(N, 1), STATES):
            n = first + gl.arange(0, STATES, gl.SliceLayout(0, X))
            inside_n = n < N
            if ROWS:
                # Rows of states are contiguous and aligned.
                at_n = n
                at_intermediate_n = n
                at_A_n = n
                at_B = batch * B_batch + group * B_group + n
                at_C = batch * C_batch + group * C_group + n
                at_gate = batch * gate_batch + n
            else:
                at_n = n.to(gl.int64) * state_n
                at_intermediate_n = n.to(gl.int64) * intermediate_n
                at_A_n = n.to(gl.int64) * A_n
                at_B = batch * B_batch + group * B_group + n.to(gl.int64) * B_n
                at_C = batch * C_batch + group * C_group + n.to(gl.int64) * C_n
                at_gate = batch * gate_batch + n.to(gl.int64) * gate_n
            inside = valid_row[:, None] & inside_n[None, :]
            at_state = own[:, None] + at_n[None, :]
            h = load_state(at_source + at_state, inside, COMPLEX)
            inside_gate = inside_n & ((flags & HAS_GATE) != 0)
            x_next = gl.load(at_x, valid, 0)
            dt_next = gl.load(at_dt, valid, 0)
            bias = load_bits(
                dt_bias,
                head * bias_head + begin * bias_channel + along(channel, bias_channel, ROWS),
                valid & ((flags & HAS_BIAS) != 0),
                dtype_code(flags, 4),
            )
            z_next = gl.load(at_z, valid_z, 0)
            skip = load_bits(
                D_skip,
                head * D_head + begin * D_channel + along(channel, D_channel, ROWS),
                valid & ((flags & HAS_D) != 0),
                dtype_code(flags, 3),
            )
            if ROWS:
                A_rows = A.to(gl.pointer_type(gl.float32), bitcast=True)
                if (flags & TIED) != 0:
                    rates = gl.load(A_rows + head * A_tied) + gl.full([CHANNELS, STATES], 0.0, gl.float32, X)
                else:
                    rates = gl.load(A_rows + A_begin + (own_A[:, None] + at_A_n[None, :]), inside, 0.0)
                A_value = (rates,)
            else:
                at_A = A_begin + (own_A[:, None] + at_A_n[None, :])
                A_value = decoded_parts(
                    load_parts(A, at_A, A_part, inside, flags, 0, COMPLEX), flags, 0, COMPLEX
                )
            # Before the first step: what goes from one slot to another without a step.
            h = widened_state(h, flags, COMPLEX)
            if (last == 0) & (to != slot):
                store_state(at_target + at_state, h, inside, flags, COMPLEX)

            for t in range(0, steps):
                wide_t = t.to(gl.int64)
                value = widened(x_next, flags)
                step = widened(dt_next, flags) + decoded(bias, dtype_code(flags, 4))
                zv = widened(z_next, flags)
                b = load_parts(B, at_B + wide_t * B_step, B_part, inside_n, flags, 1, COMPLEX)
                c = load_parts(C, at_C + wide_t * C_step, C_part, inside_n, flags, 2, COMPLEX)
                g = load_bits(gate, at_gate + wide_t * gate_step, inside_gate, dtype_code(flags, 5))
                if MANY:  # noqa: SIM102 - the compiler's choice, then the device's
                    if t + 1 < steps:
                        # The next step's channels are on their way while this step is computed.
                        x_next = gl.load(at_x + (wide_t + 1) * x_step, valid, 0)
                        dt_next = gl.load(at_dt + (wide_t + 1) * dt_step, valid, 0)
                        z_next = gl.load(at_z + (wide_t + 1) * z_step, valid_z, 0)
                b = row(decoded_parts(b, flags, 1, COMPLEX), COMPLEX)
                c = row(decoded_parts(c, flags, 2, COMPLEX), COMPLEX)
                g = decoded(g, dtype_code(flags, 5))[None, :]
                if (flags & SOFTPLUS) != 0:
                    step = softplus(step)
                dt_tile = gl.convert_layout(step, gl.SliceLayout(1, X))[:, None]
                a = exponential(dt_tile, scaled_rates(A_value, COMPLEX), COMPLEX)
                if (flags & ZOH) != 0:
                    phi = zoh_input(a, dt_tile, A_value, inverse(A_value, COMPLEX), COMPLEX)
                    x_tile = gl.convert_layout(value, gl.SliceLayout(1, X))[:, None]
                    inflow = scale(multiply(phi, b, COMPLEX), x_tile, COMPLEX)
                else:
                    x_tile = gl.convert_layout(step * value, gl.SliceLayout(1, X))[:, None]
                    inflow = scale(b, x_tile, COMPLEX)
                if (flags & HAS_GATE) != 0:
                    a = scale(a, g, COMPLEX)
                h = add(multiply(a, h, COMPLEX), inflow, COMPLEX)
                if t + 1 == last:
                    store_state(at_target + at_state, h, inside, flags, COMPLEX)
                if (flags & HAS_INTERMEDIATE) != 0:
                    at = intermediate + batch * intermediate_batch + wide_t * intermediate_step
                    at = at + head * intermediate_head + begin * intermediate_channel
                    own_intermediate = along(row_channel, intermediate_channel, ROWS)
                    at_row = own_intermediate[:, None] + at_intermediate_n[None, :]
                    store_state(at + at_row, h, inside, flags, COMPLEX)
                # What earlier tiles of states gave to y is in registers, or of many steps in memory.
                if MANY:
                    y = gl.load(at_partial + wide_t * heads * dim, valid & (first > 0), 0.0)
                read = gl.convert_layout(gl.sum(real_product(c, h, COMPLEX), 1), P)
                y += read * (2.0 if COMPLEX else 1.0)
                if first + STATES < N:
                    if MANY:
                        gl.store(at_partial + wide_t * heads * dim, y, valid)
                else:
                    result = y + value * decoded(skip, dtype_code(flags, 3))
                    if (flags & HAS_Z) != 0:
                        result *= zv * sigmoid(zv)
                    gl.store(at_out + wide_t * out_step, narrowed(result, out.dtype.element_ty, flags), valid)
            if MANY:  # noqa: SIM102
                if first + STATES < N:
                    # One thread of those that hold a channel stored what all of them load in the next pass.
                    debug_barrier()


_STRIDES = [
    *("state_slot", "state_head", "state_channel", "state_n"),
    *(f"{name}_{dim}" for name in ("x", "dt", "z", "out") for dim in ("batch", "step", "head", "channel")),
    *("intermediate_batch", "intermediate_step", "intermediate_head"),
    *("intermediate_channel", "intermediate_n", "A_head", "A_channel", "A_n", "A_part", "A_tied"),
    *(f"{name}_{dim}" for name in ("B", "C") for dim in ("batch", "step", "group", "n", "part")),
    *("D_head", "D_channel", "bias_head", "bias_channel", "gate_batch", "gate_step", "gate_n"),
    *("source_batch", "target_batch", "accepted_batch"),
]
# With ROWS, everything is contiguous along n, and every row of what is as large as a state begins on such a
# boundary.
_ROWS = [
    *("state", "state_slot", "state_head", "state_channel"),
    *("intermediate", "intermediate_batch", "intermediate_step", "intermediate_head", "intermediate_channel"),
    *("A", "A_head", "A_channel", "N"),
]


def _no_need(values):
    """A complex state is kept in fp32 pairs, which are no rows of numbers; rows of states in half precision
    beside a sequence in fp32 are not worth an image.
    """
    if values["COMPLEX"] and (values["S"] != "f32" or values["ROWS"]):
        return True
    return values["ROWS"] and values["S"] not in ("f32", values["T"])


KERNELS = [
    Kernel(
        state_update_kernel,
        args={
            **dict.fromkeys(("x", "dt", "z", "out"), "*T"),
            **dict.fromkeys(("A", "B", "C", "D_skip", "dt_bias", "gate"), "*u8"),
            **dict.fromkeys(("state", "intermediate"), "*S"),
            **dict.fromkeys(("source", "target", "accepted"), "*i32"),
            **dict.fromkeys(_STRIDES, "i64"),
            **dict.fromkeys(("heads", "dim", "N", "group_heads", "steps", "flags"), "i32"),
            **dict(partial="*f32", slots="i64", pad="i64"),
        },
        axes=dict(T=["f32", "half"], S=["f32", "half"], COMPLEX=[False, True], ROWS=[False, True]),
        skip=_no_need,
        aligned=lambda values: _ROWS if values["ROWS"] else [],
        shape=["N", "L"],
        configs=[
            Config("states16", when="ROWS and N <= 16", MANY=False, STATES=16, CHANNELS=128, num_warps=4),
            Config("states128", when="ROWS and L == 1", MANY=False, STATES=128, CHANNELS=16, num_warps=4),
            Config("steps", when="ROWS", MANY=True, STATES=128, CHANNELS=16, num_warps=4),
            Config("any", when="L == 1", MANY=False, STATES=16, CHANNELS=32, num_warps=4, maxnreg=128),
            Config("any_steps", MANY=True, STATES=16, CHANNELS=32, num_warps=4),
        ],
    ),
    Kernel(
        state_update_plain_kernel,
        args={
            **dict.fromkeys(("x", "dt", "z", "out"), "*T"),
            **dict.fromkeys(("B", "C", "D_skip", "dt_bias"), "*u8"),
            **dict.fromkeys(("state", "A"), "*f32"),
            **dict(source="*i32", source_batch="i64", slots="i64", pad="i64", dim="i32", flags="i32"),
            **dict.fromkeys(("state_slot", "x_batch", "dt_batch", "z_batch", "out_batch"), "i64"),
            **dict.fromkeys(("B_batch", "C_batch"), "i64"),
            **dict.fromkeys(("state_channel", "A_channel"), "i32"),
        },
        axes=dict(T=["f32", "half"]),
        aligned=lambda _: ["state", "A", "state_slot", "state_channel", "A_channel"],
        configs=[Config("only", CHANNELS=64, num_warps=4)],
    ),
]
