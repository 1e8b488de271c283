"""Where the runs of equal indices of packed rows start and end (`mamba_aot.ops._packing`)."""

import triton
import triton.language as tl
from _sequence_ends import sequence_at

from tools.aot.spec import Config, Kernel


@triton.jit
def _index(seq_idx, at, known, idx_time):
    """The sequence of each step; all padding has one index."""
    return tl.maximum(tl.load(seq_idx + at.to(tl.int64) * idx_time, mask=known, other=-1), -1)


@triton.jit
def _changes(seq_idx, at, known, idx_time):
    """Which of the known steps have another index than the step before, and which have none before."""
    before = _index(seq_idx, at - 1, known & (at > 0), idx_time)
    return known & ((at == 0) | (_index(seq_idx, at, known, idx_time) != before))


@triton.jit
def _later(x, y):
    return tl.maximum(x, y)


@triton.jit
def _earlier(x, y):
    return tl.minimum(x, y)


@triton.jit
def sequence_runs_kernel(
    seq_idx, runs, L, blocks, size, idx_batch, idx_time, BLOCK: tl.constexpr, SEARCH: tl.constexpr
):
    """runs [2, rows, L], `size` numbers each half: the first step of each step's run, and the one after its
    last; -1 - start and -end where the index is negative. A block of steps a program, which goes back, and
    ahead, to where the runs that reach over its edges begin and end.
    """
    row = (tl.program_id(0) // blocks).to(tl.int64)
    begin = (tl.program_id(0) % blocks) * BLOCK
    seq_idx += row * idx_batch
    at = begin + tl.arange(0, BLOCK)
    inside = at < L
    end = tl.minimum(begin + BLOCK, L)

    change = _changes(seq_idx, at, inside, idx_time)
    own_start = tl.max(tl.where(change & (at == begin), at, -1), 0)
    left = begin
    while (own_start < 0) & (left > 0):
        steps = left - SEARCH + tl.arange(0, SEARCH)
        found = _changes(seq_idx, steps, steps >= 0, idx_time)
        own_start = tl.max(tl.where(found, steps, -1), 0)
        left -= SEARCH
    starts = tl.associative_scan(tl.where(change, at, own_start), 0, _later)

    # The step behind one is another run's, or there is none.
    closing = inside & ((at == L - 1) | _changes(seq_idx, at + 1, at + 1 < L, idx_time))
    own_end = tl.min(tl.where(closing & (at == end - 1), at + 1, L + 1), 0)
    right = end
    while (own_end > L) & (right < L):
        steps = right + 1 + tl.arange(0, SEARCH)
        found = _changes(seq_idx, steps, steps < L, idx_time)
        own_end = tl.min(tl.where(found | (steps == L), steps, L + 1), 0)
        right += SEARCH
    ends = tl.associative_scan(tl.where(closing, at + 1, own_end), 0, _earlier, reverse=True)

    padding = _index(seq_idx, at, inside, idx_time) < 0
    to = runs + row * L + at
    tl.store(to, tl.where(padding, -1 - starts, starts), mask=inside)
    tl.store(to + size, tl.where(padding, -ends, ends), mask=inside)


@triton.jit
def sequence_starts_kernel(ends, starts, count, halvings, L, BLOCK: tl.constexpr):
    """The first step of each step's sequence by cu_seqlens, `count` + 1 numbers; -1 where there is none."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < L
    _, start, live = sequence_at(ends, at, inside, count, halvings, 1)
    tl.store(starts + at, tl.where(live, start, -1), mask=inside)


KERNELS = [
    Kernel(
        sequence_runs_kernel,
        args={
            **dict(seq_idx="*i32", runs="*i32", L="i32", blocks="i32", size="i64"),
            **dict(idx_batch="i64", idx_time="i64"),
        },
        configs=[Config("block", BLOCK=1024, SEARCH=4096, num_warps=8)],
    ),
    Kernel(
        sequence_starts_kernel,
        args=dict(ends="*i32", starts="*i32", count="i32", halvings="i32", L="i32"),
        configs=[Config("block", BLOCK=256, num_warps=4)],
    ),
]
