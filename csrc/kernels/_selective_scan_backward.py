"""The backward kernel of the selective scan; csrc/kernels/selective_scan.py holds its variant table."""

from _arithmetic import anew, sigmoid, softplus
from _recurrence import (
    add,
    collect,
    conjugate,
    earlier_steps,
    euler_input,
    expand,
    exponential,
    inverse,
    later_steps,
    multiply,
    multiply_conjugate,
    pick,
    product,
    publish,
    real_product,
    real_product_conjugate,
    scale,
    scaled_rates,
    scan,
    scan_backward,
    total,
    where,
    zero_where,
    zoh_input,
    zoh_input_by_rate,
)
from _scan_operands import (
    CHUNK,
    CONSTANT_B,
    CONSTANT_C,
    HAS_BIAS,
    HAS_D,
    HAS_GATE,
    HAS_STATE,
    HAS_Z,
    SOFTPLUS,
    ZOH,
    load_state,
    load_weight,
    prefetch_weight,
    store_state,
    store_weight,
)
from _scan_packing import BY_ENDS, BY_INDEX, load_used, offsets, own_steps, run_until, steps_of, store_own
from triton.experimental import gluon
from triton.experimental.gluon import language as gl


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
    du,
    ddelta,
    dz,
    dA,
    dB,
    dC,
    dgate,
    dD,
    ddelta_bias,
    carry,
    runs,
    D,
    L,
    N,
    groups,
    head_channels,
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
    SEGMENTS: gl.constexpr,
    STEPS: gl.constexpr,
    CHANNELS: gl.constexpr,
):
    """Walks chunks [chunk_begin, chunk_end) from last to first: states are computed again from the saved one,
    adjoints run against time.

    dA, dD, ddelta_bias are sums over these chunks (one row per row of work, dD and ddelta_bias with whole
    blocks of channels), and so are dB and dC of constants; else dB, dC, dgate are sums over this block's
    channels (one plane per block). csrc/ops/selective_scan.cpp adds the rows and planes in a fixed order. A
    plane of dC lies behind each plane of dB. `carry` holds the adjoint of the state, of the last one before
    the first launch if flags say so, of the initial one after the last launch. Behind the states of the
    chunks lie those that sequences begin with which begin inside a chunk.
    """
    X: gl.constexpr = gl.BlockedLayout(
        [1, STEPS, 1], [SEGMENTS, 1, 32 // SEGMENTS], [1, 1, gl.num_warps()], [1, 2, 0]
    )
    SEGMENT: gl.constexpr = gl.SliceLayout(1, gl.SliceLayout(2, X))
    STEP: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(2, X))
    CHANNEL: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(1, X))
    PARTS: gl.constexpr = 2 if COMPLEX else 1
    gl.static_assert(SEGMENTS * STEPS == CHUNK, "a tile is a chunk: its first state was saved")
    blocks_per_group = gl.cdiv(D // groups, CHANNELS)
    block = gl.program_id(0) % (groups * blocks_per_group)
    work = (gl.program_id(0) // (groups * blocks_per_group)).to(gl.int64)
    batches = gl.num_programs(0) // (groups * blocks_per_group)
    batch, first_step, stop = own_steps(runs, work, L, flags)
    batches = gl.where((flags & BY_ENDS) != 0, 1, batches)
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

    dout += batch * dout_batch
    u += batch * u_batch
    delta += batch * delta_batch
    z += batch * z_batch
    input_row = (batch * groups + group) * N
    partial_row = ((block_in_group * 2 * batches + batch) * groups + group) * N
    gate_row = (block * batches + batch) * N
    SHARED: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    state_slots = gl.allocate_shared_memory(gl.float32, [2 * PARTS, SEGMENTS, CHANNELS], SHARED)
    adjoint_slots = gl.allocate_shared_memory(gl.float32, [2 * PARTS, SEGMENTS, CHANNELS], SHARED)

    constant_B = (flags & CONSTANT_B) != 0
    constant_C = (flags & CONSTANT_C) != 0
    chunks = gl.cdiv(L, CHUNK)
    by_index = (flags & BY_INDEX) != 0
    saved_rows = chunks + gl.where(by_index, 1, 0)
    begun_at = chunk_end - 1 + gl.where((flags & (BY_INDEX | BY_ENDS)) != 0, 1, 0)
    fresh_from = chunks - 1
    least = gl.maximum(first_step, chunk_begin * CHUNK)
    until = gl.minimum(stop, chunk_end * CHUNK)
    while until > least:
        chunk = (until - 1) // CHUNK
        begin, live = run_until(runs, batch, until - 1, first_step, L, flags)
        opening = gl.maximum(begin, chunk * CHUNK)
        segment_start = chunk * CHUNK + segment * STEPS
        time = segment_start[:, None] + step[None, :]
        partial_time = time - chunk_begin * CHUNK
        own_time = steps_of(time, opening, until)
        used_channel = valid & live
        used = own_time[:, :, None] & used_channel[None, None, :]
        gated = own_time & ((flags & HAS_GATE) != 0)
        tile_begin = chunk * CHUNK + anew(segment) * STEPS
        row = anew(channel)
        head = row // head_channels
        x = load_used(u + offsets(tile_begin, step, row, u_time, u_channel, "strided"), used, flags)
        bias = gl.load(delta_bias + channel, valid & ((flags & HAS_BIAS) != 0), 0.0)[None, None, :]
        delta_at = delta + offsets(tile_begin, step, head, delta_time, delta_channel, "strided")
        dt = load_used(delta_at, used, flags) + bias
        if (flags & SOFTPLUS) != 0:
            dt = softplus(dt)
        dt = gl.where(used, dt, 0.0)
        dout_at = dout + offsets(tile_begin, step, row, dout_time, dout_channel, "strided")
        dy = load_used(dout_at, used, flags)
        if (flags & HAS_Z) != 0:
            zv = load_used(z + offsets(tile_begin, step, row, z_time, z_channel, "strided"), used, flags)
            dy *= zv * sigmoid(zv)
        elapsed = gl.sum(dt, 1)
        y = gl.full_like(dt, 0.0)
        ddt = gl.full_like(dt, 0.0)
        dx = gl.full_like(dt, 0.0)
        output_scale = 2.0 * dy if COMPLEX else dy

        weights_at = anew(channel).to(gl.int64) * N * PARTS
        states_at = work * D * N * PARTS
        known = valid & ((chunk < fresh_from) | ((flags & HAS_STATE) != 0))
        # A sequence in a batch row that begins inside a chunk begins with zero.
        saved_row = gl.where(opening > chunk * CHUNK, chunks + gl.where(by_index, 0, work), chunk)
        # The adjoint goes on to an earlier sequence through nothing but padding.
        dropped = by_index & (opening == begin) & (live == (begin > 0))
        saved = chunk_states + (batch * saved_rows + saved_row) * D * N * PARTS
        A_at = A + weights_at
        begun = valid & (chunk < begun_at)

        # What state n + 1 needs first is on its way while state n is worked on: A into a register, the long
        # rows into L1, for no registers are left to hold them.
        next_A = load_state(A_at, 0, 1, valid & (N > 0), COMPLEX)
        for n in range(N):
            A_row = expand(next_A, 0, COMPLEX)
            m = gl.minimum(n + 1, N - 1)
            if not COMPLEX:
                prefetch_weight(B, input_row + m, segment_start, padded_length, constant_B, COMPLEX)
                prefetch_weight(C, input_row + m, segment_start, padded_length, constant_C, COMPLEX)
            at = weights_at + n * PARTS
            b = load_weight(B, input_row + n, time, padded_length, N > 0, constant_B, at, valid, dt, COMPLEX)
            c = load_weight(C, input_row + n, time, padded_length, N > 0, constant_C, at, valid, dt, COMPLEX)
            own_row = states_at + (n * PARTS).to(gl.int64) * D
            h = load_state(saved + (n * PARTS).to(gl.int64) * D, anew(channel), D, used_channel, COMPLEX)
            mu = load_state(carry + own_row, anew(channel), D, known, COMPLEX)
            rate_sum = load_state(dA + own_row, channel, D, begun, COMPLEX)
            next_A = load_state(A_at, m * PARTS, 1, valid, COMPLEX)
            decay = exponential(elapsed, scaled_rates(A_row, COMPLEX), COMPLEX)
            A_value = expand(A_row, 1, COMPLEX)
            e = exponential(dt, scaled_rates(A_value, COMPLEX), COMPLEX)
            a = e
            inverse_A = inverse(A_value, COMPLEX)
            if (flags & ZOH) != 0:
                phi = zoh_input(e, dt, A_value, inverse_A, COMPLEX)
            else:
                phi = euler_input(dt, COMPLEX)
            kick = scale(multiply(phi, b, COMPLEX), x, COMPLEX)
            g = gl.load(gate + (batch * N + n) * padded_length + time, mask=gated & live, other=1.0)
            a = scale(e, gl.expand_dims(g, 2), COMPLEX)
            g = gl.convert_layout(gl.reduce(g, 1, product), gl.SliceLayout(1, gl.SliceLayout(1, X)))
            decay = scale(decay, gl.expand_dims(g, 1), COMPLEX)
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

            if COMPLEX:
                # Complex values take twice the registers: made again, they need none through the exchange.
                b = load_weight(
                    B, input_row + n, time, padded_length, N > 0, constant_B, at, valid, dt, COMPLEX
                )
                c = load_weight(
                    C, input_row + n, time, padded_length, N > 0, constant_C, at, valid, dt, COMPLEX
                )
                kick = scale(multiply(phi, b, COMPLEX), x, COMPLEX)
                dh = scale(conjugate(c, COMPLEX), output_scale, COMPLEX)

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
            rate_sum = add(rate_sum, total(total(rates, 1, COMPLEX), 0, COMPLEX), COMPLEX)
            store_state(dA + own_row, channel, D, rate_sum, valid, COMPLEX)
            mu = zero_where(dropped, mu, COMPLEX)
            store_state(carry + own_row, channel, D, mu, valid, COMPLEX)
            dC_tile = scale(conjugate(states, COMPLEX), output_scale, COMPLEX)
            steps = (partial_row + n, partial_time, partial_length, own_time)
            sums = (own_row, channel, D, begun, valid)
            store_weight(dB, dB_tile, steps, constant_B, sums, COMPLEX)
            store_weight(dC, dC_tile, steps, constant_C, sums, COMPLEX)

        # Registers are too few to keep addresses and x through the loop over states.
        tile = (anew(gl.full_like(segment, 0) + until) - 1) // CHUNK
        tile_begin = tile * CHUNK + segment * STEPS
        row = anew(channel)
        head = row // head_channels
        tile_time = tile_begin[:, None] + step[None, :]
        own = steps_of(tile_time, opening, until)[:, :, None] & valid[None, None, :]
        used = own & live
        x = load_used(u + offsets(tile_begin, step, row, u_time, u_channel, "strided"), used, flags)
        D_value = gl.load(D_skip + row, valid & ((flags & HAS_D) != 0), 0.0)[None, None, :]
        y += D_value * x
        dx += D_value * dy
        dD_part = gl.sum(gl.sum(dy * x, 1), 0)
        if (flags & SOFTPLUS) != 0:
            bias = gl.load(delta_bias + row, valid & ((flags & HAS_BIAS) != 0), 0.0)[None, None, :]
            delta_at = delta + offsets(tile_begin, step, head, delta_time, delta_channel, "strided")
            ddt *= sigmoid(load_used(delta_at, used, flags) + bias)
        # An adjoint of the last state passes through the padding, where there is no delta to take a gradient
        # of.
        ddt = gl.where(used, ddt, 0.0)
        bias_part = gl.sum(gl.sum(ddt, 1), 0)
        # The batch row of what is written is found here: the loop over states has too few registers for three
        # more pointers.
        entry = anew(gl.full_like(channel, 0) + batch.to(gl.int32)).to(gl.int64)[None, None, :]
        if (flags & HAS_Z) != 0:
            z_at = z + offsets(tile_begin, step, row, z_time, z_channel, "strided")
            zv = load_used(z_at, used, flags)
            s = sigmoid(zv)
            dout_at = dout + offsets(tile_begin, step, row, dout_time, dout_channel, "strided")
            slope = load_used(dout_at, used, flags) * y * s * (1.0 + zv * (1.0 - s))
            dz_at = dz + entry * dz_batch + offsets(tile_begin, step, row, dz_time, dz_channel, "strided")
            store_own(dz_at, slope, own, flags)
        du_at = du + entry * du_batch + offsets(tile_begin, step, row, du_time, du_channel, "strided")
        store_own(du_at, dx, own, flags)
        ddelta_at = (
            ddelta
            + entry * ddelta_batch
            + offsets(tile_begin, step, row, ddelta_time, ddelta_channel, "strided")
        )
        store_own(ddelta_at, ddt, own, flags)

        # Sums in memory, a row for each block with its padding: the loop over states has no register for
        # them, nor for an address that needs more than the program's number.
        block_row = gl.program_id(0).to(gl.int64) * CHANNELS + anew(gl.arange(0, CHANNELS, CHANNEL))
        begun = chunk < begun_at
        gl.store(dD + block_row, gl.load(dD + block_row, begun, 0.0) + dD_part)
        gl.store(ddelta_bias + block_row, gl.load(ddelta_bias + block_row, begun, 0.0) + bias_part)
        until = opening
