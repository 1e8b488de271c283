"""The warps of the specialised backward that go beside its way back: half a chunk before it with what it
takes of elements, half a chunk behind it with their gradients, and tile by tile with sums.
"""

from _arithmetic import anew
from _scan_operands import CHUNK, HAS_BIAS, HAS_D
from _selective_scan_specialized_halves import finish_gate, finish_half, load_words, prepare_half
from _selective_scan_specialized_sums import add_up_tile, places_of_sums, store_over_time
from _specialized_backward_layouts import (
    CHANNELS,
    LANES,
    ROWS,
    STAGES,
    STEPS,
    TILES,
    elements_layout,
    half_shape,
    half_weights_slots,
    starts_layout,
    weights_layout,
    words_layout,
)
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

# Steps of half a chunk.
HALF = gl.constexpr(32)


@gluon.jit
def places_of_elements(first_in_group, group_channels, ALONG_TIME: gl.constexpr):
    """Of half a chunk: channels and steps of elements; rows, steps and places of words; which words there
    are.
    """
    SHAPE: gl.constexpr = half_shape(ALONG_TIME)
    ELEMENTS: gl.constexpr = elements_layout(ALONG_TIME)
    WORDS: gl.constexpr = words_layout(ALONG_TIME)
    WORD_STEP: gl.constexpr = gl.SliceLayout(1, gl.SliceLayout(2, WORDS))
    WORD_ROW: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(2, WORDS))
    channel = gl.arange(0, CHANNELS, gl.SliceLayout(0, gl.SliceLayout(2, ELEMENTS)))
    time = gl.arange(0, SHAPE[2], gl.SliceLayout(0, gl.SliceLayout(1, ELEMENTS)))[None, None, :] * SHAPE[0]
    word_time = gl.arange(0, SHAPE[2], gl.SliceLayout(0, gl.SliceLayout(1, WORDS)))[None, None, :] * SHAPE[0]
    if ALONG_TIME:
        # Rows are whole runs.
        row = gl.arange(0, CHANNELS, WORD_ROW)[None, :, None]
        word = gl.arange(0, SHAPE[0] // 2, WORD_STEP)[:, None, None] + word_time // 2
        there = first_in_group + row < group_channels
    else:
        time = time + gl.arange(0, SHAPE[0], gl.SliceLayout(1, gl.SliceLayout(2, ELEMENTS)))[:, None, None]
        row = gl.arange(0, CHANNELS // 2, WORD_ROW)[None, :, None]
        word = row
        word_time = word_time + gl.arange(0, SHAPE[0], WORD_STEP)[:, None, None]
        there = row < (group_channels - first_in_group) // 2
    return channel, time, (row, word_time, word), there


@gluon.jit
def places_of_weights(row, row_length, N):
    """Of B and C [lanes, steps, rows, tiles]: offsets of half a chunk at the first step, which there are."""
    WEIGHTS: gl.constexpr = weights_layout()
    OF_LANE: gl.constexpr = gl.SliceLayout(1, gl.SliceLayout(2, gl.SliceLayout(3, WEIGHTS)))
    OF_STEP: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(2, gl.SliceLayout(3, WEIGHTS)))
    OF_ROW: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(1, gl.SliceLayout(3, WEIGHTS)))
    OF_TILE: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(1, gl.SliceLayout(2, WEIGHTS)))
    lane = gl.arange(0, LANES, OF_LANE)[:, None, None, None]
    state = lane + gl.arange(0, ROWS, OF_ROW)[None, None, :, None] * LANES
    tile = gl.arange(0, TILES, OF_TILE)[None, None, None, :]
    step = gl.arange(0, STEPS, OF_STEP)[None, :, None, None] + tile * STEPS
    return (row + state).to(gl.int64) * row_length + step, state < N


@gluon.jit
def load_saved(states, chunk, wanted):
    """The states that a chunk begins with, [lanes, channels, rows]."""
    saved, batch, first_channel, first_in_group, group_channels, D, L, N = states
    STARTS: gl.constexpr = starts_layout()
    lane = gl.arange(0, LANES, gl.SliceLayout(1, gl.SliceLayout(2, STARTS)))[:, None, None]
    in_block = gl.arange(0, CHANNELS, gl.SliceLayout(0, gl.SliceLayout(2, STARTS)))[None, :, None]
    row = gl.arange(0, ROWS, gl.SliceLayout(0, gl.SliceLayout(1, STARTS)))[None, None, :]
    # One number to keep of both.
    place = anew(lane * CHANNELS + in_block)
    state = place // CHANNELS + row * LANES
    in_block = place % CHANNELS
    known = (first_in_group + in_block < group_channels) & (state < N) & wanted
    of_chunk = (anew(batch).to(gl.int64) * gl.cdiv(L, CHUNK) + chunk) * N
    return gl.load(saved + ((of_chunk + state) * D + (anew(first_channel) + in_block)), known, 0.0)


@gluon.jit
def load_weights(weights, begin, wanted):
    B, C, at, known = weights
    return gl.load(B + at + begin, known & wanted, 0.0), gl.load(C + at + begin, known & wanted, 0.0)


@gluon.jit
def store_weights(slots, stage, weights):
    SHAPE: gl.constexpr = [STAGES, LANES, STEPS, ROWS, TILES]
    for i in gl.static_range(2):
        half = slots[i]._reinterpret(gl.float32, SHAPE, half_weights_slots())
        half.index(stage).store(weights[i])


@gluon.jit
def make_gradients(
    shared, channel_slots, tensors, strides, pointers, place, sizes, span, flags, ALONG_TIME: gl.constexpr
):
    """Through all chunks of a span, from the last on."""
    scalars, weight_slots, starts, _, shares, barriers = shared
    first_ready, second_ready, _, _, _, _ = barriers
    B, C, D_skip, delta_bias, chunk_states, dB, dC, dD, ddelta_bias = pointers
    sums_row, batches, group, first_in_group = place
    D, L, N, groups, padded_length = sizes
    own_begin, own_end, chunk_begin, partial_row, partial_length = span
    batch = sums_row % batches
    group_channels = D // groups
    if not ALONG_TIME:
        # As the host sees to; said so, for 8 bytes of memory at a time.
        group_channels = group_channels // 8 * 8
    first_channel = group * group_channels + first_in_group

    channel, time, of_words, there = places_of_elements(first_in_group, group_channels, ALONG_TIME)
    valid = first_in_group + channel < group_channels
    D_value = gl.load(D_skip + (first_channel + channel), valid & ((flags & HAS_D) != 0), 0.0)
    bias = gl.load(delta_bias + (first_channel + channel), valid & ((flags & HAS_BIAS) != 0), 0.0)
    channel_slots.index(0).store(D_value)
    channel_slots.index(1).store(bias)
    elements = (time, valid[None, :, None], channel_slots)
    row, word_time, word = of_words
    sequences = (tensors, strides, (batch.to(gl.int32), first_channel, row, word_time, word), there, L)
    w_at, w_known = places_of_weights((batch * groups + group) * N, padded_length, N)
    weights = (B, C, w_at, w_known)
    s_at, s_known = places_of_sums(partial_row, partial_length, N)
    sums = (dB, dC, s_at, s_known)

    saved_states = (chunk_states, batch.to(gl.int32), first_channel, first_in_group, group_channels, D, L, N)

    begin = (own_end - 1) * CHUNK
    words = load_words(sequences, begin, True, flags, ALONG_TIME)
    b, c = load_weights(weights, begin, True)
    starts.index(0).store(load_saved(saved_states, own_end - 1, True))
    prepare_half(scalars, 0, words, sequences, elements, begin, flags, ALONG_TIME)
    store_weights(weight_slots, 0, (b, c))
    mbarrier.arrive(first_ready, count=1)
    words = load_words(sequences, begin + HALF, True, flags, ALONG_TIME)
    b, c = load_weights(weights, begin + HALF, True)
    prepare_half(scalars, 2, words, sequences, elements, begin + HALF, flags, ALONG_TIME)
    store_weights(weight_slots, 2, (b, c))
    mbarrier.arrive(second_ready, count=1)

    RUNS: gl.constexpr = half_shape(ALONG_TIME)[2]
    D_sum = gl.zeros([CHANNELS, RUNS], gl.float32, gl.SliceLayout(0, elements_layout(ALONG_TIME)))
    bias_sum = D_sum
    for back in range(own_end - own_begin):
        chunk = own_end - 1 - back
        begin = chunk * CHUNK
        # Where the first half of this chunk is, and will be that of the next.
        first = back & 1
        upcoming = chunk > own_begin
        tiles_at = begin - chunk_begin * CHUNK
        ahead = load_words(sequences, begin - CHUNK, upcoming, flags, ALONG_TIME)
        b, c = load_weights(weights, begin - CHUNK, upcoming)
        saved = load_saved(saved_states, chunk - 1, upcoming)
        add_up_tile(shared, sums, 0, 2 * TILES + 3, tiles_at + 7 * STEPS)
        if upcoming:
            prepare_half(scalars, 1 - first, ahead, sequences, elements, begin - CHUNK, flags, ALONG_TIME)
            store_weights(weight_slots, 1 - first, (b, c))
            starts.index(1 - first).store(saved)
            mbarrier.arrive(first_ready, count=1)
        words = load_words(sequences, begin + HALF, True, flags, ALONG_TIME)
        for tile in range(TILES - 2, -1, -1):
            add_up_tile(shared, sums, (tile & 1) ^ 1, 2 * TILES + tile, tiles_at + (TILES + tile) * STEPS)

        dy = finish_gate(scalars, 2, words, sequences, elements, begin + HALF, flags, ALONG_TIME)
        add_up_tile(shared, sums, 0, first * TILES + 3, tiles_at + 3 * STEPS)
        at = begin + HALF
        to_D, to_bias = finish_half(scalars, 2, words, dy, sequences, elements, at, flags, ALONG_TIME)
        D_sum += to_D
        bias_sum += to_bias
        ahead = load_words(sequences, begin - HALF, upcoming, flags, ALONG_TIME)
        b, c = load_weights(weights, begin - HALF, upcoming)
        for tile in range(TILES - 2, -1, -1):
            add_up_tile(shared, sums, (tile & 1) ^ 1, first * TILES + tile, tiles_at + tile * STEPS)

        words = load_words(sequences, begin, True, flags, ALONG_TIME)
        if upcoming:
            prepare_half(scalars, 2, ahead, sequences, elements, begin - HALF, flags, ALONG_TIME)
            store_weights(weight_slots, 2, (b, c))
            mbarrier.arrive(second_ready, count=1)
        dy = finish_gate(scalars, first, words, sequences, elements, begin, flags, ALONG_TIME)
        to_D, to_bias = finish_half(scalars, first, words, dy, sequences, elements, begin, flags, ALONG_TIME)
        D_sum += to_D
        bias_sum += to_bias
    block_row = gl.program_id(0).to(gl.int64) * CHANNELS
    store_over_time(dD + block_row, D_sum, shares[0])
    store_over_time(ddelta_bias + block_row, bias_sum, shares[1])
