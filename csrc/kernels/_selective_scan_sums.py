"""Adds up the planes of partial sums that programs of the backward kernel wrote."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.jit
def selective_scan_sums_kernel(
    planes,
    total,
    count,
    plane_size,
    partial_length,
    padded_length,
    blocks,
    STEPS: gl.constexpr,
    PLANES: gl.constexpr,
):
    """total [rows, padded_length] from planes [count, rows, partial_length], STEPS steps of a row a program.

    A thread takes 16 bytes of every PLANES-th plane, so that many loads are under way: there are few sums, of
    many numbers. Which number is added to which depends on nothing but `count`.
    """
    X: gl.constexpr = gl.BlockedLayout([1, 4], [2, 16], [gl.num_warps(), 1], [1, 0])
    row = gl.program_id(0) // blocks
    block = gl.program_id(0) % blocks
    plane = gl.arange(0, PLANES, gl.SliceLayout(1, X))
    step = block * STEPS + gl.arange(0, STEPS, gl.SliceLayout(0, X))
    at = planes + row.to(gl.int64) * partial_length + step[None, :]
    at += plane.to(gl.int64)[:, None] * plane_size
    sums = gl.zeros([PLANES, STEPS], gl.float32, X)
    for first in range(0, count, PLANES):
        sums += gl.load(at, (first + plane < count)[:, None], 0.0)
        at += PLANES * plane_size
    gl.store(total + row.to(gl.int64) * padded_length + step, gl.sum(sums, 0))
