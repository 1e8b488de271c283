"""Selective scan, forward, of real states without the options of the general kernel.

A program owns a block of channels of one batch entry and walks over time in tiles. LANES threads share a
channel, each with every LANES-th of its states, so no step is computed twice and few channels still fill a
chip. What all of them need once (delta after its bias and softplus, delta u, rows of B and C) lies in shared
memory, four steps of a row at a time; so do their shares of y, which are added up once a tile.
"""

from _arithmetic import LOG2E, anew, exp2_fast, sigmoid, softplus
from _half import narrowed, widened
from _recurrence import pick, scan_from
from _scan_operands import CHUNK, HAS_BIAS, HAS_D, HAS_STATE, HAS_Z, SAVE_CHUNKS, SOFTPLUS
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy

# Steps that a thread takes at a time: 16 bytes of shared memory.
RUN = gl.constexpr(4)


@gluon.jit
def fetch_rows(slots, x, offsets, start, fetched):
    async_copy.async_copy_global_to_shared(slots, x + (offsets + start), fetched)


@gluon.jit
def places(start, run, step, channel, time_stride, channel_stride, LAYOUT: gl.constexpr):
    """Offsets of a tile [steps of a run, channels, runs]; made where they are used, for kept ones would fill
    the registers that the recurrence is short of.
    """
    begin = (start + anew(run) * RUN).to(gl.int64) * time_stride
    row = anew(channel).to(gl.int64) * channel_stride
    along = step.to(gl.int64) if LAYOUT == "seq" else anew(step).to(gl.int64) * time_stride
    return begin[None, None, :] + row[None, :, None] + along[:, None, None]


@gluon.jit
def selective_scan_plain_fwd_kernel(
    u,
    delta,
    z,
    out,
    A,
    B,
    C,
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
    LAYOUT: gl.constexpr,
    LANES: gl.constexpr,
    STATES: gl.constexpr,
    STEPS: gl.constexpr,
    CHANNELS: gl.constexpr,
):
    WARPS: gl.constexpr = gl.num_warps()
    RUNS: gl.constexpr = STEPS // RUN
    ROWS: gl.constexpr = STATES // LANES
    # [lanes, steps of a run, channels, runs], one run at a time: the recurrence.
    X: gl.constexpr = gl.BlockedLayout(
        [1, RUN, 1, 1], [LANES, 1, 32 // LANES, 1], [1, 1, WARPS, 1], [1, 2, 0, 3]
    )
    STEPS_OF_X: gl.constexpr = gl.SliceLayout(0, X)
    STATES_OF_X: gl.constexpr = gl.SliceLayout(1, X)
    WEIGHTS_OF_X: gl.constexpr = gl.SliceLayout(2, X)
    # The same axes, all runs: each element once, all of its lanes in one thread.
    ACROSS: gl.constexpr = min(CHANNELS, 8 if LAYOUT == "seq" else 32)
    WIDE: gl.constexpr = WARPS if WARPS < CHANNELS // ACROSS else CHANNELS // ACROSS
    SHARES: gl.constexpr = gl.BlockedLayout(
        [LANES, RUN, 1, 1], [1, 1, ACROSS, 32 // ACROSS], [1, 1, WIDE, WARPS // WIDE], [1, 0, 2, 3]
    )
    TILE: gl.constexpr = gl.SliceLayout(0, SHARES)
    # [lanes, steps of a run, rows of runs]: copies of B and C.
    WEIGHTS: gl.constexpr = gl.BlockedLayout([1, RUN, 1], [LANES, 1, 32 // LANES], [1, 1, WARPS], [1, 0, 2])
    if LAYOUT == "seq":
        u_time = 1
        delta_time = 1
        z_time = 1
        out_time = 1

    SCALARS: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0, 1, 2])
    dt_slots = gl.allocate_shared_memory(gl.float32, [RUN, CHANNELS, RUNS], SCALARS)
    dtx_slots = gl.allocate_shared_memory(gl.float32, [RUN, CHANNELS, RUNS], SCALARS)
    y_slots = gl.allocate_shared_memory(
        gl.float32, [LANES, RUN, CHANNELS, RUNS], gl.SwizzledSharedLayout(1, 1, 1, [1, 2, 0, 3])
    )
    ROW: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0, 2])
    B_slots = gl.allocate_shared_memory(gl.float32, [2, LANES, RUN, ROWS * RUNS], ROW)
    C_slots = gl.allocate_shared_memory(gl.float32, [2, LANES, RUN, ROWS * RUNS], ROW)

    blocks_per_group = gl.cdiv(D // groups, CHANNELS)
    block = gl.program_id(0) % (groups * blocks_per_group)
    batch = (gl.program_id(0) // (groups * blocks_per_group)).to(gl.int64)
    group = block // blocks_per_group
    first_in_group = (block % blocks_per_group) * CHANNELS

    # Of the tile: which channels and steps.
    CHANNEL: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(2, TILE))
    in_group = first_in_group + gl.arange(0, CHANNELS, CHANNEL)
    channel = group * (D // groups) + in_group
    valid = in_group < D // groups
    step = gl.arange(0, RUN, gl.SliceLayout(1, gl.SliceLayout(2, TILE)))
    run = gl.arange(0, RUNS, gl.SliceLayout(0, gl.SliceLayout(1, TILE)))
    time = run[None, None, :] * RUN + step[:, None, None]
    valid_tile = valid[None, :, None]
    u += batch * u_batch
    delta += batch * delta_batch
    z += batch * z_batch
    out += batch * out_batch
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
    first = x_step == 0
    last = x_step == RUN - 1
    saved_rows = gl.cdiv(L, CHUNK)

    # Of the copies.
    row = gl.arange(0, ROWS * RUNS, gl.SliceLayout(0, gl.SliceLayout(1, WEIGHTS)))[None, None, :]
    of_step = gl.arange(0, RUN, gl.SliceLayout(0, gl.SliceLayout(2, WEIGHTS)))[None, :, None]
    of_state = gl.arange(0, LANES, gl.SliceLayout(1, gl.SliceLayout(2, WEIGHTS)))[:, None, None]
    state = row // RUNS * LANES + of_state
    input_row = (batch * groups + group) * N
    weights = (input_row + state).to(gl.int64) * padded_length + (row % RUNS * RUN + of_step)

    blocks = gl.cdiv(N, STATES)
    fetch_rows(B_slots.index(0), B, weights, 0, state < N)
    fetch_rows(C_slots.index(0), C, weights, 0, state < N)
    async_copy.commit_group()
    stage = 0
    used = (time < L) & valid_tile
    next_x = gl.load(u + places(0, run, step, channel, u_time, u_channel, LAYOUT), used, 0.0)
    next_dt = gl.load(delta + places(0, run, step, channel, delta_time, delta_channel, LAYOUT), used, 0.0)
    h = ()
    for _ in gl.static_range(ROWS):
        h += (gl.full([LANES, CHANNELS, 1], 0.0, gl.float32, STATES_OF_X),)

    for start in range(0, L, STEPS):
        raw_x = next_x
        x = widened(raw_x, flags)
        dt = widened(next_dt, flags) + bias
        used = (start + time < L) & valid_tile
        upcoming = (start + STEPS + time < L) & valid_tile
        ahead = start + STEPS
        next_x = gl.load(u + places(ahead, run, step, channel, u_time, u_channel, LAYOUT), upcoming, 0.0)
        next_dt = gl.load(
            delta + places(ahead, run, step, channel, delta_time, delta_channel, LAYOUT), upcoming, 0.0
        )
        if (flags & SOFTPLUS) != 0:
            dt = softplus(dt)
        # A step of length 0 leaves the state alone: so do the steps past the end.
        dt = gl.where(used, dt, 0.0)
        dt_slots.store(dt)
        dtx_slots.store(dt * x)
        y = D_value * x
        z_at = z + places(start, run, step, channel, z_time, z_channel, LAYOUT)
        raw_z = gl.load(z_at, used & ((flags & HAS_Z) != 0), 0.0)

        for block_of_states in range(0, blocks):
            begin = block_of_states * STATES
            later = block_of_states + 1 < blocks
            next_begin = gl.where(later, begin + STATES, 0)
            next_start = gl.where(later, start, start + STEPS)
            offset = next_begin.to(gl.int64) * padded_length + next_start
            fetched = (state + next_begin < N) & (next_start < L)
            fetch_rows(B_slots.index(1 - stage), B, weights, offset, fetched)
            fetch_rows(C_slots.index(1 - stage), C, weights, offset, fetched)
            async_copy.commit_group()

            # The state comes from initial_state before the first tile and goes to last_state after the final
            # one. In between it stays in registers, or in `carry` where there are more than these hold.
            rates = ()
            entering = ()
            opening = start == 0
            restored = opening | (blocks > 1)
            given = gl.where(opening, (flags & HAS_STATE) != 0, blocks > 1)
            x_channel = anew(x_row).to(gl.int64)
            first_state = begin + anew(lane)
            source = gl.where(opening, initial_state + batch * D * N, carry + batch * D * N)
            source += gl.where(opening, x_channel * N + first_state, first_state * D.to(gl.int64) + x_channel)
            source_step = gl.where(opening, LANES, LANES * D)
            A_at = A + (x_channel * N + first_state)
            for j in gl.static_range(ROWS):
                known = x_valid & (first_state + j * LANES < N)
                loaded = gl.load(source + j * source_step, known & given, 0.0)
                # Without an initial state this is 0, not what the block of states before left in h.
                entering += (gl.where(restored, loaded, h[j]),)
                rate = gl.load(A_at + j * LANES, known, 0.0) * LOG2E
                rates += (gl.expand_dims(rate, 1),)
            if ((flags & SAVE_CHUNKS) != 0) & (start % CHUNK == 0):
                saved = (
                    chunk_states + ((batch * saved_rows + start // CHUNK) * N + first_state) * D + x_channel
                )
                for j in gl.static_range(ROWS):
                    gl.store(saved + j * LANES * D, entering[j], x_valid & (first_state + j * LANES < N))
            h = entering

            async_copy.wait_group(1)
            B_stage = B_slots.index(stage)
            C_stage = C_slots.index(stage)
            for s in gl.static_range(RUNS):
                step_dt = gl.expand_dims(dt_slots.slice(s, 1, 2).load(STEPS_OF_X), 0)
                step_dtx = gl.expand_dims(dtx_slots.slice(s, 1, 2).load(STEPS_OF_X), 0)
                # -0.0 + y is y: no instruction.
                share = gl.full([LANES, RUN, CHANNELS, 1], -0.0, gl.float32, X)
                through = ()
                for j in gl.static_range(ROWS):
                    b = gl.expand_dims(B_stage.slice(j * RUNS + s, 1, 2).load(WEIGHTS_OF_X), 2)
                    c = gl.expand_dims(C_stage.slice(j * RUNS + s, 1, 2).load(WEIGHTS_OF_X), 2)
                    a = exp2_fast(step_dt * rates[j])
                    states = scan_from((h[j],), (a,), (b * step_dtx,), first, False)
                    through += (pick(states, last, False)[0],)
                    share += c * states[0]
                h = through
                y_slots.slice(s, 1, 3).store(share)

            closing = start + STEPS >= L
            if closing | (blocks > 1):
                x_channel = anew(x_row).to(gl.int64)
                first_state = begin + anew(lane)
                target = gl.where(closing, last_state + batch * D * N, carry + batch * D * N)
                target += gl.where(
                    closing, x_channel * N + first_state, first_state * D.to(gl.int64) + x_channel
                )
                target_step = gl.where(closing, LANES, LANES * D)
                for j in gl.static_range(ROWS):
                    gl.store(target + j * target_step, h[j], x_valid & (first_state + j * LANES < N))
            y += gl.sum(y_slots.load(SHARES), 0)
            stage = 1 - stage

        if (flags & HAS_Z) != 0:
            zv = widened(raw_z, flags)
            y *= zv * sigmoid(zv)
        at = out + places(start, run, step, channel, out_time, out_channel, LAYOUT)
        gl.store(at, narrowed(y, at.dtype.element_ty, flags), used)
    async_copy.wait_group(0)
