"""What the specialised scan does once an element: before the recurrence delta after its bias and softplus,
and delta u; after it y of the lanes' shares, D's part and z's gate.
"""

from _arithmetic import sigmoid_fast, softplus
from _half_words import narrowed_words, widened_words
from _scan_operands import HAS_BIAS, HAS_D, HAS_Z, SOFTPLUS
from _specialized_layouts import PIECE, WARPS, elements_layout, words_layout
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier


@gluon.jit
def _places(x, strides, i: gl.constexpr, first, in_tile, ALONG_TIME: gl.constexpr, STEPS: gl.constexpr):
    """Where the first tile of a sequence begins; where in a tile words lie, and how far tiles lie apart, both
    in words.
    """
    batch, channel = first
    row, time, word = in_tile
    by_batch, by_channel, by_time = strides
    if ALONG_TIME:
        begin = batch * by_batch[i] + channel * by_channel[i]
        offset = row * (by_channel[i] // 2).to(gl.int32) + word
        tile = STEPS // 2
    else:
        begin = batch * by_batch[i] + channel
        offset = time * (by_time[i] // 2).to(gl.int32) + word
        tile = STEPS // 2 * by_time[i]
    return x.to(gl.pointer_type(gl.int32), bitcast=True) + begin // 2, offset, tile


@gluon.jit
def make_elements(
    shared,
    sequences,
    strides,
    pointers,
    place,
    sizes,
    flags,
    ALONG_TIME: gl.constexpr,
    tile: gl.constexpr,
):
    """A tile ahead of the recurrence and two tiles behind it, through all tiles."""
    dt_slots, dtx_slots, weight_slots, y_slots, full, done = shared
    u, delta, z, out = sequences
    B, C, D_skip, delta_bias = pointers
    batch, group, first_in_group = place
    D, L, N, groups, padded_length = sizes
    LANES: gl.constexpr = tile[0]
    STATES: gl.constexpr = tile[1]
    RUN: gl.constexpr = tile[2]
    STEPS: gl.constexpr = tile[3]
    CHANNELS: gl.constexpr = tile[4]
    PARTS: gl.constexpr = 1 if tile[5] else 2
    RUNS: gl.constexpr = STEPS // RUN
    ROWS: gl.constexpr = STATES // LANES
    PIECES: gl.constexpr = STEPS // PIECE
    SHARES: gl.constexpr = elements_layout(LANES, RUN, CHANNELS, RUNS, ALONG_TIME)
    ELEMENTS: gl.constexpr = gl.SliceLayout(0, SHARES)
    WORDS: gl.constexpr = words_layout(RUN, CHANNELS, RUNS, ALONG_TIME)
    group_channels = D // groups
    first_channel = group * group_channels + first_in_group

    # Of elements: which there are, and numbers of their channels.
    channel = gl.arange(0, CHANNELS, gl.SliceLayout(0, gl.SliceLayout(2, ELEMENTS)))
    valid = first_in_group + channel < group_channels
    D_value = gl.load(D_skip + (first_channel + channel), valid & ((flags & HAS_D) != 0), 0.0)[None, :, None]
    bias = gl.load(delta_bias + (first_channel + channel), valid & ((flags & HAS_BIAS) != 0), 0.0)
    bias = bias[None, :, None]
    time = gl.arange(0, RUNS, gl.SliceLayout(0, gl.SliceLayout(1, ELEMENTS)))[None, None, :] * RUN
    # Rows are whole runs where elements lie along time.
    if not ALONG_TIME:
        time = time + gl.arange(0, RUN, gl.SliceLayout(1, gl.SliceLayout(2, ELEMENTS)))[:, None, None]

    # Of words.
    WORD_ROW: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(2, WORDS))
    WORD_STEP: gl.constexpr = gl.SliceLayout(1, gl.SliceLayout(2, WORDS))
    word_time = gl.arange(0, RUNS, gl.SliceLayout(0, gl.SliceLayout(1, WORDS)))[None, None, :] * RUN
    if ALONG_TIME:
        row = gl.arange(0, CHANNELS, WORD_ROW)[None, :, None]
        word = gl.arange(0, RUN // 2, WORD_STEP)[:, None, None] + word_time // 2
        there = first_in_group + row < group_channels
    else:
        row = gl.arange(0, CHANNELS // 2, WORD_ROW)[None, :, None]
        word = row
        word_time = word_time + gl.arange(0, RUN, WORD_STEP)[:, None, None]
        there = first_in_group + 2 * row < group_channels
    first = (batch, first_channel)
    in_tile = (row, word_time, word)
    u_at, u_word, u_tile = _places(u, strides, 0, first, in_tile, ALONG_TIME, STEPS)
    delta_at, delta_word, delta_tile = _places(delta, strides, 1, first, in_tile, ALONG_TIME, STEPS)
    z_at, z_word, z_tile = _places(z, strides, 2, first, in_tile, ALONG_TIME, STEPS)
    out_at, out_word, out_tile = _places(out, strides, 3, first, in_tile, ALONG_TIME, STEPS)

    # Of B and C: [lanes, steps of a piece, pieces of a thread's states], 16 bytes each. Behind all of B comes
    # all of C, unless they are pairs.
    WEIGHTS: gl.constexpr = gl.BlockedLayout([1, PIECE, 1], [LANES, 1, 32 // LANES], [1, 1, WARPS], [1, 0, 2])
    of_piece = gl.arange(0, PARTS * ROWS * PIECES, gl.SliceLayout(0, gl.SliceLayout(1, WEIGHTS)))[
        None, None, :
    ]
    of_step = gl.arange(0, PIECE, gl.SliceLayout(0, gl.SliceLayout(2, WEIGHTS)))[None, :, None]
    of_lane = gl.arange(0, LANES, gl.SliceLayout(1, gl.SliceLayout(2, WEIGHTS)))[:, None, None]
    state = of_piece // PIECES % ROWS * LANES + of_lane
    weight_at = ((batch * groups + group) * N + state).to(gl.int64) * padded_length
    weight_at += gl.where(of_piece < ROWS * PIECES, B, C) + (of_piece % PIECES * PIECE + of_step)

    has_D = (flags & HAS_D) != 0
    has_z = (flags & HAS_Z) != 0
    next_x = gl.load(u_at + u_word, there & (word_time < L), 0)
    next_dt = gl.load(delta_at + delta_word, there & (word_time < L), 0)
    next_weights = gl.load(weight_at, state < N, 0.0)
    # Of the tile whose output is made next: none yet.
    past_x = gl.zeros_like(next_x)
    past_z = gl.zeros_like(next_x)
    tiles = gl.cdiv(L, STEPS)
    # Two more rounds, for the outputs of the last two tiles.
    for here in range(tiles + 2):
        left = L - here * STEPS
        x = widened_words(next_x, flags, ALONG_TIME, ELEMENTS)
        dt = widened_words(next_dt, flags, ALONG_TIME, ELEMENTS) + bias
        weights = next_weights
        done_x = past_x
        done_z = past_z
        # All loads at once, for who waits for one waits for all that were asked for before: those of the tile
        # that is next, and of the one whose states are made in this round.
        passing = there & (word_time < left + STEPS) & (here > 0)
        past_x = gl.load(u_at - u_tile + u_word, passing & has_D, 0)
        past_z = gl.load(z_at - z_tile + z_word, passing & has_z, 0)
        u_at += u_tile
        delta_at += delta_tile
        z_at += z_tile
        weight_at += STEPS
        upcoming = there & (word_time < left - STEPS)
        next_x = gl.load(u_at + u_word, upcoming, 0)
        next_dt = gl.load(delta_at + delta_word, upcoming, 0)
        next_weights = gl.load(weight_at, (state < N) & (left > STEPS), 0.0)

        stage = here % 2
        # The first two find their slots free.
        mbarrier.wait(done.index(stage), ((here // 2) & 1) ^ 1)
        y = gl.sum(y_slots.index(stage).load(SHARES), 0)
        if (flags & SOFTPLUS) != 0:
            dt = softplus(dt, True)
        # A step of length 0 leaves the state alone: so do the steps past the end.
        dt = gl.where((time < left) & valid[None, :, None], dt, 0.0)
        dt_slots.index(stage).store(dt)
        dtx_slots.index(stage).store(dt * x)
        weight_slots.index(stage).store(weights)
        mbarrier.arrive(full.index(stage), count=1)

        y = gl.fma(widened_words(done_x, flags, ALONG_TIME, ELEMENTS), gl.broadcast(D_value, y)[0], y)
        if has_z:
            gate = widened_words(done_z, flags, ALONG_TIME, ELEMENTS)
            y *= gate * sigmoid_fast(gate)
        made = there & (word_time < left + 2 * STEPS) & (here > 1)
        gl.store(out_at - 2 * out_tile + out_word, narrowed_words(y, flags, ALONG_TIME, WORDS), made)
        out_at += out_tile
