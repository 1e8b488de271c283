"""Selective scan forward, with every option: complex states, gates, zero-order hold, packed sequences.

One program owns a block of channels of one batch entry, or of one packed sequence (_scan_packing.py), and
walks over time in tiles [SEGMENTS, STEPS, CHANNELS]. The state crosses tiles through `carry`, a small buffer
that stays in cache, so any number of states takes the same code.
"""

from _arithmetic import sigmoid, softplus
from _recurrence import (
    collect,
    euler_input,
    expand,
    exponential,
    inverse,
    multiply,
    pick,
    product,
    publish,
    real_product,
    scale,
    scaled_rates,
    scan,
    scan_from,
    total,
    zoh_input,
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
    SAVE_CHUNKS,
    SOFTPLUS,
    ZOH,
    load_state,
    load_weight,
    prefetch_weight,
    store_state,
)
from _scan_packing import BY_INDEX, load_used, own_steps, run_from, steps_of, store_own
from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.jit
def decay_and_kick(x, dt, elapsed, A_row, b, gate, gated, flags, COMPLEX: gl.constexpr):
    """For one state: decay a and input phi B x of every step, and the decay over each whole segment."""
    A_row = expand(A_row, 0, COMPLEX)
    decay = exponential(elapsed, scaled_rates(A_row, COMPLEX), COMPLEX)
    A_value = expand(A_row, 1, COMPLEX)
    a = exponential(dt, scaled_rates(A_value, COMPLEX), COMPLEX)
    if (flags & ZOH) != 0:
        phi = zoh_input(a, dt, A_value, inverse(A_value, COMPLEX), COMPLEX)
    else:
        phi = euler_input(dt, COMPLEX)
    kick = scale(multiply(phi, b, COMPLEX), x, COMPLEX)
    g = gl.load(gate, mask=gated, other=1.0)
    a = scale(a, gl.expand_dims(g, 2), COMPLEX)
    g = gl.convert_layout(gl.reduce(g, 1, product), gl.SliceLayout(1, elapsed.type.layout))
    decay = scale(decay, gl.expand_dims(g, 1), COMPLEX)
    return a, kick, decay


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
    runs,
    D,
    L,
    N,
    groups,
    head_channels,
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
    SEGMENTS: gl.constexpr,
    STEPS: gl.constexpr,
    CHANNELS: gl.constexpr,
):
    X: gl.constexpr = gl.BlockedLayout(
        [1, STEPS, 1],
        [SEGMENTS, 1, 32 // SEGMENTS],
        [1, 1, gl.num_warps()],
        [1, 2, 0],
    )
    SEGMENT: gl.constexpr = gl.SliceLayout(1, gl.SliceLayout(2, X))
    STEP: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(2, X))
    CHANNEL: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(1, X))
    TILE: gl.constexpr = SEGMENTS * STEPS
    PARTS: gl.constexpr = 2 if COMPLEX else 1
    blocks_per_group = gl.cdiv(D // groups, CHANNELS)
    block = gl.program_id(0) % (groups * blocks_per_group)
    work = (gl.program_id(0) // (groups * blocks_per_group)).to(gl.int64)
    batch, first_step, stop = own_steps(runs, work, L, flags)
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
    head = channel // head_channels
    delta_row = head.to(gl.int64) * delta_channel
    state_row = (work * D + wide_channel) * N * PARTS
    carry_row = work * N * PARTS * D + wide_channel
    weights_at = wide_channel * N * PARTS
    A_at = A + weights_at
    constant_B = (flags & CONSTANT_B) != 0
    constant_C = (flags & CONSTANT_C) != 0
    saved_rows = gl.cdiv(L, CHUNK) + gl.where((flags & BY_INDEX) != 0, 1, 0)
    SHARED: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    slots0 = gl.allocate_shared_memory(gl.float32, [2 * PARTS, SEGMENTS, CHANNELS], SHARED)
    slots1 = gl.allocate_shared_memory(gl.float32, [2 * PARTS, SEGMENTS, CHANNELS], SHARED)

    position = first_step
    fresh = first_step < stop
    while position < stop:
        start = position // TILE * TILE
        end, live = run_from(runs, batch, position, stop, L, flags)
        until = gl.minimum(end, start + TILE)
        segment_start = start + segment * STEPS
        time = segment_start[:, None] + step[None, :]
        own_time = steps_of(time, position, until)
        own = own_time[:, :, None] & valid[None, None, :]
        used = own & live
        gated = own_time & ((flags & HAS_GATE) != 0)
        wide_time = time.to(gl.int64)[:, :, None]
        x = load_used(u + wide_time * u_time + (wide_channel * u_channel)[None, None, :], used, flags)
        dt = load_used(delta + wide_time * delta_time + delta_row[None, None, :], used, flags) + bias
        if (flags & SOFTPLUS) != 0:
            dt = softplus(dt)
        # A step of length 0 leaves the state alone: so do the steps past the end, and those of others.
        dt = gl.where(used, dt, 0.0)
        elapsed = gl.sum(dt, 1)
        y = D_value * x

        # The state comes from initial_state before the first tile and goes to last_state after the final one;
        # of the sequences in a batch row, the last one's stays there.
        closing = until == end
        source = gl.where(fresh, initial_state + state_row, carry + carry_row)
        source_step = gl.where(fresh, PARTS, PARTS * D.to(gl.int64))
        source_plane = gl.where(fresh, 1, D)
        given = ((flags & HAS_STATE) != 0) & (position == first_step)
        source_valid = valid & ((fresh == 0) | given)
        target = gl.where(closing, last_state + state_row, carry + carry_row)
        target_step = gl.where(closing, PARTS, PARTS * D.to(gl.int64))
        target_plane = gl.where(closing, 1, D)
        # Chunks start at segments: what enters such a segment is the state to save.
        segment_at = start + row_segment * STEPS
        chunk_row = (batch * saved_rows + segment_at // CHUNK) * N * PARTS * D
        saved = chunk_states + chunk_row[:, None] + channel[None, :]
        saving = ((flags & SAVE_CHUNKS) != 0) & (segment_at >= position) & (segment_at < until)
        saving = (saving & (segment_at % CHUNK == 0))[:, None] & valid[None, :]

        # Two states at a time: one's arithmetic hides the other's latencies. What the next pair needs is on
        # its way.
        next_h0 = load_state(source, 0, source_plane, source_valid & (N > 0), COMPLEX)
        next_A0 = load_state(A_at, 0, 1, valid & (N > 0), COMPLEX)
        next_h1 = load_state(source, source_step, source_plane, source_valid & (N > 1), COMPLEX)
        next_A1 = load_state(A_at, PARTS, 1, valid & (N > 1), COMPLEX)
        # Padding has no states.
        states = gl.where(live, N, 0)
        for n in range(0, states, 2):
            second = n + 1 < N
            h0, A0, h1, A1 = next_h0, next_A0, next_h1, next_A1
            next_h0 = load_state(
                source, (n + 2) * source_step, source_plane, source_valid & (n + 2 < N), COMPLEX
            )
            next_A0 = load_state(A_at, (n + 2) * PARTS, 1, valid & (n + 2 < N), COMPLEX)
            next_h1 = load_state(
                source, (n + 3) * source_step, source_plane, source_valid & (n + 3 < N), COMPLEX
            )
            next_A1 = load_state(A_at, (n + 3) * PARTS, 1, valid & (n + 3 < N), COMPLEX)
            for k in gl.static_range(2, 4):
                ahead = input_row + gl.minimum(n + k, N - 1)
                prefetch_weight(B, ahead, segment_start, padded_length, constant_B, COMPLEX)
                prefetch_weight(C, ahead, segment_start, padded_length, constant_C, COMPLEX)
            at = weights_at + n * PARTS
            row = input_row + n
            b0 = load_weight(B, row, time, padded_length, n < N, constant_B, at, valid, dt, COMPLEX)
            b1 = load_weight(
                B, row + 1, time, padded_length, second, constant_B, at + PARTS, valid, dt, COMPLEX
            )
            g0 = gate + (batch * N + n) * padded_length + time
            a0, kick0, decay0 = decay_and_kick(x, dt, elapsed, A0, b0, g0, gated, flags, COMPLEX)
            g1 = gate + (batch * N + n + 1) * padded_length + time
            a1, kick1, decay1 = decay_and_kick(x, dt, elapsed, A1, b1, g1, gated & second, flags, COMPLEX)

            # Asked for before the exchange below, which would otherwise hold these loads back.
            c0 = load_weight(C, row, time, padded_length, n < N, constant_C, at, valid, dt, COMPLEX)
            c1 = load_weight(
                C, row + 1, time, padded_length, second, constant_C, at + PARTS, valid, dt, COMPLEX
            )
            if SEGMENTS == 1:
                entering0 = expand(h0, 0, COMPLEX)
                entering1 = expand(h1, 0, COMPLEX)
            else:
                publish(slots0, pick(scan(a0, kick0, COMPLEX), last, COMPLEX), decay0, COMPLEX)
                publish(slots1, pick(scan(a1, kick1, COMPLEX), last, COMPLEX), decay1, COMPLEX)
                entering0, h0 = collect(slots0, h0, row_segment, False, COMPLEX)
                entering1, h1 = collect(slots1, h1, row_segment, False, COMPLEX)
            store_state(saved, n * PARTS * D.to(gl.int64), D, entering0, saving, COMPLEX)
            store_state(saved, (n + 1) * PARTS * D.to(gl.int64), D, entering1, saving & second, COMPLEX)
            states0 = scan_from(entering0, a0, kick0, first, COMPLEX)
            states1 = scan_from(entering1, a1, kick1, first, COMPLEX)
            if SEGMENTS == 1:
                h0 = total(pick(states0, last, COMPLEX), 0, COMPLEX)
                h1 = total(pick(states1, last, COMPLEX), 0, COMPLEX)
            if COMPLEX:
                y += 2.0 * real_product(c0, states0, COMPLEX)
                y += 2.0 * real_product(c1, states1, COMPLEX)
            else:
                y += real_product(c0, states0, COMPLEX)
                y += real_product(c1, states1, COMPLEX)
            store_state(target, n * target_step, target_plane, h0, valid, COMPLEX)
            store_state(target, (n + 1) * target_step, target_plane, h1, valid & second, COMPLEX)

        if (flags & HAS_Z) != 0:
            z_at = z + wide_time * z_time + (wide_channel * z_channel)[None, None, :]
            zv = load_used(z_at, used, flags)
            y *= zv * sigmoid(zv)
        out_at = out + wide_time * out_time + (wide_channel * out_channel)[None, None, :]
        store_own(out_at, y, own, flags)
        position = until
        fresh = closing
