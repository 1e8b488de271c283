"""The recurrence of the specialised scan: a tile's states, and each lane's share of y."""

from _arithmetic import LOG2E, exp2_fast
from _half_words import high_bfloat, low_bfloat
from _scan_operands import CHUNK, HAS_STATE, SAVE_CHUNKS
from _specialized_layouts import PIECE, states_layout
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier


@gluon.jit
def _walk4(a0, a1, a2, a3, k0, k1, k2, k3, g0, g1, g2, g3):
    h0 = a0 * g3 + k0
    h1 = a1 * h0 + k1
    h2 = a2 * h1 + k2
    return h0, h1, h2, a3 * h2 + k3


@gluon.jit
def walked(a, kick, before):
    """The states of a piece, which lies in one thread, from those of the piece before."""
    return gl.map_elementwise(_walk4, a, kick, before, pack=4)[0]


@gluon.jit
def _piece_of(slots, p: gl.constexpr, AXIS: gl.constexpr, RUN: gl.constexpr):
    """A tile's slots of a piece; steps of a run lie along AXIS, runs behind channels."""
    in_run = slots.slice(p % (RUN // PIECE) * PIECE, PIECE, AXIS)
    return in_run.slice(p // (RUN // PIECE), 1, AXIS + 2)


@gluon.jit
def load_piece(shared, stage, p: gl.constexpr, tile: gl.constexpr, X: gl.constexpr):
    """delta and delta u of a piece; B and C, or pairs of them, for each of a thread's states."""
    dt_slots, dtx_slots, weight_slots, _, _, _ = shared
    ROWS: gl.constexpr = tile[1] // tile[0]
    RUN: gl.constexpr = tile[2]
    PIECES: gl.constexpr = tile[3] // PIECE
    PAIRED: gl.constexpr = tile[5]
    dt = _piece_of(dt_slots.index(stage), p, 0, RUN).load(gl.SliceLayout(0, X))
    dtx = _piece_of(dtx_slots.index(stage), p, 0, RUN).load(gl.SliceLayout(0, X))
    weights = ()
    for row in gl.static_range(ROWS if PAIRED else 2 * ROWS):
        weight = weight_slots.index(stage).slice(row * PIECES + p, 1, 2).load(gl.SliceLayout(2, X))
        weights += (gl.expand_dims(weight, 2),)
    return gl.expand_dims(dt, 0), gl.expand_dims(dtx, 0), weights


@gluon.jit
def _both_of(weights, j: gl.constexpr, tile: gl.constexpr):
    """B and C for the j-th of a thread's states."""
    if tile[5]:
        pair = weights[j].to(gl.int32, bitcast=True)
        return high_bfloat(pair), low_bfloat(pair)
    else:
        return weights[j], weights[tile[1] // tile[0] + j]


@gluon.jit
def of_step(x, step: gl.constexpr, X: gl.constexpr):
    """One step of a piece; adding -0.0 is the identity, so no instruction is spent on the others."""
    STEP: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(2, gl.SliceLayout(3, X)))
    own = gl.arange(0, PIECE, STEP)[None, :, None, None] == step
    return gl.sum(gl.where(own, x, -0.0), 1)


@gluon.jit
def walk_states(
    shared,
    pointers,
    place,
    sizes,
    flags,
    tile: gl.constexpr,
):
    """From initial_state to last_state, through all tiles; those to be saved go to chunk_states."""
    _, _, _, y_slots, full, done = shared
    A, initial_state, last_state, chunk_states = pointers
    batch, group, first_in_group = place
    D, L, N, groups, _ = sizes
    LANES: gl.constexpr = tile[0]
    STATES: gl.constexpr = tile[1]
    RUN: gl.constexpr = tile[2]
    STEPS: gl.constexpr = tile[3]
    CHANNELS: gl.constexpr = tile[4]
    ROWS: gl.constexpr = STATES // LANES
    PIECES: gl.constexpr = STEPS // PIECE
    X: gl.constexpr = states_layout(LANES, CHANNELS)
    OF_STATES: gl.constexpr = gl.SliceLayout(2, gl.SliceLayout(1, X))
    in_group = first_in_group + gl.arange(0, CHANNELS, gl.SliceLayout(0, OF_STATES))[None, :, None]
    lane = gl.arange(0, LANES, gl.SliceLayout(1, OF_STATES))[:, None, None]
    valid = in_group < D // groups
    channel = (group * (D // groups) + in_group).to(gl.int64)
    nothing = gl.full([LANES, PIECE, CHANNELS, 1], 0.0, gl.float32, X)
    # Of a state [states, channels] that is saved, and of one [channels, states] that is given or left.
    state_size = N * D.to(gl.int64)
    saved_at = chunk_states + (batch * gl.cdiv(L, CHUNK) * state_size + lane * D.to(gl.int64) + channel)
    state_at = batch * state_size + channel * N + lane

    states = ()
    rates = ()
    for j in gl.static_range(ROWS):
        known = valid & (lane + j * LANES < N)
        given = gl.load(initial_state + state_at + j * LANES, known & ((flags & HAS_STATE) != 0), 0.0)
        rate = gl.load(A + (channel * N + lane) + j * LANES, known, 0.0)
        rates += (gl.expand_dims(rate * LOG2E, 1),)
        before, _ = gl.broadcast(gl.expand_dims(given, 1), nothing)
        states += (before,)

    tiles = gl.cdiv(L, STEPS)
    mbarrier.wait(full.index(0), 0)
    ahead = load_piece(shared, 0, 0, tile, X)
    for here in range(tiles):
        start = here * STEPS
        if ((flags & SAVE_CHUNKS) != 0) & (start % CHUNK == 0):
            saved = saved_at + start // CHUNK * state_size
            for j in gl.static_range(ROWS):
                known = valid & (lane + j * LANES < N)
                gl.store(saved + j * LANES * D.to(gl.int64), of_step(states[j], PIECE - 1, X), known)
        stage = here % 2
        share = nothing
        for p in gl.static_range(PIECES):
            dt, dtx, weights = ahead
            if p + 1 < PIECES:
                ahead = load_piece(shared, stage, p + 1, tile, X)
            else:
                # The next tile's first piece, after the last tile its own again.
                upcoming = gl.minimum(here + 1, tiles - 1)
                mbarrier.wait(full.index(upcoming % 2), (upcoming // 2) & 1)
                ahead = load_piece(shared, upcoming % 2, 0, tile, X)
            # Behind these loads, which can't sink below it: they need a piece's time to come.
            if p > 0:
                _piece_of(y_slots.index(stage), p - 1, 1, RUN).store(share)
            through = ()
            for j in gl.static_range(ROWS):
                b, c = _both_of(weights, j, tile)
                h = walked(exp2_fast(dt * rates[j]), b * dtx, states[j])
                through += (h,)
                share = gl.fma(c, h, share) if j > 0 else c * h
            states = through
        _piece_of(y_slots.index(stage), PIECES - 1, 1, RUN).store(share)
        mbarrier.arrive(done.index(stage), count=1)

    for j in gl.static_range(ROWS):
        known = valid & (lane + j * LANES < N)
        gl.store(last_state + state_at + j * LANES, of_step(states[j], PIECE - 1, X), known)
