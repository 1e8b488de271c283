"""How the convolution's kernels hold time: every thread has a run of consecutive steps, one register each.

A run of a sequence-last tensor is one aligned load that is split into its steps; of any other, one load per
step, wide along the channels. Steps around the run come from the loads of its neighbours, so no load is
narrow and what a step needs of the ones before it is already in a register.
"""

# Triton has no starred tuples.
# ruff: noqa: RUF005

import triton
import triton.language as tl

# Bits of `flags`, the same as in csrc/ops/causal_conv1d.cpp.
SILU = tl.constexpr(1)
HAS_BIAS = tl.constexpr(2)
HAS_STATES = tl.constexpr(4)
HAS_INDICES = tl.constexpr(8)
HAS_SEEN = tl.constexpr(16)
HAS_SEQUENCES = tl.constexpr(32)
GRADIENT = tl.constexpr(64)
# Start of the sequence that a step of padding belongs to: later than any step.
PADDING = tl.constexpr(2147483647)


@triton.jit
def silu(y):
    return y / (1.0 + tl.exp(-y))


@triton.jit
def silu_slope(y):
    s = 1.0 / (1.0 + tl.exp(-y))
    return s * (1.0 + y * (1.0 - s))


@triton.jit
def split_run(v):
    """[A, B, 4 or 8] -> that many [A, B], in order."""
    A: tl.constexpr = v.shape[0]
    B: tl.constexpr = v.shape[1]
    if v.shape[2] == 8:
        even, odd = tl.split(tl.reshape(v, [A, B, 4, 2]))
        v0, v2, v4, v6 = split_run(even)
        v1, v3, v5, v7 = split_run(odd)
        return v0, v1, v2, v3, v4, v5, v6, v7
    else:
        even, odd = tl.split(tl.reshape(v, [A, B, 2, 2]))
        v0, v2 = tl.split(even)
        v1, v3 = tl.split(odd)
        return v0, v1, v2, v3


@triton.jit
def join_run(v):
    """The inverse of split_run."""
    A: tl.constexpr = v[0].shape[0]
    B: tl.constexpr = v[0].shape[1]
    if len(v) == 8:
        even = join_run((v[0], v[2], v[4], v[6]))
        odd = join_run((v[1], v[3], v[5], v[7]))
        return tl.reshape(tl.join(even, odd), [A, B, 8])
    else:
        return tl.reshape(tl.join(tl.join(v[0], v[2]), tl.join(v[1], v[3])), [A, B, 4])


@triton.jit
def load_step(row, t, x_time, L, valid):
    return tl.load(row + t * x_time, mask=valid & (t >= 0) & (t < L), other=0.0).to(tl.float32)


@triton.jit
def load_run(row, first, L, valid, STEPS: tl.constexpr):
    """The STEPS steps from `first` on, a multiple of STEPS as L is: the run is in the sequence or outside."""
    inside = valid & (first >= 0) & (first < L)
    pointers = (row + first)[:, :, None] + tl.arange(0, STEPS)[None, None, :]
    v = tl.load(pointers, mask=inside[:, :, None], other=0.0)
    return split_run(v.to(tl.float32))


@triton.jit
def load_steps(
    row,
    first,
    x_time,
    L,
    valid,
    BEFORE: tl.constexpr,
    AFTER: tl.constexpr,
    STEPS: tl.constexpr,
    LAYOUT: tl.constexpr,
):
    """x in fp32 at BEFORE steps before `first`, the STEPS from it on, and AFTER more; 0 outside [0, L)."""
    steps = ()
    if LAYOUT == "seq":
        tl.static_assert(BEFORE <= STEPS and AFTER <= STEPS)
        if BEFORE > 0:
            earlier = load_run(row, first - STEPS, L, valid, STEPS)
            for i in tl.static_range(BEFORE):
                steps = steps + (earlier[STEPS - BEFORE + i],)
        steps = steps + load_run(row, first, L, valid, STEPS)
        if AFTER > 0:
            later = load_run(row, first + STEPS, L, valid, STEPS)
            for i in tl.static_range(AFTER):
                steps = steps + (later[i],)
    else:
        for i in tl.static_range(BEFORE + STEPS + AFTER):
            steps = steps + (load_step(row, first + (i - BEFORE), x_time, L, valid),)
    return steps


@triton.jit
def store_steps(row, first, x_time, L, valid, values, STEPS: tl.constexpr, LAYOUT: tl.constexpr):
    if LAYOUT == "seq":
        inside = valid & (first < L)
        pointers = (row + first)[:, :, None] + tl.arange(0, STEPS)[None, None, :]
        v = join_run(values).to(row.dtype.element_ty)
        tl.store(pointers, v, mask=tl.broadcast_to(inside[:, :, None], v.shape))
    else:
        for i in tl.static_range(STEPS):
            t = first + i
            tl.store(row + t * x_time, values[i].to(row.dtype.element_ty), mask=valid & (t < L))


@triton.jit
def load_taps(weight, d, width, valid, W: tl.constexpr):
    """Taps by distance from the step: the last one meets the step itself. A narrower filter ends in zeros."""
    taps = ()
    for distance in tl.static_range(W):
        tap = width - 1 - distance
        taps = taps + (tl.load(weight + d * width + tap, mask=valid & (tap >= 0), other=0.0),)
    return taps


@triton.jit
def load_sequences(sequences, first, batch, batches, L, STEPS: tl.constexpr):
    """Where the sequences of STEPS steps start, and their rows of the initial states."""
    starts = ()
    rows = ()
    for i in tl.static_range(STEPS):
        t = first + i
        at = sequences + batch * L + t
        starts = starts + (tl.load(at, mask=t < L, other=PADDING),)
        rows = rows + (tl.load(at + batches.to(tl.int64) * L, mask=t < L, other=-1),)
    return starts, rows
