"""A thread's walk along time, for filters of up to W taps: what both directions share.

What a walk sets up, loads of other steps and sums are paid once. In a sequence-last tensor a warp's lanes
have neighbouring runs and step on together; in any other, each has a stretch of its own, and keeps the steps
around a run from the run before.
"""

# Triton has no starred tuples.
# ruff: noqa: RUF005

from _causal_conv1d_steps import program_places
from _half import widened, widened_pairs
from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.jit
def add_if(wanted, product, factor, total):
    """total + product * factor where `wanted`, else total: one instruction, and a NaN stays out."""
    return gl.inline_asm_elementwise(
        "{ .reg .pred p; setp.ne.s32 p, $4, 0; mov.b32 $0, $3; @p fma.rn.f32 $0, $1, $2, $0; }",
        "=f,f,f,f,r",
        [product, factor, total, wanted],
        dtype=gl.float32,
        is_pure=True,
        pack=1,
    )


@gluon.jit
def convolved(xs, taps, offset, width, STEP: gl.constexpr, W: gl.constexpr):
    """The output of step number STEP before the activation; `xs` begins W - 1 steps early."""
    y = gl.fma(taps[0], xs[STEP + W - 1], offset)
    # A narrower filter's missing taps meet nothing.
    for distance in gl.static_range(1, W):
        y = add_if((distance < width).to(gl.int32), taps[distance], xs[STEP + W - 1 - distance], y)
    return y


@gluon.jit
def fetch_apart(at, first, left, x_time, valid, BEGIN: gl.constexpr, END: gl.constexpr):
    """Steps BEGIN up to END from `at` on, which is step `first`, one load each; 0 from `left` steps on."""
    steps = ()
    for i in gl.static_range(BEGIN, END):
        inside = valid & (i < left)
        if i < 0:
            inside = inside & (first >= -i)
        steps = steps + (gl.load(at + i * x_time, mask=inside, other=0),)
    return steps


@gluon.jit
def widened_steps(steps, flags):
    """In fp32. Neighbours lie in one register where the type is exact."""
    wide = ()
    for i in gl.static_range(len(steps)):
        step = steps[i]
        wide = wide + (widened(step, flags) if step.dtype == gl.int16 else widened_pairs(step, flags),)
    return wide


@gluon.jit
def load_apart(at, first, left, x_time, valid, flags, BEGIN: gl.constexpr, END: gl.constexpr):
    return widened_steps(fetch_apart(at, first, left, x_time, valid, BEGIN, END), flags)


@gluon.jit
def add_states_before(early, states, first, d, width, s_channel, s_time, valid, flags, W: gl.constexpr):
    """The W - 1 steps before step 0 are the initial states."""
    added = ()
    states += d * s_channel
    for i in gl.static_range(W - 1):
        index = width - W + i
        before = gl.load(states + index * s_time, mask=valid & (first == 0) & (index >= 0), other=0)
        added = added + (early[i] + widened(before, flags),)
    return added


@gluon.jit
def ask_for(pointers, wanted):
    """Brings lines into L2, so that no registers hold what is under way from memory."""
    gl.inline_asm_elementwise(
        "{ .reg .pred p; setp.ne.s32 p, $2, 0; @p prefetch.global.L2 [$1]; mov.b32 $0, 0; }",
        "=r,l,r",
        [pointers.to(gl.int64, bitcast=True), wanted.to(gl.int32)],
        dtype=gl.int32,
        is_pure=False,
        pack=1,
    )


@gluon.jit
def places_of_lines(
    L,
    D,
    blocks,
    BITS: gl.constexpr,
    ROWS: gl.constexpr,
    RUNS: gl.constexpr,
    STEPS: gl.constexpr,
    CHANNELS: gl.constexpr,
):
    """Of each lane, for which line of a channel-last tensor it asks where a thread's stretch takes ROWS rows
    of it: the row, the stretch's first step, the line's first channel, and whether that exists.
    """
    LINES: gl.constexpr = gl.BlockedLayout([1, 1], [1, 32], [gl.num_warps(), 1], [1, 0])
    OF_LINE: gl.constexpr = 1024 // BITS
    gl.static_assert(32 // ROWS * OF_LINE >= CHANNELS)
    _, _, time_block, channel_block = program_places(L, D, blocks, RUNS, STEPS, CHANNELS)
    lane = gl.arange(0, 32, gl.SliceLayout(0, LINES))[None, :]
    start = (time_block * RUNS + gl.arange(0, RUNS, gl.SliceLayout(1, LINES))[:, None]) * blocks * STEPS
    channel = channel_block * CHANNELS + lane // ROWS * OF_LINE
    return lane % ROWS, start, channel, channel < gl.minimum(D, (channel_block + 1) * CHANNELS)
