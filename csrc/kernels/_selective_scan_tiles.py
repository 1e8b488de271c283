"""Layouts of the backward of plain scans and of the pass before its spans; where a chunk lies in memory."""

from _arithmetic import anew
from _half import narrowed_pairs
from _scan_operands import CHUNK, HAS_GATE, HAS_Z, load_state
from _scan_packing import BY_INDEX
from _selective_scan_runs import RUN
from _selective_scan_slots import whole
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy


@gluon.constexpr_function
def states_layout(rows, lanes, warps):
    """[rows of states, lanes, channels, steps of a run], one run at a time: the recurrences."""
    return gl.BlockedLayout([rows, 1, 1, RUN], [1, 1, 32, 1], [1, lanes, warps // lanes, 1], [3, 2, 1, 0])


@gluon.constexpr_function
def weights_layout(lanes, warps):
    """[runs, rows of states, lanes, steps of a run]: copies of B and C."""
    return gl.BlockedLayout([1, 1, 1, RUN], [4, 8 // lanes, lanes, 1], [warps, 1, 1, 1], [3, 2, 1, 0])


@gluon.constexpr_function
def chunk_layouts(layout, joined, channels, runs, warps):
    """Each element of a chunk once: [runs, channels, steps], 16 bytes of memory at a time; the same with RUN
    steps each, as shared memory has them; and with the runs of each tile apart.
    """
    across = min(channels, 8 if layout == "seq" else 32)
    wide = min(warps, channels // across)
    tile = gl.BlockedLayout(
        [1, 1, joined * RUN.value], [32 // across, across, 1], [warps // wide, wide, 1], [2, 1, 0]
    )
    in_runs = gl.BlockedLayout(
        [joined, 1, RUN.value], [32 // across, across, 1], [warps // wide, wide, 1], [2, 1, 0]
    )
    beside = min(32 // across, runs // joined)
    of_warps = min(warps // wide, runs // joined // beside)
    in_tiles = gl.BlockedLayout(
        [1, joined, 1, RUN.value],
        [32 // across // beside, beside, across, 1],
        [warps // wide // of_warps, of_warps, wide, 1],
        [3, 2, 1, 0],
    )
    return tile, in_runs, in_tiles


@gluon.constexpr_function
def shares_layout(runs, lanes, warps):
    """[runs, lanes, channels, steps of a run]: shares of the lanes, all of an element's in one thread."""
    each = max(runs * RUN.value // lanes, 1)
    return gl.BlockedLayout(
        [1, lanes, 1, each],
        [lanes * each // RUN.value, 1, 32 // lanes, RUN.value // each],
        [1, 1, warps, 1],
        [3, 2, 1, 0],
    )


@gluon.constexpr_function
def sums_layouts(terms, channels, warps):
    """[terms, channels and steps of a run]: terms of sums over channels, and these sums, without channels."""
    each = min(channels * RUN.value, terms * channels * RUN.value // (32 * warps))
    split = channels * RUN.value // each
    of_terms = gl.BlockedLayout([1, each], [32 // split, split], [warps, 1], [0, 1])
    apart = gl.BlockedLayout(
        [1, each // RUN.value, RUN.value], [32 // split, split, 1], [warps, 1, 1], [2, 0, 1]
    )
    return of_terms, gl.SliceLayout(1, apart)


@gluon.jit
def places(begin, run, channel, step, time_stride, channel_stride, LAYOUT: gl.constexpr):
    """Offsets of a chunk [runs, channels, steps of a run], made where they are used."""
    start = (begin + anew(run) * step.shape[0]).to(gl.int64) * time_stride
    row = anew(channel).to(gl.int64) * channel_stride
    along = step.to(gl.int64) if LAYOUT == "seq" else anew(step).to(gl.int64) * time_stride
    return start[:, None, None] + row[None, :, None] + along[None, None, :]


@gluon.jit
def places_of_states(
    first_in_group, group_size, group, ROWS: gl.constexpr, CHANNELS: gl.constexpr, X: gl.constexpr
):
    """Of the recurrences, [rows of states, lanes, channels]: channels of the group, channels, states."""
    LANES: gl.constexpr = X.warps_per_cta[1]
    STATES: gl.constexpr = gl.SliceLayout(3, X)
    CHANNEL: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(1, STATES))
    in_group = first_in_group + gl.arange(0, CHANNELS, CHANNEL)[None, None, :]
    row = group * group_size + in_group
    state = (
        gl.arange(0, ROWS, gl.SliceLayout(1, gl.SliceLayout(2, STATES)))[:, None, None] * LANES
        + gl.arange(0, LANES, gl.SliceLayout(0, gl.SliceLayout(2, STATES)))[None, :, None]
    )
    return in_group, row, state


@gluon.jit
def places_of_weights(
    input_row,
    padded_length,
    RUNS: gl.constexpr,
    ROWS: gl.constexpr,
    LANES: gl.constexpr,
    WEIGHTS: gl.constexpr,
    COMPLEX: gl.constexpr,
):
    """Of copies of B and C, [runs, rows of states, lanes, steps of a run]: states, steps, offsets. The real
    parts of all rows come first.
    """
    PARTS: gl.constexpr = 2 if COMPLEX else 1
    run = gl.arange(0, RUNS, gl.SliceLayout(1, gl.SliceLayout(2, gl.SliceLayout(3, WEIGHTS))))
    row = gl.arange(0, PARTS * ROWS, gl.SliceLayout(0, gl.SliceLayout(2, gl.SliceLayout(3, WEIGHTS))))
    lane = gl.arange(0, LANES, gl.SliceLayout(0, gl.SliceLayout(1, gl.SliceLayout(3, WEIGHTS))))
    step = gl.arange(0, RUN, gl.SliceLayout(0, gl.SliceLayout(1, gl.SliceLayout(2, WEIGHTS))))
    state = (row % ROWS)[None, :, None, None] * LANES + lane[None, None, :, None]
    time = run[:, None, None, None] * RUN + step[None, None, None, :]
    of_part = (row // ROWS)[None, :, None, None]
    return state, time, ((input_row + state) * PARTS + of_part) * padded_length + time


@gluon.jit
def places_of_sums(
    first_row,
    partial_length,
    RUNS: gl.constexpr,
    STATES: gl.constexpr,
    SUM: gl.constexpr,
    COMPLEX: gl.constexpr,
):
    """Of a tile's sums over channels, [parts, runs and states, steps of a run]: states, steps, offsets in
    planes whose first state is `first_row`.
    """
    PARTS: gl.constexpr = 2 if COMPLEX else 1
    term = gl.arange(0, PARTS * RUNS * STATES, gl.SliceLayout(1, SUM))
    step = gl.arange(0, RUN, gl.SliceLayout(0, SUM))
    state = term % STATES
    run = term // STATES % RUNS
    row = (first_row + state) * PARTS
    if COMPLEX:
        row += term // (RUNS * STATES)
    planes = row * partial_length + run * RUN
    return state, (run * RUN)[:, None] + step[None, :], planes[:, None] + step[None, :]


@gluon.jit
def row_of_totals(row, batches, flags, PACKED: gl.constexpr):
    """Where sums over a program's steps lie. By ends the programs that have steps, in the order of time, each
    take the next sequence or the next span: no two have the same sum of both numbers.
    """
    if PACKED:
        at = anew(row.to(gl.int32))
        return gl.where((flags & BY_INDEX) != 0, at, at % batches + at // batches).to(gl.int64)
    else:
        return row


@gluon.jit
def fetch_rows(slots, rows, first_state, chunk, N, padded_length, wanted, COMPLEX: gl.constexpr):
    """Ask for B and C of a chunk and a block of states. `rows` are the two, offsets in them, and states."""
    B_slots, C_slots = slots
    B, C, weights, state = rows
    at = weights + (first_state * (padded_length * (2 if COMPLEX else 1)) + chunk * CHUNK)
    of_block = (first_state + state < N) & wanted
    async_copy.async_copy_global_to_shared(whole(B_slots), B + at, of_block)
    async_copy.async_copy_global_to_shared(whole(C_slots), C + at, of_block)
    async_copy.commit_group()


@gluon.jit
def fetch_gate(
    slots, gate, batch, first_state, chunk, N, padded_length, wanted, flags, WEIGHTS: gl.constexpr
):
    """The same of a batch row's gate, if there is one: before what fetch_rows() asks for, to wait with it."""
    if (flags & HAS_GATE) != 0:
        of_row = gate + anew(batch.to(gl.int32)).to(gl.int64) * N * padded_length
        SHAPE: gl.constexpr = slots.shape
        run = gl.arange(0, SHAPE[0], gl.SliceLayout(1, gl.SliceLayout(2, gl.SliceLayout(3, WEIGHTS))))
        row = gl.arange(0, SHAPE[1], gl.SliceLayout(0, gl.SliceLayout(2, gl.SliceLayout(3, WEIGHTS))))
        lane = gl.arange(0, SHAPE[2], gl.SliceLayout(0, gl.SliceLayout(1, gl.SliceLayout(3, WEIGHTS))))
        step = gl.arange(0, RUN, gl.SliceLayout(0, gl.SliceLayout(1, gl.SliceLayout(2, WEIGHTS))))
        state = row[None, :, None, None] * SHAPE[2] + lane[None, None, :, None]
        # One number to keep of both, for registers are few.
        place = anew(state * SHAPE[0] + run[:, None, None, None])
        state = first_state + place // SHAPE[0]
        time = chunk * CHUNK + place % SHAPE[0] * RUN + step[None, None, None, :]
        at = of_row + (state.to(gl.int64) * padded_length + time)
        async_copy.async_copy_global_to_shared(whole(slots), at, (state < N) & wanted)


@gluon.jit
def load_states(states, chunk, state, channel, valid, D, N, COMPLEX: gl.constexpr):
    """The states that a chunk begins with."""
    PARTS: gl.constexpr = 2 if COMPLEX else 1
    of_chunk = states + chunk.to(gl.int64) * (N * PARTS) * D
    at = anew(channel).to(gl.int64) + (state * PARTS).to(gl.int64) * D
    return load_state(of_chunk, at, D, valid & (state < N), COMPLEX)


@gluon.jit
def load_sequences(delta, u, dout, z, place, used, flags, LAYOUT: gl.constexpr):
    """What a chunk reads of four tensors, of each its pointer and strides, as it is stored."""
    begin, run, channel, step = place
    dt = gl.load(delta[0] + places(begin, run, channel, step, delta[1], delta[2], LAYOUT), used, 0)
    x = gl.load(u[0] + places(begin, run, channel, step, u[1], u[2], LAYOUT), used, 0)
    dy = gl.load(dout[0] + places(begin, run, channel, step, dout[1], dout[2], LAYOUT), used, 0)
    with_z = used & ((flags & HAS_Z) != 0)
    zv = gl.load(z[0] + places(begin, run, channel, step, z[1], z[2], LAYOUT), with_z, 0)
    return dt, x, dy, zv


@gluon.jit
def write(out, place, value, used, live, complete, flags, LAYOUT: gl.constexpr, PACKED: gl.constexpr):
    """Of a chunk that lies in a sequence whole, all there is; of any other the sequence's steps. `out` is a
    tensor's pointer and strides.
    """
    begin, run, channel, step = place
    at = out[0] + places(begin, run, channel, step, out[1], out[2], LAYOUT)
    value = narrowed_pairs(value, at.dtype.element_ty, flags)
    if PACKED:
        if complete:
            gl.store(at, value, used)
        else:
            gl.store(at, value, used & live)
    else:
        gl.store(at, value, used)


@gluon.jit
def store_sums(at, sums, own, inside, complete, PACKED: gl.constexpr):
    """Of a chunk that lies in a sequence whole 16 bytes at a time, of any other the sequence's steps."""
    if PACKED:
        if complete:
            gl.store(at, sums, own)
        else:
            gl.store(at, sums, inside)
    else:
        gl.store(at, sums, own)
