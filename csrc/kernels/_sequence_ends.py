"""Which sequence a step of a packed row belongs to by cu_seqlens."""

import triton
import triton.language as tl


@triton.jit
def sequence_at(ends, t, inside, count, halvings, ends_stride):
    """By bisection of `ends` (count + 1 numbers) in so many halvings, for steps t that are `inside`: the
    number of the sequence, where it starts, and whether there is one. Nothing outside of `ends` is read,
    whatever they hold.
    """
    low = tl.zeros(t.shape, tl.int32)
    high = tl.zeros(t.shape, tl.int32) + count + 1
    for _ in range(halvings):
        middle = (low + high) // 2
        searching = inside & (low < high)
        end = tl.load(ends + middle.to(tl.int64) * ends_stride, mask=searching, other=0)
        left = searching & (end <= t)
        high = tl.where(searching & (end > t), middle, high)
        low = tl.where(left, middle + 1, low)
    row = low - 1
    live = inside & (row >= 0) & (row < count)
    start = tl.load(ends + row.to(tl.int64) * ends_stride, mask=live, other=-1)
    return row, start, live & (start >= 0) & (start <= t)
