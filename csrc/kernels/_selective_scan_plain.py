"""Selective scan, forward, without the options of the general kernel, but of complex states gate and ZOH.

A program owns a block of channels of one batch entry and walks over time in tiles. LANES threads, of SHARERS
warps, share a channel, each with every LANES-th of its states, so no step is computed twice and few channels
still fill a chip. What all of them need once (delta after its bias and softplus, delta u, rows of B and C)
lies in shared memory, RUN steps of a row at a time; so do their shares of y, which are added up once a tile.

Where rows and channels are too few to fill a GPU, time is split into spans that run at once. A launch before,
with ENDS, walks all spans but the last from a state of zero; from where those end, and from their lengths in
delta, each span then knows the state that it begins with.

Of packed sequences, tiles whose steps belong to one sequence take the way of rows without packing.
"""

from _arithmetic import anew, sigmoid_fast, softplus
from _half import narrowed_pairs, widened_pairs
from _overlap import wait_for_earlier_kernels
from _recurrence import expand, pick, scaled_rates, spread, zero_where
from _scan_operands import (
    CHUNK,
    HAS_BIAS,
    HAS_D,
    HAS_GATE,
    HAS_STATE,
    HAS_Z,
    SAVE_CHUNKS,
    SOFTPLUS,
    SPANS_AT_ONCE,
    ZOH,
    load_state,
    store_state,
)
from _scan_packing import BY_INDEX, own_steps
from _selective_scan_option_states import fetch_gate, gates_of_tile, states_with_options
from _selective_scan_plain_layouts import scalars_in_pieces, shares_in_pieces, shares_layout
from _selective_scan_plain_tile import fetch_rows, following, states_of_tile
from _selective_scan_sequences import (
    FORGOTTEN,
    begins_with_sequence,
    in_one_sequence,
    load_entries,
    load_last_entry,
    marked,
    of_sequence,
    unmarked,
)
from _selective_scan_spans import states_through_spans
from _zero_order_hold import held_inverse, held_rate
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy


@gluon.jit
def selective_scan_plain_fwd_kernel(
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
    span_ends,
    span_times,
    span_gates,
    runs,
    D,
    L,
    N,
    groups,
    padded_length,
    spans,
    span_steps,
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
    LAYOUT: gl.constexpr,
    COMPLEX: gl.constexpr,
    ENDS: gl.constexpr,
    PACKED: gl.constexpr,
    LANES: gl.constexpr,
    SHARERS: gl.constexpr,
    STATES: gl.constexpr,
    RUN: gl.constexpr,
    STEPS: gl.constexpr,
    CHANNELS: gl.constexpr,
    PREFETCH: gl.constexpr,
):
    """Of a launch with ENDS: `span_ends` [spans - 1, batch, N, D] is where a span ends, `span_times`
    [spans - 1, batch, D] the sum of its steps, `span_gates` [spans - 1, batch, N] the product of its gates.
    """
    WARPS: gl.constexpr = gl.num_warps()
    RUNS: gl.constexpr = STEPS // RUN
    # Of few channels and steps, where it counts.
    AT_ONCE: gl.constexpr = SPANS_AT_ONCE if PREFETCH else 1
    ROWS: gl.constexpr = STATES // LANES
    PARTS: gl.constexpr = 2 if COMPLEX else 1
    # [lanes, steps of a run, channels, runs], one run at a time: the recurrence.
    X: gl.constexpr = gl.BlockedLayout(
        [1, RUN, 1, 1],
        [LANES // SHARERS, 1, 32 * SHARERS // LANES, 1],
        [SHARERS, 1, WARPS // SHARERS, 1],
        [1, 2, 0, 3],
    )
    STATES_OF_X: gl.constexpr = gl.SliceLayout(1, X)
    # Complex states with options find a run's slots at run time, which runs apart don't allow. Of eight lanes
    # it is slower.
    ALONG: gl.constexpr = LAYOUT == "seq" and LANES == 4 and not COMPLEX
    # The same axes, all runs: each element once, all of its lanes in one thread.
    SHARES: gl.constexpr = shares_layout(LANES, RUN, CHANNELS, RUNS, WARPS, LAYOUT, ALONG)
    TILE: gl.constexpr = gl.SliceLayout(0, SHARES)
    # [lanes, steps of a run, rows of runs]: copies of B and C, 16 bytes each; neighbours write neighbouring
    # banks, and read the whole of 32 bytes.
    QUADS: gl.constexpr = RUN // 4
    WEIGHTS: gl.constexpr = gl.BlockedLayout(
        [1, 4, 1], [LANES, QUADS, 32 // (LANES * QUADS)], [1, 1, WARPS], [1, 0, 2]
    )
    if LAYOUT == "seq":
        u_time = 1
        delta_time = 1
        z_time = 1
        out_time = 1

    if ALONG:
        SCALARS: gl.constexpr = scalars_in_pieces(RUN, CHANNELS, RUNS)
        IN_SHARES: gl.constexpr = shares_in_pieces(LANES, RUN, CHANNELS, RUNS)
    else:
        # Sixteen bytes at a time, eight threads at once: runs of 32 bytes would meet in the same banks.
        SCALARS: gl.constexpr = gl.SwizzledSharedLayout(4, 4, QUADS, [0, 1, 2])
        IN_SHARES: gl.constexpr = gl.SwizzledSharedLayout(4, 4, QUADS, [1, 2, 0, 3])
    dt_slots = gl.allocate_shared_memory(gl.float32, [RUN, CHANNELS, RUNS], SCALARS)
    dtx_slots = gl.allocate_shared_memory(gl.float32, [RUN, CHANNELS, RUNS], SCALARS)
    y_slots = dt_slots
    if not ENDS:
        y_slots = gl.allocate_shared_memory(gl.float32, [LANES, RUN, CHANNELS, RUNS], IN_SHARES)
    ROW: gl.constexpr = gl.SwizzledSharedLayout(4, 4, QUADS, [1, 0, 2])
    SLOTS: gl.constexpr = [2, LANES, RUN, PARTS * ROWS * RUNS]
    B_slots = gl.allocate_shared_memory(gl.float32, SLOTS, ROW)
    C_slots = B_slots if ENDS else gl.allocate_shared_memory(gl.float32, SLOTS, ROW)
    gate_slots = B_slots
    if COMPLEX:
        gate_slots = gl.allocate_shared_memory(gl.float32, [2, LANES, RUN, ROWS * RUNS], ROW)

    blocks_per_group = gl.cdiv(D // groups, CHANNELS)
    wait_for_earlier_kernels()
    block = gl.program_id(0) % (groups * blocks_per_group)
    work = (gl.program_id(0) // (groups * blocks_per_group)).to(gl.int64)
    batches = gl.num_programs(0) // (groups * blocks_per_group * (spans - 1 if ENDS else spans))
    state_row = work % batches
    batch = state_row
    span = (work // batches).to(gl.int32)
    begin = span * span_steps
    end = begin + gl.minimum(span_steps, L - begin)
    limit = end
    if PACKED:
        # Tiles lie on the grid of whole tiles; steps outside of [first, stop) are of length 0.
        batch, first, stop = own_steps(runs, state_row, L, flags)
        by_index = (flags & BY_INDEX) != 0
        first = gl.where(by_index, begin, first)
        stop = gl.where(by_index, end, stop)
        # With ENDS only a sequence that goes on after the span has anything to pass on.
        passes_on = by_index | (stop > end) if ENDS else True
        begin = gl.maximum(first // STEPS * STEPS, begin)
        end = gl.where((stop > first) & passes_on, gl.minimum(stop, end), begin)
        limit = L
    group = block // blocks_per_group
    first_in_group = (block % blocks_per_group) * CHANNELS

    # Of the tile: which channels and steps. Rows are whole runs where their length is a multiple of 16.
    CHANNEL: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(2, TILE))
    in_group = first_in_group + gl.arange(0, CHANNELS, CHANNEL)
    channel = group * (D // groups) + in_group
    valid = in_group < D // groups
    step = gl.arange(0, RUN, gl.SliceLayout(1, gl.SliceLayout(2, TILE)))[:, None, None]
    run_start = (gl.arange(0, RUNS, gl.SliceLayout(0, gl.SliceLayout(1, TILE))) * RUN)[None, None, :]
    time = run_start if LAYOUT == "seq" else run_start + step
    valid_tile = valid[None, :, None]
    row = channel.to(gl.int64)[None, :, None]
    opened = (begin + run_start).to(gl.int64)
    u_at = u + (batch * u_batch + row * u_channel + opened * u_time)
    delta_at = delta + (batch * delta_batch + row * delta_channel + opened * delta_time)
    if ENDS:
        elapsed = gl.full([CHANNELS, RUNS], 0.0, gl.float32, gl.SliceLayout(0, TILE))
        if PACKED:
            sequences = gl.full([1, RUNS], 0, gl.int32, gl.SliceLayout(0, TILE))
    else:
        z_at = z + (batch * z_batch + row * z_channel + opened * z_time)
        out_at = out + (batch * out_batch + row * out_channel + opened * out_time)
        D_value = gl.load(D_skip + channel, valid & ((flags & HAS_D) != 0), 0.0)[None, :, None]
    bias = gl.load(delta_bias + channel, valid & ((flags & HAS_BIAS) != 0), 0.0)[None, :, None]

    # Of the recurrence: which channels and states.
    X_CHANNEL: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(2, STATES_OF_X))
    X_LANE: gl.constexpr = gl.SliceLayout(1, gl.SliceLayout(2, STATES_OF_X))
    X_STEP: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(2, gl.SliceLayout(3, X)))
    x_in_group = first_in_group + gl.arange(0, CHANNELS, X_CHANNEL)[None, :, None]
    x_row = group * (D // groups) + x_in_group
    lane = gl.arange(0, LANES, X_LANE)[:, None, None]
    x_valid = x_in_group < D // groups
    x_step = gl.arange(0, RUN, X_STEP)[None, :, None, None]
    first_step = x_step == 0
    last = x_step == RUN - 1
    nothing = gl.full([LANES, RUN, CHANNELS, 1], 0.0, gl.float32, X)
    # Of a state [states, parts, channels], and of LANES of its states.
    state_size = N * PARTS * D.to(gl.int64)
    state_step = LANES * PARTS * D.to(gl.int64)
    saved_rows = gl.cdiv(L, CHUNK)
    if PACKED:
        saved_rows += gl.where(by_index, 1, 0)

    # Of the copies.
    of_row = gl.arange(0, PARTS * ROWS * RUNS, gl.SliceLayout(0, gl.SliceLayout(1, WEIGHTS)))[None, None, :]
    of_step = gl.arange(0, RUN, gl.SliceLayout(0, gl.SliceLayout(2, WEIGHTS)))[None, :, None]
    of_state = gl.arange(0, LANES, gl.SliceLayout(1, gl.SliceLayout(2, WEIGHTS)))[:, None, None]
    state = of_row // RUNS % ROWS * LANES + of_state
    input_row = (batch * groups + group) * N
    weights = (input_row + state).to(gl.int64) * PARTS
    if COMPLEX:
        weights += of_row // (ROWS * RUNS)
    weights = weights * padded_length + (of_row % RUNS * RUN + of_step)

    blocks = gl.cdiv(N, STATES)
    stage = 0
    next_state, next_start = following(0, begin, N, STATES, STEPS)
    rows = (B, C, weights, state)
    if COMPLEX and ENDS:
        # [lanes, rows of states]: products of gates.
        GATES: gl.constexpr = gl.BlockedLayout([1, 1], [LANES, 32 // LANES], [1, WARPS], [0, 1])
        passing = gl.full([LANES, ROWS], 1.0, gl.float32, GATES)
        gate_state = (
            gl.arange(0, ROWS, gl.SliceLayout(0, GATES))[None, :] * LANES
            + gl.arange(0, LANES, gl.SliceLayout(1, GATES))[:, None]
        )
    if COMPLEX:
        zoh = (flags & ZOH) != 0
        options = (flags & (HAS_GATE | ZOH)) != 0
        unheld = gl.where(zoh, 0.0, 1.0)
        gate_row = gl.arange(0, ROWS * RUNS, gl.SliceLayout(0, gl.SliceLayout(1, WEIGHTS)))[None, None, :]
        gate_at_step = gate_row % RUNS * RUN + of_step
        gate_rows = (gate + batch * N * padded_length, gate_row // RUNS * LANES + of_state, gate_at_step)
        if (flags & HAS_GATE) != 0:
            fetch_gate(gate_slots.index(0), gate_rows, 0, begin, N, L, padded_length)
        else:
            ones = gl.full([LANES, RUN, ROWS * RUNS], 1.0, gl.float32, WEIGHTS)
            gate_slots.index(0).store(ones)
            gate_slots.index(1).store(ones)
    slots_ahead = (B_slots.index(0), C_slots.index(0))
    fetch_rows(slots_ahead, rows, 0, begin, N, L, padded_length, COMPLEX, ENDS)
    if COMPLEX:  # noqa: SIM102
        if (flags & HAS_GATE) != 0:
            fetch_gate(gate_slots.index(1), gate_rows, next_state, next_start, N, L, padded_length)
    slots_ahead = (B_slots.index(1), C_slots.index(1))
    fetch_rows(slots_ahead, rows, next_state, next_start, N, L, padded_length, COMPLEX, ENDS)
    used = (time < limit - begin) & valid_tile
    next_x = gl.load(u_at + step * u_time, used, 0.0)
    next_dt = gl.load(delta_at + step * delta_time, used, 0.0)
    if PACKED:
        next_entry = load_last_entry(runs, batch, begin, STEPS, L, by_index)
    # Of each state's tile only the last step goes into the next run.
    none = gl.full([LANES, CHANNELS, 1], 0.0, gl.float32, STATES_OF_X)
    states = ()
    rates = ()
    inverses = ()
    for _ in gl.static_range(ROWS):
        states += ((nothing, nothing) if COMPLEX else (nothing,),)
        rates += ((none, none, none) if COMPLEX else (none,),)
        if COMPLEX:
            inverses += ((none, none),)

    for start in range(begin, end, STEPS):
        used = (time < limit - start) & valid_tile
        upcoming = (time < limit - start - STEPS) & valid_tile
        x = widened_pairs(next_x, flags)
        dt = widened_pairs(next_dt, flags) + bias
        u_at += STEPS * u_time
        delta_at += STEPS * delta_time
        next_x = gl.load(u_at + step * u_time, upcoming, 0.0)
        next_dt = gl.load(delta_at + step * delta_time, upcoming, 0.0)
        if not ENDS:
            raw_z = gl.load(z_at + step * z_time, used & ((flags & HAS_Z) != 0), 0.0)
            z_at += STEPS * z_time
        if (flags & SOFTPLUS) != 0:
            dt = softplus(dt, delta.dtype.element_ty == gl.int16)
        # A step of length 0 leaves the state alone: so do the steps past the end.
        dt = gl.where(used, dt, 0.0)
        # delta as the recurrence takes it, with a mark where a sequence begins.
        told = dt
        if PACKED:
            plain = in_one_sequence(next_entry, start, STEPS, first, stop, by_index)
            next_entry = load_last_entry(runs, batch, start + STEPS, STEPS, L, by_index)
            complete = by_index | ((start >= first) & (start + STEPS <= stop))
            dt = unmarked(dt)
            told = dt
            if not plain:
                at = start + run_start + step
                live, fresh = of_sequence(load_entries(runs, batch, at, L, by_index), at, first, stop)
                x = gl.where(live, x, 0.0)
                dt = gl.where(live, dt, 0.0)
                told = marked(dt, fresh)
                if ENDS:
                    sequences += gl.sum(fresh.to(gl.int32), 0)
        dt_slots.store(told)
        # A hold has its own factor for delta.
        dtx_slots.store(gl.where(zoh, x, dt * x) if COMPLEX else dt * x)
        if ENDS:
            elapsed += gl.sum(dt, 0)
        else:
            y = D_value * x

        for block_of_states in range(0, blocks):
            begin_state = block_of_states * STATES
            # The state comes from initial_state and the spans before, or from 0, before the first tile, and
            # goes to last_state or span_ends after the final one. In between it stays in registers, or in
            # `carry` where there are more than these hold.
            if (start == begin) | (blocks > 1):
                opening = anew(start) == begin
                given = gl.where(opening, (not ENDS) & ((flags & HAS_STATE) != 0), True)
                if PACKED:
                    given = given & ((not opening) | begins_with_sequence(runs, batch, L, by_index))
                x_channel = anew(x_row).to(gl.int64)
                first_state = begin_state + anew(lane)
                in_rows = (x_channel * N + first_state) * PARTS
                in_planes = first_state * PARTS * D.to(gl.int64) + x_channel
                source = gl.where(opening, initial_state + state_row * state_size, carry + work * state_size)
                source += gl.where(opening, in_rows, in_planes)
                source_step = gl.where(opening, LANES * PARTS, LANES * PARTS * D.to(gl.int64))
                source_plane = gl.where(opening, 1, D)
                entering = ()
                rates = ()
                inverses = ()
                for j in gl.static_range(ROWS):
                    known = x_valid & (first_state + j * LANES < N)
                    entering += (load_state(source, j * source_step, source_plane, known & given, COMPLEX),)
                    rate = load_state(A + in_rows, j * LANES * PARTS, 1, known, COMPLEX)
                    if COMPLEX:
                        rate = held_rate(rate, zoh)
                        inverses += (held_inverse(rate, zoh),)
                    rates += (scaled_rates(rate, COMPLEX),)
                if not ENDS:
                    first_span = 0
                    if PACKED:
                        first_span = gl.where(by_index, 0, anew(first) // span_steps)
                    entering = states_through_spans(
                        entering,
                        rates,
                        (span_ends, span_times, span_gates),
                        (state_row, batches, x_channel, x_valid, first_state, in_planes, state_step),
                        (D, N, state_size),
                        (first_span, gl.where(opening, span, 0)),
                        flags,
                        (ROWS, LANES, AT_ONCE, COMPLEX),
                    )
                states = ()
                for j in gl.static_range(ROWS):
                    # Touched here, or each tile's first step would wait for whatever was loaded last.
                    h = zero_where(padded_length <= 0, entering[j], COMPLEX)
                    states += (spread(expand(h, 1, COMPLEX), nothing, COMPLEX),)
            saving = ((flags & SAVE_CHUNKS) != 0) & (start % CHUNK == 0)
            if PACKED:
                saving = saving & (start >= first)
            # Two conditions, for Triton 3.6 keeps a branch that `&` with a constant would close.
            if not ENDS:  # noqa: SIM102
                if saving:
                    x_channel = anew(x_row).to(gl.int64)
                    first_state = begin_state + anew(lane)
                    in_planes = first_state * PARTS * D.to(gl.int64) + x_channel
                    saved_row = batch * saved_rows + anew(start) // CHUNK
                    saved = chunk_states + (saved_row * state_size + in_planes)
                    for j in gl.static_range(ROWS):
                        known = x_valid & (first_state + j * LANES < N)
                        h = pick(states[j], last, COMPLEX)
                        store_state(saved, j * state_step, D, h, known, COMPLEX)

            # What the threads wait for here: rows asked for two blocks of states ago, and dt_slots.
            async_copy.wait_group(1)
            B_stage = B_slots.index(stage)
            C_stage = C_slots.index(stage)
            if PACKED:  # noqa: SIM102
                if not complete:
                    row_at = start + of_row % RUNS * RUN + of_step
                    inside = (row_at >= first) & (row_at < stop)
                    B_stage.store(gl.where(inside, B_stage.load(WEIGHTS), 0.0))
                    if not ENDS:
                        C_stage.store(gl.where(inside, C_stage.load(WEIGHTS), 0.0))
            gate_stage = gate_slots.index(stage)
            slots = (dt_slots, dtx_slots, B_stage, C_stage, y_slots)
            # Two calls, as what a compiler knows of a tile must stand in the call.
            usual = True
            if PACKED:
                usual = plain
            if COMPLEX:
                usual = options == 0
            if not (PACKED or COMPLEX) or usual:
                states = states_of_tile(
                    slots, rates, states, first_step, nothing, ROWS, RUNS, X, COMPLEX, ENDS, False, PREFETCH
                )
            elif COMPLEX:
                states = states_with_options(
                    slots, gate_stage, (rates, inverses, unheld), states, first_step, ROWS, RUNS, X, ENDS
                )
            else:
                states = states_of_tile(
                    slots, rates, states, first_step, nothing, ROWS, RUNS, X, COMPLEX, ENDS, True, PREFETCH
                )

            if (start + STEPS >= end) | (blocks > 1):
                closing = anew(start) + STEPS >= end
                x_channel = anew(x_row).to(gl.int64)
                first_state = begin_state + anew(lane)
                own = work * state_size + first_state * PARTS * D.to(gl.int64) + x_channel
                target = carry + own
                target_step = state_step
                target_plane = D
                wanted = x_valid
                if ENDS:
                    target = gl.where(closing, span_ends + own, target)
                else:
                    in_rows = (x_channel * N + first_state) * PARTS
                    target = gl.where(closing, last_state + state_row * state_size + in_rows, target)
                    target_step = gl.where(closing, LANES * PARTS, target_step)
                    target_plane = gl.where(closing, 1, D)
                    last_span = spans - 1
                    if PACKED:
                        last_span = gl.where(by_index, last_span, (anew(stop) - 1) // span_steps)
                    wanted = wanted & ((span == last_span) | (not closing))
                for j in gl.static_range(ROWS):
                    known = wanted & (first_state + j * LANES < N)
                    h = pick(states[j], last, COMPLEX)
                    store_state(target, j * target_step, target_plane, h, known, COMPLEX)

            if COMPLEX and ENDS:  # noqa: SIM102
                # Channels share gates: one block's program is enough.
                if ((flags & HAS_GATE) != 0) & (block == 0):
                    own_state = begin_state + anew(gate_state)
                    gate_at = span_gates + (work * N + own_state)
                    own_gate = own_state < N
                    if (start == begin) | (blocks > 1):
                        passing = gl.load(gate_at, own_gate & (start > begin), 1.0)
                    passing *= gates_of_tile(gate_stage, RUNS, WEIGHTS, GATES)
                    if (start + STEPS >= end) | (blocks > 1):
                        gl.store(gate_at, passing, own_gate)

            next_state, next_start = following(next_state, next_start, N, STATES, STEPS)
            if COMPLEX:  # noqa: SIM102
                if (flags & HAS_GATE) != 0:
                    fetch_gate(gate_stage, gate_rows, next_state, next_start, N, L, padded_length)
            slots_ahead = (B_stage, C_stage)
            fetch_rows(slots_ahead, rows, next_state, next_start, N, L, padded_length, COMPLEX, ENDS)
            stage = 1 - stage
            if not ENDS:
                shares = gl.sum(y_slots.load(SHARES), 0)
                y += 2.0 * shares if COMPLEX else shares

        if not ENDS:
            if (flags & HAS_Z) != 0:
                zv = widened_pairs(raw_z, flags)
                y *= zv * sigmoid_fast(zv)
            now = out_at + step * out_time
            if COMPLEX:
                # Made again, for no registers are left to keep it.
                used = (anew(time) < limit - start) & valid_tile
            if not PACKED or plain:
                gl.store(now, narrowed_pairs(y, out.dtype.element_ty, flags), used)
            else:
                at = start + run_start + step
                live = of_sequence(load_entries(runs, batch, at, L, by_index), at, first, stop)[0]
                own = narrowed_pairs(gl.where(live, y, 0.0), out.dtype.element_ty, flags)
                gl.store(now, own, used & (live | complete))
            out_at += STEPS * out_time
    async_copy.wait_group(0)
    if ENDS:
        length = gl.convert_layout(gl.sum(elapsed, 1), CHANNEL)
        if PACKED:
            begun = gl.convert_layout(gl.sum(sequences, 1), CHANNEL)
            length = gl.where(begun > 0, FORGOTTEN, length)
        gl.store(span_times + (work * D + channel), length, valid)
