"""How the scan kernels walk time where sequences are packed.

A program owns one row of work: a batch row with its sequences one after the other (seq_idx), or one sequence
of the only batch row (cu_seqlens), or a whole batch row where nothing is packed. The general kernels visit
tiles on the grid of whole tiles, each once for every sequence that has steps in it; steps of others are of
length 0 and leave its state alone.
"""

from _arithmetic import anew
from _half import narrowed, widened
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

# Bits of `flags`, the same as in csrc/ops/selective_scan.cpp.
BY_ENDS = gl.constexpr(256)
BY_INDEX = gl.constexpr(512)


@gluon.jit
def own_steps(runs, work, L, flags):
    """Of a row of work: the batch row it lies in, its first step and the one after its last."""
    first = 0
    stop = L
    by_ends = (flags & BY_ENDS) != 0
    if by_ends:
        # Wrong ends must not lead outside the sequence.
        first = gl.minimum(gl.maximum(gl.load(runs + work), 0), L)
        stop = gl.minimum(gl.load(runs + work + 1), L)
    return gl.where(by_ends, 0, work), first, stop


@gluon.jit
def run_from(runs, row, position, stop, L, flags):
    """The end of the run of steps that `position` lies in, and whether it is a sequence or padding."""
    end = stop
    live = position < stop
    if (flags & BY_INDEX) != 0:
        entry = gl.load(runs + row * L + position)
        live = entry > 0
        end = gl.minimum(gl.maximum(gl.abs(entry), position + 1), stop)
    return end, live


@gluon.jit
def run_until(runs, row, position, first, L, flags):
    """The start of the run of steps that `position` lies in, and whether it is a sequence or padding."""
    begin = first
    live = position >= first
    if (flags & BY_INDEX) != 0:
        entry = gl.load(runs + row * L + position)
        live = entry >= 0
        begin = gl.minimum(gl.where(live, entry, -1 - entry), position)
    return begin, live


@gluon.jit
def steps_of(time, begin, until):
    """Which steps of a tile belong to the run."""
    return (time >= begin) & (time < until)


@gluon.jit
def offsets(begin, step, channel, time_stride, channel_stride, LAYOUT: gl.constexpr):
    """Of a tile [segments, steps, channels]: one product a thread, and one a step that all threads share."""
    start = (begin.to(gl.int64) * time_stride)[:, None, None]
    row = (channel.to(gl.int64) * channel_stride)[None, None, :]
    # Products of all tensors and steps, made once, would fill the registers of the loop over states.
    along = step.to(gl.int64) if LAYOUT == "seq" else anew(step).to(gl.int64) * time_stride
    return start + row + along[None, :, None]


@gluon.jit
def load_used(pointers, used, flags):
    """A tile, 0 where it is not used."""
    return widened(gl.load(pointers, used, 0), flags)


@gluon.jit
def store_own(pointers, value, own, flags):
    gl.store(pointers, narrowed(value, pointers.dtype.element_ty, flags), own)
