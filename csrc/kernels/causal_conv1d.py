"""Causal depthwise convolution along time, forward, backward and update; and where packed sequences start.

y[t] = act(bias + sum_k w[k] x[t - W + 1 + k]), act the identity or SiLU (Mamba paper 2312.00752, section
3.4).
"""

import triton
import triton.language as tl
from _causal_conv1d_filter import causal_conv1d_filter_kernel
from _causal_conv1d_narrow import causal_conv1d_fwd_kernel
from _causal_conv1d_narrow_backward import causal_conv1d_bwd_kernel
from _causal_conv1d_packed import causal_conv1d_packed_bwd_kernel, causal_conv1d_packed_fwd_kernel
from _causal_conv1d_step import causal_conv1d_step_kernel
from _causal_conv1d_steps import HAS_BIAS, HAS_INDICES, HAS_SEEN, NARROW_FILTER, PADDING, SHORT, SILU, silu
from _causal_conv1d_wide import causal_conv1d_wide_bwd_kernel, causal_conv1d_wide_kernel
from _half_blocks import load_wide, store_narrow, widened
from _sequence_ends import sequence_at

from tools.aot.spec import Config, Kernel


@triton.jit
def causal_conv1d_sequences_kernel(
    seq_idx,
    ends,
    sequences,
    size,
    L,
    count,
    halvings,
    width,
    idx_batch,
    idx_time,
    ends_stride,
    BY_ENDS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One thread per step of any batch row: where its sequence starts, and its row of the initial states.

    By seq_idx, a start further back than the filter reaches is not looked for: the first step it reaches
    stands for it. By ends (cu_seqlens, count + 1 numbers), the sequence is looked up; what they leave out is
    padding.
    """
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = n < size
    batch = n // L
    t = n % L
    if BY_ENDS:
        row, start, live = sequence_at(ends, t, inside, count, halvings, ends_stride)
    else:
        at = seq_idx + batch * idx_batch + t * idx_time
        own = tl.load(at, mask=inside, other=-1)
        live = own >= 0
        same = live
        start = t.to(tl.int32)
        for back in range(1, width):
            same = same & (t >= back)
            same = same & (tl.load(at - back * idx_time, mask=same, other=-1) == own)
            start -= same.to(tl.int32)
        row = tl.where(start == 0, batch.to(tl.int32), -1)
    tl.store(sequences + n, tl.where(live, start, PADDING), mask=inside)
    tl.store(sequences + size + n, tl.where(live, row, -1), mask=inside)


@triton.jit
def load_either(pointer, at, mask, x, flags):
    """Load fp32, or with NARROW_FILTER what has the dtype of x, as fp32: of two loads one is masked out."""
    narrow = (flags & NARROW_FILTER) != 0
    like_x = pointer.to(tl.pointer_type(x.dtype.element_ty), bitcast=True)
    wide = tl.load(pointer.to(tl.pointer_type(tl.float32), bitcast=True) + at, mask & (not narrow), 0.0)
    return wide + load_wide(like_x + at, mask & narrow, flags)


@triton.jit
def load_tap(weight, at, mask, x, flags):
    """As load_either, by a branch that the whole program takes."""
    if (flags & NARROW_FILTER) != 0:
        tap = load_wide(weight.to(tl.pointer_type(x.dtype.element_ty), bitcast=True) + at, mask, flags)
    else:
        tap = tl.load(weight.to(tl.pointer_type(tl.float32), bitcast=True) + at, mask, 0.0)
    return tap


@triton.jit
def short_step(x, conv_state, weight, bias, out, d, width, state_length, state_time, valid, kept, flags):
    """One step with at most four taps and four kept steps, each of which is read once."""
    last = conv_state + (state_length - 1) * state_time
    tap = d * width + width - 1
    steps = (tl.load(x, kept, 0),)
    taps = (load_tap(weight, tap, kept, x, flags),)
    for lag in tl.static_range(1, 4):
        steps += (tl.load(last - (lag - 1) * state_time, kept & (state_length >= lag), 0),)
        taps += (load_tap(weight, tap - lag, kept & (width > lag), x, flags),)
    y = load_tap(bias, d, kept & ((flags & HAS_BIAS) != 0), x, flags)
    for back in tl.static_range(4):
        step = steps[3 - back]
        y += taps[3 - back] * (widened(step, flags) if step.dtype == tl.int16 else step)
    if (flags & SILU) != 0:
        y = silu(y)
    store_narrow(out, y, valid, flags)
    for lag in tl.static_range(4):
        tl.store(last - lag * state_time, steps[lag], kept & (state_length > lag))


@triton.jit
def causal_conv1d_update_kernel(
    x,
    conv_state,
    weight,
    bias,
    seen,
    indices,
    out,
    D,
    L,
    width,
    slots,
    state_length,
    x_batch,
    x_channel,
    x_time,
    state_slot,
    state_channel,
    state_time,
    seen_batch,
    indices_batch,
    flags,
    CHANNELS: tl.constexpr,
):
    """One thread owns a channel: it reads its window, then shifts its state to the left, so nothing races.

    With `seen` the state is a ring: its oldest step, which the next new one replaces, is at seen %
    state_length.
    """
    channel_blocks = tl.cdiv(D, CHANNELS)
    batch = (tl.program_id(0) // channel_blocks).to(tl.int64)
    d = (tl.program_id(0) % channel_blocks).to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS)
    valid = d < D
    slot = batch
    if (flags & HAS_INDICES) != 0:
        slot = tl.load(indices + batch * indices_batch).to(tl.int64)
    # A slot that does not exist is padding too: nothing outside the state is written.
    kept = valid & (slot >= 0) & (slot < slots)
    ring = (flags & HAS_SEEN) != 0
    oldest = 0
    if ring:
        oldest = tl.load(seen + batch * seen_batch) % tl.maximum(state_length, 1)
        oldest = tl.where(oldest < 0, oldest + state_length, oldest)
    x += batch * x_batch + d * x_channel
    conv_state += slot * state_slot + d * state_channel
    out += (batch * D + d) * L

    if (flags & SHORT) != 0:
        short_step(x, conv_state, weight, bias, out, d, width, state_length, state_time, valid, kept, flags)
    else:
        for t in range(L):
            y = load_either(bias, d, kept & ((flags & HAS_BIAS) != 0), x, flags)
            for first in range(0, width, 4):
                # Four taps at a time, so that their loads do not wait for each other.
                for of_four in tl.static_range(4):
                    k = first + of_four
                    here = kept & (k < width)
                    past = t - (width - 1 - k)
                    w = load_either(weight, d * width + k, here, x, flags)
                    new = load_wide(x + past * x_time, here & (past >= 0), flags)
                    at = state_length + past
                    # No remainder: of two 31-bit numbers, the sum may need 32.
                    at = tl.where(at < state_length - oldest, at + oldest, at - (state_length - oldest))
                    y += w * (new + load_wide(conv_state + at * state_time, here & (past < 0), flags))
            if (flags & SILU) != 0:
                y = silu(y)
            store_narrow(out + t, y, valid, flags)
        if ring:
            at = oldest
            for t in range(L):
                if t >= L - state_length:
                    new = tl.load(x + t * x_time, mask=kept, other=0)
                    tl.store(conv_state + at * state_time, new, mask=kept)
                at = tl.where(at + 1 >= state_length, 0, at + 1)
        else:
            for first in range(0, state_length, 4):
                # Four steps are read before any of them is overwritten: the next ones lie behind all four.
                moved = ()
                for of_four in tl.static_range(4):
                    j = first + of_four
                    late = j + L - state_length
                    here = kept & (j < state_length)
                    old = tl.load(conv_state + (j + L) * state_time, mask=here & (late < 0), other=0)
                    new = tl.load(x + late * x_time, mask=here & (late >= 0), other=0)
                    moved += (tl.where(late < 0, old, new),)
                for of_four in tl.static_range(4):
                    j = first + of_four
                    tl.store(conv_state + j * state_time, moved[of_four], mask=kept & (j < state_length))


_STRIDED = ("batch", "channel", "time")


def _one_half(values: dict) -> bool:
    """Exact sixteen-bit types are for the contiguous layouts."""
    return values["T"] in (("f16", "bf16") if values["LAYOUT"] == "strided" else ("half",))


_AXES = dict(T=["f32", "f16", "bf16", "half"], LAYOUT=["seq", "last", "strided"])
_PACKED_AXES = dict(T=["f32", "half"], LAYOUT=["seq", "strided"])
_SIZES = dict(D="i32", L="i32", width="i32", flags="i32")


def _strides(*tensors: str) -> dict[str, str]:
    return {f"{tensor}_{axis}": "i64" for tensor in tensors for axis in _STRIDED}


def _aligned(*tensors: str):
    """16-byte loads along whichever axis is contiguous."""

    def names(values: dict) -> list[str]:
        if values["LAYOUT"] == "seq":
            return [*tensors, "L", *(f"{t}_{axis}" for t in tensors for axis in ("batch", "channel"))]
        if values["LAYOUT"] == "last":
            return [*tensors, "D", *(f"{t}_{axis}" for t in tensors for axis in ("batch", "time"))]
        return []

    return names


def _configs(
    rows: dict[str, int], columns: dict[str, int], square: dict[str, int], registers: tuple[int, int]
) -> list[Config]:
    """`registers` bounds those of `columns`, in sixteen bits and in fp32: more warps hide more than they
    spare.
    """
    # A run of a sequence-last row is what one 16-byte load holds.
    rows = dict(W=4, VECTOR=1, num_warps=4, **rows)
    columns = dict(W=4, RUNS=4, CHANNELS=64, VECTOR=2, STEPS=8, num_warps=4, **columns)
    narrow, wide = registers
    return [
        Config("short", when="LAYOUT == 'seq' and T == 'f32'", STEPS=4, **rows),
        Config("rows", when="LAYOUT == 'seq'", STEPS=8, **rows),
        Config("wide_columns", when="LAYOUT == 'last' and T == 'f32'", maxnreg=wide, **columns),
        Config("columns", when="LAYOUT == 'last'", maxnreg=narrow, **columns),
        Config("square", W=4, RUNS=4, CHANNELS=32, VECTOR=1, STEPS=4, num_warps=4, **square),
    ]


_PACKED_CONFIGS = [
    Config("rows", when="LAYOUT == 'seq'", W=4, STEPS=4, RUNS=32, CHANNELS=4, num_warps=4),
    Config("square", W=4, STEPS=4, RUNS=4, CHANNELS=32, num_warps=4),
]


KERNELS = [
    Kernel(
        causal_conv1d_fwd_kernel,
        args={
            **dict(x="*T", states="*T", out="*T", weight="*f32", bias="*f32"),
            **dict(blocks="i32"),
            **_SIZES,
            **_strides("x", "states", "out"),
        },
        axes=_AXES,
        skip=_one_half,
        aligned=_aligned("x", "out"),
        tuned=["THREADS"],
        configs=_configs(
            rows=dict(RUNS=32, CHANNELS=4, AT_ONCE=4),
            columns=dict(AT_ONCE=2),
            square=dict(AT_ONCE=2),
            registers=(64, 80),
        ),
    ),
    Kernel(
        causal_conv1d_bwd_kernel,
        args={
            **dict(dout="*T", x="*T", states="*T", dx="*T", dstates="*T"),
            **dict(weight="*f32", bias="*f32", dfilter="*f32"),
            **dict(blocks="i32"),
            **_SIZES,
            **_strides("dout", "x", "states", "dx"),
        },
        axes=_AXES,
        skip=_one_half,
        aligned=_aligned("dout", "x", "dx"),
        tuned=["THREADS"],
        configs=_configs(rows=dict(RUNS=16, CHANNELS=8), columns={}, square={}, registers=(128, 128)),
    ),
    Kernel(
        causal_conv1d_packed_fwd_kernel,
        args={
            **dict(x="*T", states="*T", out="*T", weight="*f32", bias="*f32"),
            **dict(sequences="*i32", batches="i32"),
            **_SIZES,
            **_strides("x", "states", "out"),
        },
        axes=_PACKED_AXES,
        aligned=_aligned("x", "out"),
        configs=_PACKED_CONFIGS,
    ),
    Kernel(
        causal_conv1d_packed_bwd_kernel,
        args={
            **dict(dout="*T", x="*T", states="*T", dx="*T", dstates="*T"),
            **dict(weight="*f32", bias="*f32", dfilter="*f32"),
            **dict(sequences="*i32", batches="i32"),
            **_SIZES,
            **_strides("dout", "x", "states", "dx"),
        },
        axes=_PACKED_AXES,
        aligned=_aligned("dout", "x", "dx"),
        configs=_PACKED_CONFIGS,
    ),
    Kernel(
        causal_conv1d_wide_kernel,
        args={
            **dict(x="*T", states="*T", dout="*T", out="*T", slope="*f32"),
            **dict(weight="*f32", bias="*f32", sequences="*i32", batches="i32"),
            **_SIZES,
            **_strides("x", "states", "dout", "out"),
        },
        axes=dict(T=["f32", "half"]),
        configs=[Config("square", TIMES=32, CHANNELS=32, num_warps=4)],
    ),
    Kernel(
        causal_conv1d_wide_bwd_kernel,
        args={
            **dict(slope="*f32", x="*T", states="*T", dx="*T", dstates="*T"),
            **dict(weight="*f32", dfilter="*f32", sequences="*i32", batches="i32"),
            **_SIZES,
            **_strides("x", "states", "dx"),
        },
        axes=dict(T=["f32", "half"]),
        configs=[Config("square", TIMES=32, CHANNELS=32, num_warps=4)],
    ),
    Kernel(
        causal_conv1d_filter_kernel,
        args={
            **dict(dfilter="*f32", dweight="*f32", dbias="*f32"),
            **dict(D="i32", rows="i32", planes="i32", width="i32", flags="i32"),
        },
        configs=[Config("block", ROWS=16, CHANNELS=32, num_warps=4)],
    ),
    Kernel(
        causal_conv1d_sequences_kernel,
        args={
            **dict(seq_idx="*i32", ends="*i32", sequences="*i32"),
            **dict(size="i64", L="i32", count="i32", halvings="i32", width="i32"),
            **dict(idx_batch="i64", idx_time="i64", ends_stride="i64"),
        },
        axes=dict(BY_ENDS=[False, True]),
        configs=[Config("block", BLOCK=128, num_warps=4)],
    ),
    Kernel(
        causal_conv1d_update_kernel,
        args={
            **dict(x="*T", conv_state="*T", out="*T", weight="*u8", bias="*u8"),
            **dict(seen="*i32", indices="*i32"),
            **dict(D="i32", L="i32", width="i32", slots="i32", state_length="i32", flags="i32"),
            **dict(state_slot="i64", state_channel="i64", state_time="i64"),
            **dict(seen_batch="i64", indices_batch="i64"),
            **_strides("x"),
        },
        axes=dict(T=["f32", "half"]),
        configs=[Config("block", CHANNELS=128, num_warps=4)],
    ),
    Kernel(
        causal_conv1d_step_kernel,
        args={
            **dict.fromkeys(("x", "conv_state", "weight", "bias", "out"), "*T"),
            **dict(indices="*i32", D="i32", slots="i32", flags="i32"),
            **dict(x_batch="i64", state_slot="i64", indices_batch="i64"),
        },
        axes=dict(T=["f32", "half"], KEPT=[3, 4]),
        configs=[Config("block", CHANNELS=128, num_warps=4)],
    ),
]
