"""How the convolution's kernels hold time: every thread has a run of consecutive steps, one register each.

A run of a sequence-last tensor is one aligned load that is split into its steps; of any other, one load per
step, wide along the channels. Steps around the run come from the loads of its neighbours, so no load is
narrow and what a step needs of the ones before it is already in a register.
"""

# Triton has no starred tuples.
# ruff: noqa: RUF005

from _half import narrowed, widened, widened_pairs
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

# Bits of `flags`, the same as in csrc/ops/causal_conv1d.cpp.
SILU = gl.constexpr(1)
HAS_BIAS = gl.constexpr(2)
HAS_STATES = gl.constexpr(4)
HAS_INDICES = gl.constexpr(8)
HAS_SEEN = gl.constexpr(16)
HAS_SEQUENCES = gl.constexpr(32)
GRADIENT = gl.constexpr(64)
# Taps and bias have the dtype of x, not fp32.
NARROW_FILTER = gl.constexpr(128)
# An update of one step, four taps and four kept steps at most, not a ring.
SHORT = gl.constexpr(256)
# Start of the sequence that a step of padding belongs to: later than any step.
PADDING = gl.constexpr(2147483647)


@gluon.jit
def silu(y):
    return y / (1.0 + gl.exp(-y))


@gluon.jit
def silu_slope(y):
    s = 1.0 / (1.0 + gl.exp(-y))
    return s * (1.0 + y * (1.0 - s))


@gluon.constexpr_function
def run_layout(layout, runs, steps, channels, vector, warps):
    """Tiles [channels, runs, steps] of a sequence-last tensor, [runs, channels, steps] of any other: a thread
    has all steps of its runs, of `vector` neighbouring channels or runs.
    """
    lanes = min(32, (runs if layout == "seq" else channels) // vector)
    return gl.BlockedLayout([1, vector, steps], [32 // lanes, lanes, 1], [warps, 1, 1], [2, 1, 0])


@gluon.jit
def program_places(L, D, blocks, RUNS: gl.constexpr, STEPS: gl.constexpr, CHANNELS: gl.constexpr):
    """The batch row of a program, in how many blocks others take time there, and its own one of those and of
    the channels. A program takes RUNS runs `blocks` times.
    """
    time_blocks = gl.cdiv(L, blocks * (RUNS * STEPS))
    channel_blocks = gl.cdiv(D, CHANNELS)
    row_of_blocks = gl.program_id(0) // time_blocks
    time_block = gl.program_id(0) - row_of_blocks * time_blocks
    batch = row_of_blocks // channel_blocks
    return batch.to(gl.int64), time_blocks, time_block, row_of_blocks - batch.to(gl.int32) * channel_blocks


@gluon.jit
def places(
    L,
    D,
    blocks,
    TILE: gl.constexpr,
    LAYOUT: gl.constexpr,
    RUNS: gl.constexpr,
    STEPS: gl.constexpr,
    CHANNELS: gl.constexpr,
):
    """The batch row, the first steps of a tile's runs and its channels, with each other's axis to broadcast.

    A program takes its runs all at once, one block after another, or each by itself.
    """
    batch, _, time_block, channel_block = program_places(L, D, blocks, RUNS, STEPS, CHANNELS)
    TIME_AXIS: gl.constexpr = 1 if LAYOUT == "seq" else 0
    run = gl.arange(0, RUNS, gl.SliceLayout(1 - TIME_AXIS, TILE))
    channel = gl.arange(0, CHANNELS, gl.SliceLayout(TIME_AXIS, TILE))
    d = channel_block.to(gl.int64) * CHANNELS + channel
    if LAYOUT == "seq":
        first = (time_block.to(gl.int64) * blocks * RUNS + run) * STEPS
        return batch, first[None, :], d[:, None]
    else:
        first = (time_block.to(gl.int64) * RUNS + run) * blocks * STEPS
        return batch, first[:, None], d[None, :]


@gluon.jit
def split_run(v):
    """[A, B, 4 or 8] -> that many [A, B], in order."""
    A: gl.constexpr = v.shape[0]
    B: gl.constexpr = v.shape[1]
    if v.shape[2] == 8:
        even, odd = gl.split(gl.reshape(v, [A, B, 4, 2]))
        v0, v2, v4, v6 = split_run(even)
        v1, v3, v5, v7 = split_run(odd)
        return v0, v1, v2, v3, v4, v5, v6, v7
    else:
        even, odd = gl.split(gl.reshape(v, [A, B, 2, 2]))
        v0, v2 = gl.split(even)
        v1, v3 = gl.split(odd)
        return v0, v1, v2, v3


@gluon.jit
def join_run(v):
    """The inverse of split_run."""
    A: gl.constexpr = v[0].shape[0]
    B: gl.constexpr = v[0].shape[1]
    if len(v) == 8:
        even = join_run((v[0], v[2], v[4], v[6]))
        odd = join_run((v[1], v[3], v[5], v[7]))
        return gl.reshape(gl.join(even, odd), [A, B, 8])
    else:
        return gl.reshape(gl.join(gl.join(v[0], v[2]), gl.join(v[1], v[3])), [A, B, 4])


@gluon.jit
def load_step(row, t, x_time, L, valid, flags):
    return widened(gl.load(row + t * x_time, mask=valid & (t >= 0) & (t < L), other=0), flags)


@gluon.jit
def run_pointers(at, STEPS: gl.constexpr):
    RUN: gl.constexpr = at.type.layout.parent
    step = gl.arange(0, STEPS, gl.SliceLayout(0, gl.SliceLayout(1, RUN)))
    return at[:, :, None] + step[None, None, :]


@gluon.jit
def fetch_run(at, inside, STEPS: gl.constexpr):
    """As stored; 0 where it is not wanted."""
    return gl.load(run_pointers(at, STEPS), mask=inside[:, :, None], other=0)


@gluon.jit
def fetch_run_once(at, inside, STEPS: gl.constexpr):
    """The same of what no one reads again: it is the first to leave the cache."""
    return gl.load(run_pointers(at, STEPS), mask=inside[:, :, None], other=0, eviction_policy="evict_first")


@gluon.jit
def steps_of_run(run, TILE: gl.constexpr, flags, STEPS: gl.constexpr):
    parts = split_run(widened_pairs(run, flags))
    steps = ()
    for i in gl.static_range(STEPS):
        steps = steps + (gl.convert_layout(parts[i], TILE, assert_trivial=True),)
    return steps


@gluon.jit
def load_run(row, first, L, valid, flags, STEPS: gl.constexpr):
    """The STEPS steps from `first` on, a multiple of STEPS as L is: the run is in the sequence or outside."""
    TILE: gl.constexpr = row.type.layout
    run = fetch_run(row + first, valid & (first >= 0) & (first < L), STEPS)
    return steps_of_run(run, TILE, flags, STEPS)


@gluon.jit
def load_steps(
    row,
    first,
    x_time,
    L,
    valid,
    flags,
    BEFORE: gl.constexpr,
    AFTER: gl.constexpr,
    STEPS: gl.constexpr,
    LAYOUT: gl.constexpr,
):
    """x in fp32 at BEFORE steps before `first`, the STEPS from it on, and AFTER more; 0 outside [0, L)."""
    steps = ()
    if LAYOUT == "seq":
        gl.static_assert(BEFORE <= STEPS and AFTER <= STEPS)
        if BEFORE > 0:
            earlier = load_run(row, first - STEPS, L, valid, flags, STEPS)
            for i in gl.static_range(BEFORE):
                steps = steps + (earlier[STEPS - BEFORE + i],)
        steps = steps + load_run(row, first, L, valid, flags, STEPS)
        if AFTER > 0:
            later = load_run(row, first + STEPS, L, valid, flags, STEPS)
            for i in gl.static_range(AFTER):
                steps = steps + (later[i],)
    else:
        for i in gl.static_range(BEFORE + STEPS + AFTER):
            steps = steps + (load_step(row, first + (i - BEFORE), x_time, L, valid, flags),)
    return steps


@gluon.jit
def store_run(at, inside, values, flags, STEPS: gl.constexpr):
    pointers = run_pointers(at, STEPS)
    v = gl.convert_layout(join_run(values), pointers.type.layout, assert_trivial=True)
    v = narrowed(v, at.dtype.element_ty, flags)
    gl.store(pointers, v, mask=inside[:, :, None], cache_modifier=".cs")


@gluon.jit
def store_steps(row, first, x_time, L, valid, values, flags, STEPS: gl.constexpr, LAYOUT: gl.constexpr):
    if LAYOUT == "seq":
        store_run(row + first, valid & (first < L), values, flags, STEPS)
    else:
        for i in gl.static_range(STEPS):
            t = first + i
            gl.store(row + t * x_time, narrowed(values[i], row.dtype.element_ty, flags), mask=valid & (t < L))


@gluon.jit
def load_filter(weight, bias, like, d, width, valid, flags, W: gl.constexpr):
    """Taps by distance from the step, so the last one first, and the bias; a narrower filter ends in zeros.

    With NARROW_FILTER both are stored as `like` is, else in fp32.
    """
    if (flags & NARROW_FILTER) != 0:
        of_like: gl.constexpr = gl.pointer_type(like.dtype.element_ty)
        taps, offset = load_stored_filter(
            weight.to(of_like, bitcast=True), bias.to(of_like, bitcast=True), d, width, valid, flags, W
        )
    else:
        taps, offset = load_stored_filter(weight, bias, d, width, valid, flags, W)
    return taps, offset


@gluon.jit
def load_stored_filter(weight, bias, d, width, valid, flags, W: gl.constexpr):
    taps = ()
    for distance in gl.static_range(W):
        tap = width - 1 - distance
        taps = taps + (widened(gl.load(weight + d * width + tap, mask=valid & (tap >= 0), other=0), flags),)
    return taps, widened(gl.load(bias + d, mask=valid & ((flags & HAS_BIAS) != 0), other=0), flags)


@gluon.jit
def load_sequences(sequences, first, batch, batches, L, STEPS: gl.constexpr):
    """Where the sequences of STEPS steps start, and their rows of the initial states."""
    starts = ()
    rows = ()
    for i in gl.static_range(STEPS):
        t = first + i
        at = sequences + batch * L + t
        starts = starts + (gl.load(at, mask=t < L, other=PADDING),)
        rows = rows + (gl.load(at + batches.to(gl.int64) * L, mask=t < L, other=-1),)
    return starts, rows
