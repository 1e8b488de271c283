"""How the adjoint of the state comes through spans of time, where whole rows are too few to fill a GPU.

The backward kernel walks a span by itself once it knows the adjoint that comes back from the spans after it.
This kernel walks each span from an adjoint of zero, in the layout of that one; entering_adjoint() puts the
spans together.
"""

from _arithmetic import anew, sigmoid_fast, softplus
from _half import widened_pairs
from _overlap import let_next_kernel_begin, wait_for_earlier_kernels
from _recurrence import add, conjugate, exponential, multiply, product, scale, scaled_rates, zero_where
from _scan_operands import (
    CHUNK,
    HAS_BIAS,
    HAS_GATE,
    HAS_STATE,
    HAS_Z,
    NEXT_FILLS_GPU,
    SOFTPLUS,
    load_state,
    store_state,
)
from _scan_packing import BY_INDEX, own_steps
from _selective_scan_runs import RUN, adjoints_of_run, of_run
from _selective_scan_sequences import (
    FORGOTTEN,
    in_one_sequence,
    load_entries,
    load_last_entry,
    marked,
    of_sequence,
    unmarked,
)
from _selective_scan_slots import in_runs, load_run, load_weights, whole
from _selective_scan_tiles import (
    chunk_layouts,
    fetch_gate,
    places,
    places_of_states,
    places_of_weights,
    states_layout,
    weights_layout,
)
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy


@gluon.jit
def selective_scan_adjoint_kernel(
    dout,
    delta,
    z,
    A,
    C,
    gate,
    delta_bias,
    ends,
    elapsed_times,
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
    pieces,
    dout_batch,
    dout_channel,
    dout_time,
    delta_batch,
    delta_channel,
    delta_time,
    z_batch,
    z_channel,
    z_time,
    flags,
    LAYOUT: gl.constexpr,
    COMPLEX: gl.constexpr,
    PACKED: gl.constexpr,
    LANES: gl.constexpr,
    STATES: gl.constexpr,
    CHANNELS: gl.constexpr,
):
    """One program a piece of a span but the first, batch row and block of channels: `ends` [pieces of all
    spans, batch, N (, 2), D] is the adjoint at the piece's first step from zero behind it, `elapsed_times`
    [pieces, batch, D] the sum of its steps, `span_gates` [pieces, batch, N, D] the product of its gates.
    """
    WARPS: gl.constexpr = gl.num_warps()
    ROWS: gl.constexpr = STATES // LANES
    PARTS: gl.constexpr = 2 if COMPLEX else 1
    RUNS: gl.constexpr = CHUNK // RUN
    X: gl.constexpr = states_layout(ROWS, LANES, WARPS)
    STATES_OF_X: gl.constexpr = gl.SliceLayout(3, X)
    # [runs, channels, steps]: each element of a chunk once, 16 bytes of memory at a time.
    JOINED: gl.constexpr = 2 if LAYOUT == "seq" and delta.dtype.element_ty == gl.int16 else 1
    TILE: gl.constexpr = chunk_layouts(LAYOUT, JOINED, CHANNELS, RUNS, WARPS)[0]
    WEIGHTS: gl.constexpr = weights_layout(LANES, WARPS)
    if LAYOUT == "seq":
        dout_time = 1
        delta_time = 1
        z_time = 1
    ROWS_OF_RUNS: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    dt_slots = gl.allocate_shared_memory(gl.float32, [RUNS, CHANNELS, RUN], ROWS_OF_RUNS)
    dy_slots = gl.allocate_shared_memory(gl.float32, [RUNS, CHANNELS, RUN], ROWS_OF_RUNS)
    C_slots = gl.allocate_shared_memory(
        gl.float32, [RUNS, PARTS * ROWS, LANES, RUN], gl.SwizzledSharedLayout(1, 1, 1, [2, 1, 0])
    )
    if COMPLEX:
        gate_slots = gl.allocate_shared_memory(
            gl.float32, [RUNS, ROWS, LANES, RUN], gl.SwizzledSharedLayout(1, 1, 1, [2, 1, 0])
        )

    blocks_per_group = gl.cdiv(D // groups, CHANNELS)
    programs_a_row = groups * blocks_per_group
    # Fewer programs would crowd where this kernel's leave room.
    if (flags & NEXT_FILLS_GPU) != 0:
        let_next_kernel_begin()
    wait_for_earlier_kernels()
    block = gl.program_id(0) % programs_a_row
    # Only the backward in warps of two kinds asks for more, which takes neither.
    if COMPLEX or PACKED:
        pieces = 1
    batches = gl.num_programs(0) // (programs_a_row * (spans - 1) * pieces)
    # Nothing enters a span from the first one.
    row = (gl.program_id(0) // programs_a_row + batches * pieces).to(gl.int64)
    batch = row % batches
    own_begin, own_end = chunks_of_piece((row // batches).to(gl.int32), chunk_begin, chunk_end, spans, pieces)
    if PACKED:
        batch, first, stop = own_steps(runs, batch, L, flags)
        by_index = (flags & BY_INDEX) != 0
        # Of a sequence only spans before which it goes on.
        stop_chunk = gl.where(by_index | (first < own_begin * CHUNK), gl.cdiv(stop, CHUNK), 0)
        own_end = gl.maximum(gl.minimum(stop_chunk, own_end), own_begin)
    group = block // blocks_per_group
    first_in_group = (block % blocks_per_group) * CHANNELS
    dout += batch * dout_batch
    delta += batch * delta_batch
    z += batch * z_batch

    CHANNEL: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(2, TILE))
    in_group = first_in_group + gl.arange(0, CHANNELS, CHANNEL)
    channel = group * (D // groups) + in_group
    valid = in_group < D // groups
    run = gl.arange(0, RUNS // JOINED, gl.SliceLayout(1, gl.SliceLayout(2, TILE)))
    step = gl.arange(0, JOINED * RUN, gl.SliceLayout(0, gl.SliceLayout(1, TILE)))
    time = run[:, None, None] * (JOINED * RUN) + step[None, None, :]
    bias = gl.load(delta_bias + channel, valid & ((flags & HAS_BIAS) != 0), 0.0)[None, :, None]

    x_in_group, x_row, x_state = places_of_states(first_in_group, D // groups, group, ROWS, CHANNELS, X)
    w_state, w_time, weights = places_of_weights(
        (batch * groups + group) * N, padded_length, RUNS, ROWS, LANES, WEIGHTS, COMPLEX
    )

    blocks = gl.cdiv(N, STATES)
    elapsed = gl.zeros([RUNS // JOINED, CHANNELS], gl.float32, gl.SliceLayout(2, TILE))
    if PACKED:
        sequences = gl.zeros([1], gl.int32, CHANNEL)
        next_entry = load_last_entry(runs, batch, (own_end - 1) * CHUNK, CHUNK, L, by_index)
    zero = gl.zeros([ROWS, LANES, CHANNELS], gl.float32, STATES_OF_X)
    rate = (zero, zero) if COMPLEX else (zero,)
    mu = rate
    passing = zero
    for chunk in range(own_end - 1, own_begin - 1, -1):
        begin = chunk * CHUNK
        used = (begin + time < L) & valid[None, :, None]
        raw_dt = gl.load(
            delta + places(begin, run, channel, step, delta_time, delta_channel, LAYOUT), used, 0
        )
        raw_dy = gl.load(dout + places(begin, run, channel, step, dout_time, dout_channel, LAYOUT), used, 0)
        with_z = used & ((flags & HAS_Z) != 0)
        raw_z = gl.load(z + places(begin, run, channel, step, z_time, z_channel, LAYOUT), with_z, 0)
        dt = widened_pairs(raw_dt, flags) + bias
        if (flags & SOFTPLUS) != 0:
            dt = softplus(dt, delta.dtype.element_ty == gl.int16)
        dt = gl.where(used, dt, 0.0)
        dy = widened_pairs(raw_dy, flags)
        if (flags & HAS_Z) != 0:
            zv = widened_pairs(raw_z, flags)
            dy *= zv * sigmoid_fast(zv)
        told = dt
        if PACKED:
            plain = in_one_sequence(next_entry, begin, CHUNK, first, stop, by_index)
            next_entry = load_last_entry(runs, batch, begin - CHUNK, CHUNK, L, by_index)
            dt = unmarked(dt)
            told = dt
            if not plain:
                steps = begin + time
                live, fresh = of_sequence(load_entries(runs, batch, steps, L, by_index), steps, first, stop)
                dt = gl.where(live, dt, 0.0)
                dy = gl.where(live, dy, 0.0)
                sequences += gl.sum(gl.sum(fresh.to(gl.int32), 2), 0)
                told = marked(dt, fresh)
        elapsed += gl.sum(dt, 2)
        whole(dt_slots).store(in_runs(told))
        whole(dy_slots).store(in_runs(dy))

        for block_of_states in range(0, blocks):
            begin_state = block_of_states * STATES
            offset = begin_state * PARTS * padded_length + begin
            if COMPLEX:
                fetch_gate(
                    gate_slots, gate, batch, begin_state, chunk, N, padded_length, True, flags, WEIGHTS
                )
            async_copy.async_copy_global_to_shared(
                whole(C_slots), C + (weights + offset), begin_state + w_state < N
            )
            async_copy.commit_group()
            state = begin_state + x_state
            known = (x_in_group < D // groups) & (state < N)
            at = row * (N * PARTS) * D + (anew(x_row).to(gl.int64) + (state * PARTS).to(gl.int64) * D)
            # Rates and adjoints stay in registers, or in memory where these hold too few.
            if (chunk == own_end - 1) | (blocks > 1):
                rate = load_state(A, (anew(x_row).to(gl.int64) * N + state) * PARTS, 1, known, COMPLEX)
                mu = load_state(ends, at, D, known & (chunk < own_end - 1), COMPLEX)
                if COMPLEX:
                    gates_at = (row * N + state) * D + anew(x_row).to(gl.int64)
                    gated = known & (chunk < own_end - 1) & ((flags & HAS_GATE) != 0)
                    passing = gl.load(span_gates + gates_at, gated, 1.0)
            rates = of_run(scaled_rates(rate, COMPLEX), COMPLEX)
            async_copy.wait_group(0)
            ungated = True
            if COMPLEX:
                ungated = (flags & HAS_GATE) == 0
            if PACKED:
                ungated = plain
            if not (PACKED or COMPLEX) or ungated:
                mu = adjoint_before_chunk(dt_slots, dy_slots, C_slots, rates, mu, X, False, COMPLEX)
            elif COMPLEX:
                mu, passing = gated_adjoint_before_chunk(
                    dt_slots, dy_slots, C_slots, gate_slots, rates, mu, passing, X
                )
            else:
                inside = (begin + w_time >= first) & (begin + w_time < stop)
                whole(C_slots).store(gl.where(inside, whole(C_slots).load(WEIGHTS), 0.0))
                mu = adjoint_before_chunk(dt_slots, dy_slots, C_slots, rates, mu, X, True, COMPLEX)
            if (chunk == own_begin) | (blocks > 1):
                store_state(ends, at, D, mu, known, COMPLEX)
                if COMPLEX:
                    gates_at = (row * N + state) * D + anew(x_row).to(gl.int64)
                    gl.store(span_gates + gates_at, passing, known & ((flags & HAS_GATE) != 0))
    length = gl.sum(elapsed, 0)
    if PACKED:
        length = gl.where(sequences > 0, FORGOTTEN, length)
    gl.store(elapsed_times + row * D + channel, length, valid)


@gluon.jit
def adjoint_before_chunk(
    dt_slots,
    dy_slots,
    C_slots,
    rates,
    mu,
    X: gl.constexpr,
    RESTARTS: gl.constexpr,
    COMPLEX: gl.constexpr,
):
    """The adjoint before a chunk, from that behind it. With RESTARTS sequences begin inside."""
    RUNS: gl.constexpr = dt_slots.shape[0]
    for back in range(0, RUNS):
        k = anew(RUNS - 1 - back)
        c = load_weights(C_slots, k, X, COMPLEX)
        step_dt = load_run(dt_slots, k, X)
        step_dy = load_run(dy_slots, k, X)
        if COMPLEX:
            step_dy *= 2.0
        a = exponential(step_dt, rates, COMPLEX)
        entering = scale(conjugate(c, COMPLEX), step_dy, COMPLEX)
        mu = adjoints_of_run(a, entering, mu, step_dt, RESTARTS, COMPLEX)[1]
    return mu


@gluon.jit
def gated_adjoint_before_chunk(dt_slots, dy_slots, C_slots, gate_slots, rates, mu, passing, X: gl.constexpr):
    """The same of complex states with a gate, and `passing`, a product of gates, with the chunk's."""
    RUNS: gl.constexpr = dt_slots.shape[0]
    for back in range(0, RUNS):
        k = anew(RUNS - 1 - back)
        c = load_weights(C_slots, k, X, True)
        gate = load_weights(gate_slots, k, X, False)[0]
        step_dt = load_run(dt_slots, k, X)
        step_dy = 2.0 * load_run(dy_slots, k, X)
        a = scale(exponential(step_dt, rates, True), gate, True)
        entering = scale(conjugate(c, True), step_dy, True)
        mu = adjoints_of_run(a, entering, mu, step_dt, False, True)[1]
        passing *= gl.reduce(gate, 3, product)
    return mu, passing


@gluon.jit
def chunks_of_span(span, chunk_begin, chunk_end, spans):
    """Which chunks of a launch are the span's: as many as the others', but for the last."""
    each = gl.cdiv(chunk_end - chunk_begin, spans)
    begin = gl.minimum(chunk_begin + span * each, chunk_end)
    return begin, gl.minimum(begin + each, chunk_end)


@gluon.jit
def chunks_of_piece(piece, chunk_begin, chunk_end, spans, pieces):
    """The same of a piece of a span, of so many that each has."""
    begin, end = chunks_of_span(piece // pieces, chunk_begin, chunk_end, spans)
    each = gl.cdiv(gl.cdiv(chunk_end - chunk_begin, spans), pieces)
    begin = gl.minimum(begin + piece % pieces * each, end)
    return begin, gl.minimum(begin + each, end)


@gluon.jit
def entering_adjoint(
    incoming,
    ends,
    elapsed_times,
    span_gates,
    rate,
    at,
    channel,
    known,
    row,
    batches,
    last_span,
    D,
    state_size,
    flags,
    COMPLEX: gl.constexpr,
    pieces=1,
    AT_ONCE: gl.constexpr = 1,
):
    """The adjoint that enters a span, for some states and channels: that which comes back to the launch
    (`incoming`, if flags say that there is one), through the pieces of the spans behind, up to `last_span`.
    `at` is where a row of `state_size` numbers has them. What so many pieces leave is asked for AT_ONCE.
    """
    batch = row % batches
    span = (row // batches).to(gl.int32)
    returning = known & ((flags & HAS_STATE) != 0)
    mu = load_state(incoming + batch * state_size, at, D, returning, COMPLEX)
    first_behind = (span + 1) * pieces
    for last_of_some in range((last_span + 1) * pieces - 1, first_behind - 1, -AT_ONCE):
        for k in gl.static_range(AT_ONCE):
            # One that is not there takes no time and adds nothing.
            there = known & (last_of_some - k >= first_behind) if AT_ONCE > 1 else known
            other = (last_of_some - k) * batches + batch
            elapsed = gl.load(elapsed_times + other * D + channel, there, 0.0)
            a = conjugate(exponential(elapsed, scaled_rates(rate, COMPLEX), COMPLEX), COMPLEX)
            if COMPLEX:
                gates = span_gates + (other * (state_size // 2) + (at + channel) // 2)
                a = scale(a, gl.load(gates, there & ((flags & HAS_GATE) != 0), 1.0), COMPLEX)
            passed = zero_where(elapsed == FORGOTTEN, multiply(a, mu, COMPLEX), COMPLEX)
            mu = add(passed, load_state(ends + other * state_size, at, D, there, COMPLEX), COMPLEX)
    return mu
