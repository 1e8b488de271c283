"""Zeros at the steps of a packed row that no sequence has, by cu_seqlens: those before the first one and
after the last. Values that count from 0 to the length leave out none, and this does nothing.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.jit
def selective_scan_outside_kernel(
    x, ends, sequences, L, rows, row_stride, time_stride, ROWS: gl.constexpr, STEPS: gl.constexpr
):
    """x [rows, L] of any strides, ROWS rows a program."""
    X: gl.constexpr = gl.BlockedLayout([1, 1], [1, 32], [gl.num_warps(), 1], [1, 0])
    row = gl.program_id(0) * ROWS + gl.arange(0, ROWS, gl.SliceLayout(1, X))
    step = gl.arange(0, STEPS, gl.SliceLayout(0, X))
    first = gl.minimum(gl.load(ends), L)
    stop = gl.maximum(gl.load(ends + sequences), 0)
    at = x + row.to(gl.int64)[:, None] * row_stride
    known = (row < rows)[:, None]
    zero = gl.zeros([ROWS, STEPS], x.dtype.element_ty, X)
    for begin in range(0, first, STEPS):
        time = begin + step
        gl.store(at + time.to(gl.int64)[None, :] * time_stride, zero, known & (time < first)[None, :])
    for begin in range(stop, L, STEPS):
        time = begin + step
        gl.store(at + time.to(gl.int64)[None, :] * time_stride, zero, known & (time < L)[None, :])
