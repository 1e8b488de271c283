"""Selective scan, backward, without the options of the general kernel, but of complex states gate and ZOH.

A program owns a block of channels of one span of time and walks its chunks from last to first. A warp's
lanes are channels; LANES warps share them, each with every LANES-th of their states. Each chunk's states are
computed again from the saved one, first only those that its tiles begin with, then tile by tile, from the
last on, all of them and the adjoints. What warps need of a channel (delta after its bias and softplus, delta
u, the gradient of y) lies in shared memory, and so does what is added up across threads: over states, and
for B and C over channels, both once a tile.
"""

from _arithmetic import anew
from _half import widened_pairs
from _overlap import wait_for_earlier_kernels
from _recurrence import add, expand, exponential, scale, scaled_rates, zero_where
from _scan_operands import (
    CHUNK,
    HAS_BIAS,
    HAS_D,
    HAS_GATE,
    HAS_STATE,
    HAS_Z,
    SPANS,
    ZOH,
    load_state,
    store_state,
)
from _scan_packing import BY_INDEX, own_steps
from _selective_scan_adjoint import chunks_of_span, entering_adjoint
from _selective_scan_chunk_gradients import delta_of, gate_gradient, input_gradients, store_inputs
from _selective_scan_option_gradients import (
    expanded,
    first_states_with_options,
    gradients_with_options,
    hidden,
)
from _selective_scan_runs import RUN, of_run, state_after_run
from _selective_scan_sequences import (
    begins_with_sequence,
    load_entries,
    load_tile_entries,
    of_sequence,
    tiles_in_one_sequence,
    unmarked,
)
from _selective_scan_slots import joined, load_inputs, load_tiles, store_parts, whole
from _selective_scan_tile_gradients import allocate_slots, gradients_of_tile
from _selective_scan_tiles import (
    chunk_layouts,
    fetch_gate,
    fetch_rows,
    load_sequences,
    load_states,
    places_of_states,
    places_of_sums,
    places_of_weights,
    row_of_totals,
    shares_layout,
    states_layout,
    sums_layouts,
    weights_layout,
)
from _zero_order_hold import held_inverse, held_rate
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy


@gluon.jit
def selective_scan_plain_bwd_kernel(
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
    incoming,
    span_ends,
    span_times,
    span_gates,
    runs,
    D,
    L,
    N,
    groups,
    padded_length,
    chunk_begin,
    chunk_end,
    spans,
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
    LAYOUT: gl.constexpr,
    COMPLEX: gl.constexpr,
    PACKED: gl.constexpr,
    APART: gl.constexpr,
    LANES: gl.constexpr,
    STATES: gl.constexpr,
    STEPS: gl.constexpr,
    CHANNELS: gl.constexpr,
):
    """The gradients of a launch's chunks; its buffers are those of selective_scan_bwd_kernel. APART takes
    more shared memory, for fewer waits.
    """
    WARPS: gl.constexpr = gl.num_warps()
    ROWS: gl.constexpr = STATES // LANES
    RUNS: gl.constexpr = STEPS // RUN
    TILES: gl.constexpr = CHUNK // STEPS
    X: gl.constexpr = states_layout(ROWS, LANES, WARPS)
    STATES_OF_X: gl.constexpr = gl.SliceLayout(3, X)
    # [runs, channels, steps]: each element of a chunk once, 16 bytes of memory at a time.
    JOINED: gl.constexpr = 2 if LAYOUT == "seq" and u.dtype.element_ty == gl.int16 else 1
    LAYOUTS: gl.constexpr = chunk_layouts(LAYOUT, JOINED, CHANNELS, RUNS, WARPS)
    TILE: gl.constexpr = LAYOUTS[0]
    SHARES: gl.constexpr = shares_layout(RUNS, LANES, WARPS)
    PARTS: gl.constexpr = 2 if COMPLEX else 1
    SUM_LAYOUTS: gl.constexpr = sums_layouts(PARTS * RUNS * STATES, CHANNELS, WARPS)
    SUMS: gl.constexpr = SUM_LAYOUTS[0]
    SUM: gl.constexpr = SUM_LAYOUTS[1]
    WEIGHTS: gl.constexpr = weights_layout(LANES, WARPS)
    if LAYOUT == "seq":
        dout_time = 1
        u_time = 1
        delta_time = 1
        z_time = 1
        du_time = 1
        ddelta_time = 1
        dz_time = 1

    slots_of_chunk = allocate_slots(RUNS, TILES, ROWS, LANES, CHANNELS, COMPLEX, APART)
    inputs, _, sums, _, starts, gate_slots_of_chunk = slots_of_chunk
    gate_slots, _ = gate_slots_of_chunk
    dt_slots, dtx_slots, dy_slots, B_slots, C_slots = inputs
    y_slots, ddt_slots, dkick_slots = sums

    blocks_per_group = gl.cdiv(D // groups, CHANNELS)
    wait_for_earlier_kernels()
    block = gl.program_id(0) % (groups * blocks_per_group)
    sums_row = (gl.program_id(0) // (groups * blocks_per_group)).to(gl.int64)
    batches = gl.num_programs(0) // (groups * blocks_per_group * spans)
    batch = sums_row % batches
    span = (sums_row // batches).to(gl.int32)
    own_begin, own_end = chunks_of_span(span, chunk_begin, chunk_end, spans)
    batch_rows = batches
    if PACKED:
        # Steps outside of [first, stop) are of length 0.
        batch, first, stop = own_steps(runs, batch, L, flags)
        by_index = (flags & BY_INDEX) != 0
        batch_rows = gl.where(by_index, batches, 1)
        own_begin = gl.maximum(first // CHUNK, own_begin)
        own_end = gl.where(stop > first, gl.minimum(gl.cdiv(stop, CHUNK), own_end), own_begin)
    group = block // blocks_per_group
    block_in_group = block % blocks_per_group
    first_in_group = block_in_group * CHANNELS
    dout += batch * dout_batch
    u += batch * u_batch
    delta += batch * delta_batch
    z += batch * z_batch
    du += batch * du_batch
    ddelta += batch * ddelta_batch
    dz += batch * dz_batch

    # Of the chunk: which channels and steps.
    CHANNEL: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(2, TILE))
    in_group = first_in_group + gl.arange(0, CHANNELS, CHANNEL)
    channel = group * (D // groups) + in_group
    valid = in_group < D // groups
    run = gl.arange(0, TILES * RUNS // JOINED, gl.SliceLayout(1, gl.SliceLayout(2, TILE)))
    step = gl.arange(0, JOINED * RUN, gl.SliceLayout(0, gl.SliceLayout(1, TILE)))
    time = run[:, None, None] * (JOINED * RUN) + step[None, None, :]
    valid_tile = valid[None, :, None]
    D_value = gl.load(D_skip + channel, valid & ((flags & HAS_D) != 0), 0.0)[None, :, None]
    bias = gl.load(delta_bias + channel, valid & ((flags & HAS_BIAS) != 0), 0.0)[None, :, None]

    x_in_group, x_row, x_state = places_of_states(first_in_group, D // groups, group, ROWS, CHANNELS, X)
    x_valid = x_in_group < D // groups
    input_row = (batch * groups + group) * N
    w_state, w_time, weights = places_of_weights(
        input_row, padded_length, TILES * RUNS, ROWS, LANES, WEIGHTS, COMPLEX
    )
    usual = True
    if COMPLEX:
        zoh = (flags & ZOH) != 0
        usual = (flags & (HAS_GATE | ZOH)) == 0
        if (flags & HAS_GATE) == 0:  # noqa: SIM102
            if not usual:
                whole(gate_slots).store(gl.full(gate_slots.shape, 1.0, gl.float32, WEIGHTS))
    weight_slots = (B_slots, C_slots)
    weight_rows = (B, C, weights, w_state)

    partial_row = ((block_in_group * 2 * batch_rows + batch) * groups + group) * N
    s_state, s_time, planes = places_of_sums(partial_row, partial_length, RUNS, STATES, SUM, COMPLEX)

    of_delta = (delta, delta_time, delta_channel)
    of_u = (u, u_time, u_channel)
    of_dout = (dout, dout_time, dout_channel)
    of_z = (z, z_time, z_channel)
    outs = ((du, du_time, du_channel), (ddelta, ddelta_time, ddelta_channel))
    of_dz = (dz, dz_time, dz_channel)
    fresh_from = gl.cdiv(L, CHUNK) - 1
    saved_rows = gl.cdiv(L, CHUNK)
    there = True
    saved_row = own_end - 1
    if PACKED:
        there = own_end > own_begin
        # Behind the chunks' states lie those of sequences that begin inside a chunk.
        begun_row = saved_rows + (sums_row % batches).to(gl.int32)
        saved_row = gl.where(first > (own_end - 1) * CHUNK, begun_row, own_end - 1)
        saved_rows += gl.where(by_index, 1, 0)
    # Of a state [states, parts, channels].
    state_size = N * PARTS * D.to(gl.int64)
    states_at = chunk_states + batch * saved_rows * state_size
    # Without states the one block writes zeros where the sums over states are read.
    blocks = gl.maximum(gl.cdiv(N, STATES), 1)
    # What a chunk begins with is asked for before the end of the one after it, where registers allow it.
    AHEAD: gl.constexpr = JOINED == 2
    if AHEAD:
        used = ((own_end - 1) * CHUNK + time < L) & valid_tile & there
        place = ((own_end - 1) * CHUNK, run, channel, step)
        next_dt, next_x, next_dy, next_z = load_sequences(
            of_delta, of_u, of_dout, of_z, place, used, flags, LAYOUT
        )
    if COMPLEX:
        fetch_gate(gate_slots, gate, batch, 0, own_end - 1, N, padded_length, there, flags, WEIGHTS)
    fetch_rows(weight_slots, weight_rows, 0, own_end - 1, N, padded_length, there, COMPLEX)
    next_h = load_states(states_at, saved_row, x_state, x_row, x_valid & there, D, N, COMPLEX)
    if PACKED:
        next_entries = load_tile_entries(runs, batch, (own_end - 1) * CHUNK, TILES, STEPS, L, by_index)
    zero = gl.zeros([ROWS, LANES, CHANNELS], gl.float32, STATES_OF_X)
    rate = (zero, zero) if COMPLEX else (zero,)
    mu = rate
    rate_total = rate
    for chunk in range(own_end - 1, own_begin - 1, -1):
        begin = chunk * CHUNK
        used = (begin + time < L) & valid_tile
        complete = True
        place = (begin, run, channel, step)
        if AHEAD:
            raw_dt, raw_x, raw_dy, raw_z = next_dt, next_x, next_dy, next_z
        else:
            raw_dt, raw_x, raw_dy, raw_z = load_sequences(
                of_delta, of_u, of_dout, of_z, place, used, flags, LAYOUT
            )
        dt = delta_of(raw_dt, bias, flags)
        raw = (raw_x, raw_dy, raw_z)
        if PACKED:
            complete = by_index | ((begin >= first) & (begin + CHUNK <= stop))
            plain_tiles = tiles_in_one_sequence(next_entries, begin, STEPS)
            next_entries = load_tile_entries(runs, batch, begin - CHUNK, TILES, STEPS, L, by_index)
            plain = complete & (plain_tiles == 2**TILES - 1)
            dt = unmarked(dt)
        if not PACKED or plain:
            store_inputs(inputs, dt, raw, used, True, True, flags, False, COMPLEX)
        else:
            steps = begin + time
            live, fresh = of_sequence(load_entries(runs, batch, steps, L, by_index), steps, first, stop)
            store_inputs(inputs, dt, raw, used, live, fresh, flags, True, COMPLEX)

        for block_of_states in range(0, blocks):
            begin_state = block_of_states * STATES
            state = begin_state + x_state
            known = x_valid & (state < N)
            # Rates, adjoints and sums of a span stay in registers, or in memory where these hold too few.
            if (chunk == own_end - 1) | (blocks > 1):
                at = anew(x_row).to(gl.int64) + (state * PARTS).to(gl.int64) * D
                rate = load_state(A, (anew(x_row).to(gl.int64) * N + state) * PARTS, 1, known, COMPLEX)
                if COMPLEX:
                    rate = held_rate(rate, zoh)
                returning = (chunk < fresh_from) | ((flags & HAS_STATE) != 0)
                mu = load_state(carry + sums_row * state_size, at, D, known & returning, COMPLEX)
                total_row = row_of_totals(sums_row, batches, flags, PACKED)
                rate_total = load_state(
                    dA + total_row * state_size, at, D, known & (chunk < own_end - 1), COMPLEX
                )
                if ((flags & SPANS) != 0) & (chunk == own_end - 1):
                    last_span = spans - 1
                    if PACKED:
                        final_chunk = gl.minimum(gl.cdiv(stop, CHUNK), chunk_end) - 1
                        each = gl.cdiv(chunk_end - chunk_begin, spans)
                        last_span = gl.where(by_index, last_span, (final_chunk - chunk_begin) // each)
                    mu = entering_adjoint(
                        incoming,
                        span_ends,
                        span_times,
                        span_gates,
                        rate,
                        at,
                        x_row,
                        known,
                        sums_row,
                        batches,
                        last_span,
                        D,
                        state_size,
                        flags,
                        COMPLEX,
                    )
            rates = of_run(scaled_rates(rate, COMPLEX), COMPLEX)
            rate_x = expand(rate, 3, COMPLEX)
            rate_sum = (zero, zero) if COMPLEX else (zero,)
            states = (next_h, rates, rate_x)
            h = next_h
            async_copy.wait_group(0)
            if PACKED:  # noqa: SIM102
                if not complete:
                    inside = (begin + w_time >= first) & (begin + w_time < stop)
                    for slots in gl.static_range(2):
                        of_slots = whole(B_slots if slots == 0 else C_slots)
                        of_slots.store(gl.where(inside, of_slots.load(WEIGHTS), 0.0))

            # The states that tiles begin with, but for the first one's and the last one's.
            if not COMPLEX or usual:
                ahead = load_inputs(dt_slots, dtx_slots, B_slots, 0, X, COMPLEX)
                for i in range(0, TILES - 1):
                    # Made anew, or stores would hold up the steps of their own addresses.
                    t = anew(i)
                    store_parts(starts.index(gl.maximum(t - 1, 0)), h, COMPLEX)
                    for k in gl.static_range(RUNS):
                        step_dt, step_dtx, b = ahead
                        ahead = load_inputs(dt_slots, dtx_slots, B_slots, t * RUNS + k + 1, X, COMPLEX)
                        a = exponential(step_dt, rates, COMPLEX)
                        kick = scale(b, step_dtx, COMPLEX)
                        if not PACKED or (plain_tiles >> t) & 1 != 0:
                            h = state_after_run(a, kick, h, step_dt, False, COMPLEX)
                        else:
                            h = state_after_run(a, kick, h, step_dt, True, COMPLEX)
            else:
                inverse = held_inverse((hidden(rate[0]), hidden(rate[1])), zoh)
                held = (expanded(inverse), gl.where(zoh, 0.0, 1.0))
                h = first_states_with_options(inputs, gate_slots, starts, rates, held, h, TILES, X)

            for back in range(0, TILES):
                t = anew(TILES - 1 - back)
                to = (
                    planes
                    + begin_state * PARTS * partial_length
                    + ((chunk - chunk_begin) * CHUNK + t * STEPS)
                )
                own = (begin_state + s_state < N)[:, None]
                inside = own
                if PACKED:
                    inside = (anew(s_time), begin + t * STEPS, first, stop)
                sums_at = (dB, dC, to, own, inside, complete)
                carried = (h, mu, rate_sum)
                layouts: gl.constexpr = (SHARES, SUMS, SUM, X)
                kinds: gl.constexpr = (PACKED, COMPLEX, APART)
                # Two calls, as what a compiler knows of a tile must stand in the call.
                further = block_of_states > 0
                plain_tile = usual
                if PACKED:
                    plain_tile = (plain_tiles >> t) & 1 != 0
                if not (PACKED or COMPLEX) or plain_tile:
                    h, mu, rate_sum = gradients_of_tile(
                        slots_of_chunk, t, states, carried, sums_at, further, layouts, kinds, False
                    )
                elif COMPLEX:
                    gate_row = (anew(block).to(gl.int64) * batches + batch) * N + begin_state
                    tile_begin = (chunk - chunk_begin) * CHUNK + t * STEPS
                    gate_sums = dgate + (gate_row * partial_length + tile_begin)
                    gate_at = (gate_sums, partial_length, N - begin_state)
                    h, mu, rate_sum = gradients_with_options(
                        slots_of_chunk,
                        t,
                        (next_h, rates, rate),
                        zoh,
                        carried,
                        (dB, dC, to, own),
                        gate_at,
                        further,
                        flags,
                        layouts,
                        APART,
                    )
                else:
                    h, mu, rate_sum = gradients_of_tile(
                        slots_of_chunk, t, states, carried, sums_at, further, layouts, kinds, True
                    )

            rate_total = add(rate_total, rate_sum, COMPLEX)
            if PACKED:
                # A row that begins with padding does not begin with the initial state.
                in_sequence = (chunk > 0) | begins_with_sequence(runs, batch, L, by_index)
                mu = zero_where(in_sequence == 0, mu, COMPLEX)
            if (chunk == own_begin) | (blocks > 1):
                at = anew(x_row).to(gl.int64) + (state * PARTS).to(gl.int64) * D
                passed_row = sums_row
                if PACKED:
                    # The first span has what a launch passes on, but a sequence may begin in another one.
                    begins = (by_index == 0) & (first >= begin)
                    passed_row = gl.where(begins, sums_row % batches, sums_row)
                store_state(carry + passed_row * state_size, at, D, mu, known, COMPLEX)
                total_row = row_of_totals(sums_row, batches, flags, PACKED)
                store_state(dA + total_row * state_size, at, D, rate_total, known, COMPLEX)
            if block_of_states + 1 < blocks:
                following = begin_state + STATES
                if COMPLEX:
                    fetch_gate(
                        gate_slots, gate, batch, following, chunk, N, padded_length, True, flags, WEIGHTS
                    )
                fetch_rows(weight_slots, weight_rows, following, chunk, N, padded_length, True, COMPLEX)
                saved_row = chunk
                if PACKED:
                    saved_row = gl.where(first > begin, begun_row, chunk)
                next_h = load_states(states_at, saved_row, following + x_state, x_row, x_valid, D, N, COMPLEX)

        # Made again, for no registers are left to keep it.
        used = (begin + time < L) & valid_tile
        place = (begin, run, channel, step)
        raw_dt, raw_x, raw_dy, raw_z = load_sequences(
            of_delta, of_u, of_dout, of_z, place, used, flags, LAYOUT
        )
        if COMPLEX:
            # Made again, for no registers are left to keep them.
            D_value = gl.load(D_skip + anew(channel), valid & ((flags & HAS_D) != 0), 0.0)[None, :, None]
            bias = gl.load(delta_bias + anew(channel), valid & ((flags & HAS_BIAS) != 0), 0.0)[None, :, None]
        # Sums over a span, a row for each block with its padding.
        total_block = gl.program_id(0).to(gl.int64)
        if PACKED:
            total_block = (
                row_of_totals(sums_row, batches, flags, PACKED) * (groups * blocks_per_group) + block
            )
        block_row = total_block * CHANNELS + anew(gl.arange(0, CHANNELS, CHANNEL))
        begun = chunk < own_end - 1
        D_sum = gl.load(dD + block_row, begun, 0.0)
        bias_sum = gl.load(ddelta_bias + block_row, begun, 0.0)
        x = widened_pairs(raw_x, flags)
        slots = (dt_slots, dy_slots, dkick_slots, ddt_slots)
        if not PACKED or plain:
            of_chunk = (x, raw_dt, D_value, bias)
            dy, ddt = input_gradients(
                outs, place, slots, of_chunk, used, True, True, flags, LAYOUT, LAYOUTS, False, COMPLEX
            )
        else:
            steps = begin + time
            live = of_sequence(load_entries(runs, batch, steps, L, by_index), steps, first, stop)[0]
            x = gl.where(live, x, 0.0)
            of_chunk = (x, raw_dt, D_value, bias)
            dy, ddt = input_gradients(
                outs, place, slots, of_chunk, used, live, complete, flags, LAYOUT, LAYOUTS, True, COMPLEX
            )
        # Not before what this chunk still reads, or that would wait for memory, too.
        there = chunk > own_begin
        saved_row = chunk - 1
        if PACKED:
            saved_row = gl.where(first > saved_row * CHUNK, begun_row, saved_row)
        if AHEAD:
            place = (begin - CHUNK, run, channel, step)
            next_dt, next_x, next_dy, next_z = load_sequences(
                of_delta, of_u, of_dout, of_z, place, valid_tile & there, flags, LAYOUT
            )
        if COMPLEX:
            fetch_gate(gate_slots, gate, batch, 0, chunk - 1, N, padded_length, there, flags, WEIGHTS)
        fetch_rows(weight_slots, weight_rows, 0, chunk - 1, N, padded_length, there, COMPLEX)
        next_h = load_states(states_at, saved_row, x_state, x_row, x_valid & there, D, N, COMPLEX)
        if (flags & HAS_Z) != 0:
            y = joined(load_tiles(y_slots, LAYOUTS), TILE)
            if COMPLEX:
                y *= 2.0
            y += D_value * x
            place = (begin, run, channel, step)
            if not PACKED or plain:
                gate_gradient(of_dz, place, y, raw_dy, raw_z, used, True, True, flags, LAYOUT, False)
            else:
                steps = begin + anew(time)
                live = of_sequence(load_entries(runs, batch, steps, L, by_index), steps, first, stop)[0]
                gate_gradient(of_dz, place, y, raw_dy, raw_z, used, live, complete, flags, LAYOUT, True)

        gl.store(dD + block_row, D_sum + gl.sum(gl.sum(dy * x, 2), 0))
        gl.store(ddelta_bias + block_row, bias_sum + gl.sum(gl.sum(ddt, 2), 0))
