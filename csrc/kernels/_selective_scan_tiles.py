"""Parts of the backward kernel of plain scans and of the pass before its spans: layouts, the recurrences over
a run of steps, places of a chunk in memory, and shared memory as one array or as one to index.
"""

from _arithmetic import anew
from _half import narrowed_pairs
from _recurrence import expand
from _scan_operands import CHUNK, HAS_Z, load_state
from _selective_scan_complex_runs import complex_adjoints_of_run, complex_states_of_run, complex_states_onward
from _selective_scan_sequences import goes_on
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy

# Steps that a thread takes at a time: 16 bytes of shared memory.
RUN = gl.constexpr(4)


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


@gluon.jit
def run_forward(a0, a1, a2, a3, k0, k1, k2, k3, h, _h1, _h2, _h3):
    """Of h_i = d_i + k_i, d_i = a_i h_{i-1}: all d, then all h."""
    d0 = a0 * h
    h0 = d0 + k0
    d1 = a1 * h0
    h1 = d1 + k1
    d2 = a2 * h1
    h2 = d2 + k2
    d3 = a3 * h2
    return d0, d1, d2, d3, h0, h1, h2, d3 + k3


@gluon.jit
def run_backward(a0, a1, a2, a3, c0, c1, c2, c3, m, _m1, _m2, _m3):
    """g_i = c_i + a_{i+1} g_{i+1}, where m comes from behind; then what goes on to the step before."""
    g3 = c3 + m
    g2 = c2 + a3 * g3
    g1 = c1 + a2 * g2
    g0 = c0 + a1 * g1
    m = a0 * g0
    return g0, g1, g2, g3, m, m, m, m


@gluon.jit
def run_forward_in_sequence(a0, a1, a2, a3, k0, k1, k2, k3, h, _h1, _h2, _h3, on0, on1, on2, on3):
    """The same where a step takes the state before it only if its sequence goes on."""
    d0 = a0 * gl.where(on0, h, 0.0)
    h0 = d0 + k0
    d1 = a1 * gl.where(on1, h0, 0.0)
    h1 = d1 + k1
    d2 = a2 * gl.where(on2, h1, 0.0)
    h2 = d2 + k2
    d3 = a3 * gl.where(on3, h2, 0.0)
    return d0, d1, d2, d3, h0, h1, h2, d3 + k3


@gluon.jit
def run_backward_in_sequence(a0, a1, a2, a3, c0, c1, c2, c3, m, _m1, _m2, _m3, on0, on1, on2, on3):
    """And the other way."""
    g3 = c3 + m
    g2 = c2 + gl.where(on3, a3 * g3, 0.0)
    g1 = c1 + gl.where(on2, a2 * g2, 0.0)
    g0 = c0 + gl.where(on1, a1 * g1, 0.0)
    m = gl.where(on0, a0 * g0, 0.0)
    return g0, g1, g2, g3, m, m, m, m


@gluon.jit
def states_of_run(a, kick, h, dt, PACKED: gl.constexpr, COMPLEX: gl.constexpr):
    """What a run's states pass on, the states, and the last of these."""
    h = expand(h, 3, COMPLEX)
    if COMPLEX:
        through, states = complex_states_of_run(a, kick, h)
        return through, states, (gl.reduce(states[0], 3, last_of), gl.reduce(states[1], 3, last_of))
    elif PACKED:
        through, states = gl.map_elementwise(
            run_forward_in_sequence, a[0], kick[0], h[0], goes_on(dt), pack=4
        )
        return (through,), (states,), (gl.reduce(states, 3, last_of),)
    else:
        through, states = gl.map_elementwise(run_forward, a[0], kick[0], h[0], pack=4)
        return (through,), (states,), (gl.reduce(states, 3, last_of),)


@gluon.jit
def state_after_run(a, kick, h, dt, PACKED: gl.constexpr, COMPLEX: gl.constexpr):
    """The last of these states alone."""
    if COMPLEX:
        states = complex_states_onward(a, kick, expand(h, 3, COMPLEX))
        return (gl.reduce(states[0], 3, last_of), gl.reduce(states[1], 3, last_of))
    else:
        return states_of_run(a, kick, h, dt, PACKED, COMPLEX)[2]


@gluon.jit
def adjoints_of_run(a, entering, mu, dt, PACKED: gl.constexpr, COMPLEX: gl.constexpr):
    """The adjoints of a run, and what goes on to the step before it."""
    mu = expand(mu, 3, COMPLEX)
    if COMPLEX:
        adjoint, mu = complex_adjoints_of_run(a, entering, mu)
        return adjoint, (gl.reduce(mu[0], 3, first_of), gl.reduce(mu[1], 3, first_of))
    elif PACKED:
        adjoint, through = gl.map_elementwise(
            run_backward_in_sequence, a[0], entering[0], mu[0], goes_on(dt), pack=4
        )
        return (adjoint,), (gl.reduce(through, 3, first_of),)
    else:
        adjoint, through = gl.map_elementwise(run_backward, a[0], entering[0], mu[0], pack=4)
        return (adjoint,), (gl.reduce(through, 3, first_of),)


@gluon.jit
def of_run(rates, COMPLEX: gl.constexpr):
    """scaled_rates() of states, as a run takes them."""
    power = gl.expand_dims(rates[0], 3)
    if COMPLEX:
        return (power, gl.expand_dims(rates[1], 3), gl.expand_dims(rates[2], 3))
    else:
        return (power,)


@gluon.jit
def first_of(x, y):
    return x


@gluon.jit
def last_of(x, y):
    return y


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
def fetch_rows(
    B_slots,
    C_slots,
    B,
    C,
    weights,
    state,
    first_state,
    chunk,
    N,
    padded_length,
    wanted,
    COMPLEX: gl.constexpr,
):
    """Ask for B and C of a chunk and a block of states."""
    at = weights + (first_state * (padded_length * (2 if COMPLEX else 1)) + chunk * CHUNK)
    of_block = (first_state + state < N) & wanted
    async_copy.async_copy_global_to_shared(whole(B_slots), B + at, of_block)
    async_copy.async_copy_global_to_shared(whole(C_slots), C + at, of_block)
    async_copy.commit_group()


@gluon.jit
def load_states(states, chunk, state, channel, valid, D, N, COMPLEX: gl.constexpr):
    """The states that a chunk begins with."""
    PARTS: gl.constexpr = 2 if COMPLEX else 1
    of_chunk = states + chunk.to(gl.int64) * (N * PARTS) * D
    at = anew(channel).to(gl.int64) + (state * PARTS).to(gl.int64) * D
    return load_state(of_chunk, at, D, valid & (state < N), COMPLEX)


@gluon.jit
def load_parts(slots, LAYOUT: gl.constexpr, COMPLEX: gl.constexpr):
    """A number each row: the parts lie one behind the other along the first axis."""
    if COMPLEX:
        ROWS: gl.constexpr = slots.shape[0] // 2
        return (slots.slice(0, ROWS, 0).load(LAYOUT), slots.slice(ROWS, ROWS, 0).load(LAYOUT))
    else:
        return (slots.load(LAYOUT),)


@gluon.jit
def store_parts(slots, value, COMPLEX: gl.constexpr):
    if COMPLEX:
        ROWS: gl.constexpr = slots.shape[0] // 2
        slots.slice(0, ROWS, 0).store(value[0])
        slots.slice(ROWS, ROWS, 0).store(value[1])
    else:
        slots.store(value[0])


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
def load_run(slots, run, X: gl.constexpr):
    """A run of all channels, as the recurrences take it."""
    of_run = slots.index(run).load(gl.SliceLayout(0, gl.SliceLayout(0, X)))
    return gl.expand_dims(gl.expand_dims(of_run, 0), 0)


@gluon.jit
def load_weights(slots, run, X: gl.constexpr, COMPLEX: gl.constexpr):
    """B or C of a run."""
    return expand(load_parts(slots.index(run), gl.SliceLayout(2, X), COMPLEX), 2, COMPLEX)


@gluon.jit
def load_inputs(dt_slots, dtx_slots, B_slots, run, X: gl.constexpr, COMPLEX: gl.constexpr):
    """What states are made of in a run: delta, delta u, and B."""
    b = load_weights(B_slots, run, X, COMPLEX)
    return load_run(dt_slots, run, X), load_run(dtx_slots, run, X), b


@gluon.jit
def whole(slots):
    """Slots as one array, not as one to index."""
    ORDER: gl.constexpr = [2, 1, 0] if len(slots.shape) == 3 else [3, 2, 1, 0]
    return slots._reinterpret(slots.dtype, slots.shape, gl.SwizzledSharedLayout(1, 1, 1, ORDER))


@gluon.jit
def stacked(runs):
    """One or two arrays as one, along a new first axis."""
    if len(runs) == 1:
        return gl.expand_dims(runs[0], 0)
    else:
        both = gl.join(runs[0], runs[1])
        if len(both.shape) == 3:
            return gl.permute(both, [2, 0, 1])
        else:
            return gl.permute(both, [3, 0, 1, 2])


@gluon.jit
def in_runs(x):
    """[runs, channels, steps], cut into runs of RUN steps."""
    JOINED: gl.constexpr = x.shape[2] // RUN
    if JOINED == 1:
        return x
    else:
        cut = gl.permute(gl.reshape(x, [x.shape[0], x.shape[1], JOINED, RUN]), [0, 2, 1, 3])
        return gl.reshape(cut, [x.shape[0] * JOINED, x.shape[1], RUN])


@gluon.jit
def joined(x, TILE: gl.constexpr):
    """The other way."""
    JOINED: gl.constexpr = TILE.size_per_thread[2] // RUN
    if JOINED == 1:
        return x
    else:
        cut = gl.permute(gl.reshape(x, [x.shape[0] // JOINED, JOINED, x.shape[1], RUN]), [0, 2, 1, 3])
        whole_run = gl.reshape(cut, [x.shape[0] // JOINED, x.shape[1], JOINED * RUN])
        return gl.convert_layout(whole_run, TILE, assert_trivial=True)


@gluon.jit
def load_tiles(slots, LAYOUTS: gl.constexpr):
    """What tiles left there, as one chunk: LAYOUTS are chunk_layouts()."""
    IN_RUNS: gl.constexpr = LAYOUTS[1]
    IN_TILES: gl.constexpr = LAYOUTS[2]
    tiles = whole(slots).load(IN_TILES)
    runs: gl.constexpr = tiles.shape[0] * tiles.shape[1]
    return gl.convert_layout(
        gl.reshape(tiles, [runs, tiles.shape[2], tiles.shape[3]]), IN_RUNS, assert_trivial=True
    )


@gluon.jit
def over_channels(terms, SUM: gl.constexpr):
    """Sums of terms [rows, channels and steps of a run]: [rows, steps of a run]."""
    rows: gl.constexpr = terms.shape[0]
    channels: gl.constexpr = terms.shape[1] // RUN
    return gl.convert_layout(gl.sum(gl.reshape(terms, [rows, channels, RUN]), 1), SUM)


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
