"""Selective scan, forward and backward (Mamba paper 2312.00752, Algorithm 2; gate and ZOH as in docs/architecture.md).

One program owns a block of channels of one batch entry and walks over time in tiles [SEGMENTS, STEPS, CHANNELS].
The state crosses tiles through `carry`, a small buffer that stays in cache, so any number of states takes the same code.
"""

from _arithmetic import prefetch, sigmoid, softplus
from _recurrence import (
    add,
    collect,
    conjugate,
    expand,
    euler_input,
    exponential,
    inverse,
    multiply,
    multiply_conjugate,
    pick,
    publish,
    real_product,
    real_product_conjugate,
    scale,
    scaled_rates,
    scan,
    scan_backward,
    total,
    where,
    zoh_input,
    zoh_input_by_rate,
)
from _registers import earlier, later
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from tools.aot.spec import Config, Kernel

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
def selective_scan_fwd_kernel(
    u,
    delta,
    z,
    out,
    A,
    B,
    C,
    gate,
    D_skip,
    delta_bias,
    initial_state,
    last_state,
    carry,
    chunk_states,
    D,
    L,
    N,
    groups,
    padded_length,
    u_batch,
    u_channel,
    u_time,
    delta_batch,
    delta_channel,
    delta_time,
    z_batch,
    z_channel,
    z_time,
    out_batch,
    out_channel,
    out_time,
    flags,
    COMPLEX: gl.constexpr,
    GENERAL: gl.constexpr,
    LAYOUT: gl.constexpr,
    SEGMENTS: gl.constexpr,
    STEPS: gl.constexpr,
    CHANNELS: gl.constexpr,
):
    X: gl.constexpr = gl.BlockedLayout(
        [1, STEPS, 1],
        [SEGMENTS, 1, 32 // SEGMENTS],
        [1, 1, gl.num_warps()],
        [1, 0, 2] if LAYOUT == "seq" else [1, 2, 0],
    )
    SEGMENT: gl.constexpr = gl.SliceLayout(1, gl.SliceLayout(2, X))
    STEP: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(2, X))
    CHANNEL: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(1, X))
    TILE: gl.constexpr = SEGMENTS * STEPS
    PARTS: gl.constexpr = 2 if COMPLEX else 1
    if LAYOUT == "seq":
        u_time = 1
        delta_time = 1
        z_time = 1
        out_time = 1

    blocks_per_group = gl.cdiv(D // groups, CHANNELS)
    block = gl.program_id(0) % (groups * blocks_per_group)
    batch = (gl.program_id(0) // (groups * blocks_per_group)).to(gl.int64)
    group = block // blocks_per_group
    in_group = (block % blocks_per_group) * CHANNELS + gl.arange(0, CHANNELS, CHANNEL)
    channel = group * (D // groups) + in_group
    valid = in_group < D // groups
    segment = gl.arange(0, SEGMENTS, SEGMENT)
    row_segment = gl.arange(0, SEGMENTS, gl.SliceLayout(1, gl.SliceLayout(1, X)))
    step = gl.arange(0, STEPS, STEP)
    first = (step == 0)[None, :, None]
    last = (step == STEPS - 1)[None, :, None]

    u += batch * u_batch
    delta += batch * delta_batch
    z += batch * z_batch
    out += batch * out_batch
    D_value = gl.load(D_skip + channel, valid & ((flags & HAS_D) != 0), 0.0)[None, None, :]
    bias = gl.load(delta_bias + channel, valid & ((flags & HAS_BIAS) != 0), 0.0)[None, None, :]
    input_row = (batch * groups + group) * N
    wide_channel = channel.to(gl.int64)
    state_row = (batch * D + wide_channel) * N * PARTS
    carry_row = batch * N * PARTS * D + wide_channel
    A_at = A + wide_channel * N * PARTS
    slots = gl.allocate_shared_memory(
        gl.float32, [2 * PARTS, SEGMENTS, CHANNELS], gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    )

    for start in range(0, L, TILE):
        time = start + segment[:, None] * STEPS + step[None, :]
        inside = (time < L)[:, :, None] & valid[None, None, :]
        gated = (time < L) & ((flags & HAS_GATE) != 0)
        wide_time = time.to(gl.int64)[:, :, None]
        x = gl.load(u + wide_time * u_time + (wide_channel * u_channel)[None, None, :], inside, 0.0).to(gl.float32)
        dt = gl.load(delta + wide_time * delta_time + (wide_channel * delta_channel)[None, None, :], inside, 0.0)
        dt = dt.to(gl.float32) + bias
        if (flags & SOFTPLUS) != 0:
            dt = softplus(dt)
        # A step of length 0 leaves the state alone: so do the steps past the end.
        dt = gl.where(inside, dt, 0.0)
        elapsed = gl.sum(dt, 1)
        y = D_value * x
        dtx = dt * x

        # The state comes from initial_state before the first tile and goes to last_state after the final one.
        opening = start == 0
        closing = start + TILE >= L
        source = gl.where(opening, initial_state + state_row, carry + carry_row)
        source_step = gl.where(opening, PARTS, PARTS * D)
        source_plane = gl.where(opening, 1, D)
        source_valid = valid & ((start > 0) | ((flags & HAS_STATE) != 0))
        target = gl.where(closing, last_state + state_row, carry + carry_row)
        target_step = gl.where(closing, PARTS, PARTS * D)
        target_plane = gl.where(closing, 1, D)
        saved = chunk_states + (batch * gl.cdiv(L, CHUNK) + start // CHUNK) * N * PARTS * D + wide_channel
        saving = valid & ((flags & SAVE_CHUNKS) != 0) & (start % CHUNK == 0)

        # What state n + 1 needs is on its way while state n is worked on.
        next_h = load_state(source, 0, source_plane, source_valid & (N > 0), COMPLEX)
        next_A = load_state(A_at, 0, 1, valid & (N > 0), COMPLEX)
        next_b = load_steps(B, input_row, time, padded_length, N > 0, COMPLEX)
        next_c = load_steps(C, input_row, time, padded_length, N > 0, COMPLEX)
        for n in range(N):
            h, A_row, b, c = next_h, next_A, next_b, next_c
            m = gl.minimum(n + 1, N - 1)
            next_h = load_state(source, m * source_step, source_plane, source_valid, COMPLEX)
            next_A = load_state(A_at, m * PARTS, 1, valid, COMPLEX)
            next_b = load_steps(B, input_row + m, time, padded_length, N > 0, COMPLEX)
            next_c = load_steps(C, input_row + m, time, padded_length, N > 0, COMPLEX)
            store_state(saved, n * PARTS * D, D, h, saving, COMPLEX)
            A_row = expand(A_row, 0, COMPLEX)
            decay = exponential(elapsed, scaled_rates(A_row, COMPLEX), COMPLEX)
            A_value = expand(A_row, 1, COMPLEX)
            a = exponential(dt, scaled_rates(A_value, COMPLEX), COMPLEX)
            if GENERAL:
                if (flags & ZOH) != 0:
                    phi = zoh_input(a, dt, A_value, inverse(A_value, COMPLEX), COMPLEX)
                else:
                    phi = euler_input(dt, COMPLEX)
                kick = scale(multiply(phi, b, COMPLEX), x, COMPLEX)
                g = gl.load(gate + (batch * N + n) * padded_length + time, mask=gated, other=1.0)
                a = scale(a, gl.expand_dims(g, 2), COMPLEX)
                g = gl.convert_layout(gl.reduce(g, 1, _product), gl.SliceLayout(1, gl.SliceLayout(1, X)))
                decay = scale(decay, gl.expand_dims(g, 1), COMPLEX)
            else:
                kick = scale(b, dtx, COMPLEX)

            if SEGMENTS == 1:
                entering = expand(h, 0, COMPLEX)
            else:
                publish(slots, pick(scan(a, kick, COMPLEX), last, COMPLEX), decay, COMPLEX)
                entering, h = collect(slots, h, row_segment, False, COMPLEX)
            opened = add(kick, multiply(a, expand(entering, 1, COMPLEX), COMPLEX), COMPLEX)
            states = scan(a, where(first, opened, kick, COMPLEX), COMPLEX)
            if SEGMENTS == 1:
                h = total(pick(states, last, COMPLEX), 0, COMPLEX)
            if COMPLEX:
                y += 2.0 * real_product(c, states, COMPLEX)
            else:
                y += real_product(c, states, COMPLEX)
            store_state(target, n * target_step, target_plane, h, valid, COMPLEX)

        if (flags & HAS_Z) != 0:
            zv = gl.load(z + wide_time * z_time + (wide_channel * z_channel)[None, None, :], inside, 0.0)
            zv = zv.to(gl.float32)
            y *= zv * sigmoid(zv)
        gl.store(
            out + wide_time * out_time + (wide_channel * out_channel)[None, None, :],
            y.to(out.dtype.element_ty),
            inside,
        )


@gluon.jit
def selective_scan_bwd_kernel(
    dout,
    u,
    delta,
    z,
    A,
    B,
    C,
    gate,
    D_skip,
    delta_bias,
    chunk_states,
    dlast_state,
    du,
    ddelta,
    dz,
    dA,
    dB,
    dC,
    dgate,
    dD,
    ddelta_bias,
    dinitial_state,
    carry,
    D,
    L,
    N,
    groups,
    padded_length,
    chunk_begin,
    chunk_end,
    partial_length,
    dout_batch,
    dout_channel,
    dout_time,
    u_batch,
    u_channel,
    u_time,
    delta_batch,
    delta_channel,
    delta_time,
    z_batch,
    z_channel,
    z_time,
    du_batch,
    du_channel,
    du_time,
    ddelta_batch,
    ddelta_channel,
    ddelta_time,
    dz_batch,
    dz_channel,
    dz_time,
    flags,
    COMPLEX: gl.constexpr,
    GENERAL: gl.constexpr,
    LAYOUT: gl.constexpr,
    SEGMENTS: gl.constexpr,
    STEPS: gl.constexpr,
    CHANNELS: gl.constexpr,
):
    """Walks chunks [chunk_begin, chunk_end) from last to first: states are computed again from the saved one, adjoints
    run against time.

    dA, dD, ddelta_bias are sums over these chunks (one row per batch entry); dB, dC, dgate are sums over this block's
    channels (one plane per block). csrc/ops/selective_scan.cpp adds the rows and planes in a fixed order.
    """
    X: gl.constexpr = gl.BlockedLayout(
        [1, STEPS, 1],
        [SEGMENTS, 1, 32 // SEGMENTS],
        [1, 1, gl.num_warps()],
        [1, 0, 2] if LAYOUT == "seq" else [1, 2, 0],
    )
    SEGMENT: gl.constexpr = gl.SliceLayout(1, gl.SliceLayout(2, X))
    STEP: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(2, X))
    CHANNEL: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(1, X))
    PARTS: gl.constexpr = 2 if COMPLEX else 1
    gl.static_assert(SEGMENTS * STEPS == CHUNK, "a tile is a chunk: its first state was saved")
    if LAYOUT == "seq":
        dout_time = 1
        u_time = 1
        delta_time = 1
        z_time = 1
        du_time = 1
        ddelta_time = 1
        dz_time = 1

    blocks_per_group = gl.cdiv(D // groups, CHANNELS)
    block = gl.program_id(0) % (groups * blocks_per_group)
    batch = (gl.program_id(0) // (groups * blocks_per_group)).to(gl.int64)
    batches = gl.num_programs(0) // (groups * blocks_per_group)
    group = block // blocks_per_group
    block_in_group = block % blocks_per_group
    in_group = block_in_group * CHANNELS + gl.arange(0, CHANNELS, CHANNEL)
    channel = group * (D // groups) + in_group
    valid = in_group < D // groups
    segment = gl.arange(0, SEGMENTS, SEGMENT)
    row_segment = gl.arange(0, SEGMENTS, gl.SliceLayout(1, gl.SliceLayout(1, X)))
    step = gl.arange(0, STEPS, STEP)
    first = (step == 0)[None, :, None]
    last = (step == STEPS - 1)[None, :, None]

    wide_channel = channel.to(gl.int64)
    dout += batch * dout_batch + (wide_channel * dout_channel)[None, None, :]
    u += batch * u_batch + (wide_channel * u_channel)[None, None, :]
    delta += batch * delta_batch + (wide_channel * delta_channel)[None, None, :]
    z += batch * z_batch + (wide_channel * z_channel)[None, None, :]
    du += batch * du_batch + (wide_channel * du_channel)[None, None, :]
    ddelta += batch * ddelta_batch + (wide_channel * ddelta_channel)[None, None, :]
    dz += batch * dz_batch + (wide_channel * dz_channel)[None, None, :]
    D_value = gl.load(D_skip + channel, valid & ((flags & HAS_D) != 0), 0.0)[None, None, :]
    bias = gl.load(delta_bias + channel, valid & ((flags & HAS_BIAS) != 0), 0.0)[None, None, :]
    input_row = (batch * groups + group) * N
    partial_row = ((block_in_group * batches + batch) * groups + group) * N
    gate_row = (block * batches + batch) * N
    state_row = (batch * D + wide_channel) * N * PARTS
    carry_row = batch * N * PARTS * D + wide_channel
    A_at = A + wide_channel * N * PARTS
    SHARED: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    state_slots = gl.allocate_shared_memory(gl.float32, [2 * PARTS, SEGMENTS, CHANNELS], SHARED)
    adjoint_slots = gl.allocate_shared_memory(gl.float32, [2 * PARTS, SEGMENTS, CHANNELS], SHARED)
    dD_sum = gl.full([SEGMENTS, CHANNELS], 0.0, gl.float32, gl.SliceLayout(1, X))
    bias_sum = gl.full([SEGMENTS, CHANNELS], 0.0, gl.float32, gl.SliceLayout(1, X))

    chunks = gl.cdiv(L, CHUNK)
    for back in range(0, chunk_end - chunk_begin):
        chunk = chunk_end - 1 - back
        segment_start = chunk * CHUNK + segment * STEPS
        time = segment_start[:, None] + step[None, :]
        partial_time = time - chunk_begin * CHUNK
        in_time = time < L
        inside = in_time[:, :, None] & valid[None, None, :]
        gated = in_time & ((flags & HAS_GATE) != 0)
        wide_time = time.to(gl.int64)[:, :, None]
        x = gl.load(u + wide_time * u_time, inside, 0.0).to(gl.float32)
        dt = gl.load(delta + wide_time * delta_time, inside, 0.0).to(gl.float32) + bias
        if (flags & SOFTPLUS) != 0:
            dt = softplus(dt)
        dt = gl.where(inside, dt, 0.0)
        dy = gl.load(dout + wide_time * dout_time, inside, 0.0).to(gl.float32)
        if (flags & HAS_Z) != 0:
            zv = gl.load(z + wide_time * z_time, inside, 0.0).to(gl.float32)
            dy *= zv * sigmoid(zv)
        elapsed = gl.sum(dt, 1)
        dtx = dt * x
        y = D_value * x
        dx = D_value * dy
        ddt = gl.full_like(dt, 0.0)
        dD_sum += gl.sum(dy * x, 1)
        if COMPLEX:
            output_scale = 2.0 * dy
        else:
            output_scale = dy

        opening = chunk == chunks - 1
        closing = chunk == 0
        source = gl.where(opening, dlast_state + state_row, carry + carry_row)
        source_step = gl.where(opening, PARTS, PARTS * D)
        source_plane = gl.where(opening, 1, D)
        source_valid = valid & ((chunk < chunks - 1) | ((flags & HAS_STATE) != 0))
        target = gl.where(closing, dinitial_state + state_row, carry + carry_row)
        target_step = gl.where(closing, PARTS, PARTS * D)
        target_plane = gl.where(closing, 1, D)
        saved = chunk_states + (batch * chunks + chunk) * N * PARTS * D + wide_channel

        # What state n + 1 needs first is on its way while state n is worked on: A into a register, the long rows
        # into L1, for no registers are left to hold them.
        next_A = load_state(A_at, 0, 1, valid & (N > 0), COMPLEX)
        for n in range(N):
            A_row = expand(next_A, 0, COMPLEX)
            m = gl.minimum(n + 1, N - 1)
            prefetch_steps(B, input_row + m, segment_start, padded_length, COMPLEX)
            prefetch_steps(C, input_row + m, segment_start, padded_length, COMPLEX)
            b = load_steps(B, input_row + n, time, padded_length, N > 0, COMPLEX)
            c = load_steps(C, input_row + n, time, padded_length, N > 0, COMPLEX)
            h = load_state(saved, n * PARTS * D, D, valid, COMPLEX)
            mu = load_state(source, n * source_step, source_plane, source_valid, COMPLEX)
            rate_sum = load_state(dA + carry_row, n * PARTS * D, D, valid & (back > 0), COMPLEX)
            next_A = load_state(A_at, m * PARTS, 1, valid, COMPLEX)
            decay = exponential(elapsed, scaled_rates(A_row, COMPLEX), COMPLEX)
            A_value = expand(A_row, 1, COMPLEX)
            e = exponential(dt, scaled_rates(A_value, COMPLEX), COMPLEX)
            a = e
            if GENERAL:
                inverse_A = inverse(A_value, COMPLEX)
                if (flags & ZOH) != 0:
                    phi = zoh_input(e, dt, A_value, inverse_A, COMPLEX)
                else:
                    phi = euler_input(dt, COMPLEX)
                kick = scale(multiply(phi, b, COMPLEX), x, COMPLEX)
                g = gl.load(gate + (batch * N + n) * padded_length + time, mask=gated, other=1.0)
                a = scale(e, gl.expand_dims(g, 2), COMPLEX)
                g = gl.convert_layout(gl.reduce(g, 1, _product), gl.SliceLayout(1, gl.SliceLayout(1, X)))
                decay = scale(decay, gl.expand_dims(g, 1), COMPLEX)
            else:
                kick = scale(b, dtx, COMPLEX)
            dh = scale(conjugate(c, COMPLEX), output_scale, COMPLEX)
            # A step passes conj(a) times its adjoint to the step before it.
            a_conj = conjugate(a, COMPLEX)
            a_next = later_steps(a_conj, COMPLEX)

            publish(state_slots, pick(scan(a, kick, COMPLEX), last, COMPLEX), decay, COMPLEX)
            adjoint = scan_backward(a_next, dh, COMPLEX)
            end = pick(multiply(a_conj, adjoint, COMPLEX), first, COMPLEX)
            publish(adjoint_slots, end, conjugate(decay, COMPLEX), COMPLEX)
            entering, _ = collect(state_slots, h, row_segment, False, COMPLEX)
            returning, mu = collect(adjoint_slots, mu, row_segment, True, COMPLEX)

            entering = expand(entering, 1, COMPLEX)
            opened = add(kick, multiply(a, entering, COMPLEX), COMPLEX)
            states = scan(a, where(first, opened, kick, COMPLEX), COMPLEX)
            before = where(first, entering, earlier_steps(states, COMPLEX), COMPLEX)
            closed = add(dh, expand(returning, 1, COMPLEX), COMPLEX)
            adjoint = scan_backward(a_next, where(last, closed, dh, COMPLEX), COMPLEX)

            if COMPLEX:
                y += 2.0 * real_product(c, states, COMPLEX)
            else:
                y += real_product(c, states, COMPLEX)
            through = multiply_conjugate(adjoint, before, COMPLEX)
            p = multiply_conjugate(through, a, COMPLEX)
            ddt += real_product_conjugate(p, A_value, COMPLEX)
            into = multiply_conjugate(adjoint, b, COMPLEX)
            if GENERAL:
                dx += real_product_conjugate(into, phi, COMPLEX)
                dphi = scale(into, x, COMPLEX)
                phi_x = scale(phi, x, COMPLEX)
                dB_tile = multiply_conjugate(adjoint, phi_x, COMPLEX)
                if (flags & ZOH) != 0:
                    ddt += real_product_conjugate(dphi, e, COMPLEX)
                    by_rate = zoh_input_by_rate(e, phi, dt, A_value, inverse_A, COMPLEX)
                    rates = add(scale(p, dt, COMPLEX), multiply_conjugate(dphi, by_rate, COMPLEX), COMPLEX)
                else:
                    ddt += dphi[0]
                    rates = scale(p, dt, COMPLEX)
                dg = gl.sum(real_product_conjugate(through, e, COMPLEX), 2)
                gl.store(dgate + (gate_row + n) * partial_length + partial_time, dg, gated)
            else:
                dx += into[0] * dt
                ddt += into[0] * x
                dB_tile = scale(adjoint, dtx, COMPLEX)
                rates = scale(p, dt, COMPLEX)
            rate_sum = add(rate_sum, total(total(rates, 1, COMPLEX), 0, COMPLEX), COMPLEX)
            store_state(dA + carry_row, n * PARTS * D, D, rate_sum, valid, COMPLEX)
            store_state(target, n * target_step, target_plane, mu, valid, COMPLEX)
            store_steps(dB, partial_row + n, partial_time, partial_length, total(dB_tile, 2, COMPLEX), COMPLEX)
            dC_tile = scale(conjugate(states, COMPLEX), output_scale, COMPLEX)
            store_steps(dC, partial_row + n, partial_time, partial_length, total(dC_tile, 2, COMPLEX), COMPLEX)

        if (flags & SOFTPLUS) != 0:
            raw = gl.load(delta + wide_time * delta_time, inside, 0.0).to(gl.float32) + bias
            ddt *= sigmoid(raw)
        # An adjoint of the last state passes through the padding, where there is no delta to take a gradient of.
        ddt = gl.where(inside, ddt, 0.0)
        bias_sum += gl.sum(ddt, 1)
        if (flags & HAS_Z) != 0:
            zv = gl.load(z + wide_time * z_time, inside, 0.0).to(gl.float32)
            s = sigmoid(zv)
            upstream = gl.load(dout + wide_time * dout_time, inside, 0.0).to(gl.float32)
            slope = upstream * y * s * (1.0 + zv * (1.0 - s))
            gl.store(dz + wide_time * dz_time, slope.to(dz.dtype.element_ty), inside)
        gl.store(du + wide_time * du_time, dx.to(du.dtype.element_ty), inside)
        gl.store(ddelta + wide_time * ddelta_time, ddt.to(ddelta.dtype.element_ty), inside)

    gl.store(dD + batch * D + channel, gl.sum(dD_sum, 0), valid)
    gl.store(ddelta_bias + batch * D + channel, gl.sum(bias_sum, 0), valid)


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
def _product(x, y):
    return x * y



def _aligned(values: dict, tensors: list[str]) -> list[str]:
    """What the driver promises to be a multiple of 16 when all rows are contiguous: 16-byte loads follow from it."""
    if values["LAYOUT"] != "seq":
        return []
    return [*tensors, "L", *(f"{t}_{axis}" for t in tensors for axis in ("batch", "channel"))]


_AXES = dict(T=["f32", "f16", "bf16"], COMPLEX=[False, True], GENERAL=[False, True], LAYOUT=["seq", "strided"])
_SIZES = dict(D="i32", L="i32", N="i32", groups="i32", padded_length="i64")
_FORWARD = ["u", "delta", "z", "out"]
_BACKWARD = ["dout", "u", "delta", "z", "du", "ddelta", "dz"]


def _tensors(names: list[str]) -> dict[str, str]:
    strides = {f"{t}_{axis}": "i64" for t in names for axis in ("batch", "channel", "time")}
    return {**{t: "*T" for t in names}, **strides}


def _buffers(*names: str) -> dict[str, str]:
    return {name: "*f32" for name in names}


KERNELS = [
    Kernel(
        selective_scan_fwd_kernel,
        args={
            **_tensors(_FORWARD),
            **_buffers("A", "B", "C", "gate", "D_skip", "delta_bias"),
            **_buffers("initial_state", "last_state", "carry", "chunk_states"),
            **_SIZES,
            "flags": "i32",
        },
        axes=_AXES,
        aligned=lambda values: [*_aligned(values, _FORWARD), "B", "C", "gate", "padded_length"],
        shape=["B", "D", "L"],
        configs=[
            Config("pairs", when="COMPLEX", SEGMENTS=8, STEPS=8, CHANNELS=4, num_warps=1),
            Config("lanes4", SEGMENTS=4, STEPS=16, CHANNELS=8, num_warps=1),
        ],
    ),
    Kernel(
        selective_scan_bwd_kernel,
        args={
            **_tensors(_BACKWARD),
            **_buffers("A", "B", "C", "gate", "D_skip", "delta_bias", "chunk_states", "dlast_state"),
            **_buffers("dA", "dB", "dC", "dgate", "dD", "ddelta_bias", "dinitial_state", "carry"),
            **_SIZES,
            "chunk_begin": "i32",
            "chunk_end": "i32",
            "partial_length": "i64",
            "flags": "i32",
        },
        axes=_AXES,
        aligned=lambda values: [*_aligned(values, _BACKWARD), "B", "C", "gate", "padded_length"],
        shape=["B", "D", "L"],
        configs=[
            Config("pairs", when="COMPLEX", SEGMENTS=8, STEPS=8, CHANNELS=4, num_warps=1),
            Config("lanes4", SEGMENTS=4, STEPS=16, CHANNELS=8, num_warps=1),
        ],
    ),
]
