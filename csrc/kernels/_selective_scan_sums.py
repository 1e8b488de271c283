"""Gradients of B and C, or of a gate, from the planes of partial sums that programs of the backward wrote."""

import triton
import triton.language as tl
from _by_code import store_by_code
from _overlap import wait_for_earlier_kernels


@triton.jit
def selective_scan_sums_kernel(
    planes,
    first,
    second,
    count,
    plane_size,
    partial_length,
    rows,
    parts,
    L,
    begin,
    blocks,
    flags,
    STEPS: tl.constexpr,
    PLANES: tl.constexpr,
):
    """Steps from `begin` on of first and, if there are as many rows again, of second [rows / parts, L,
    parts], from planes [count, rows or twice as many, partial_length]: STEPS steps of a row a program.

    A thread takes 16 bytes of every PLANES-th plane, so that many loads are under way: there are few sums, of
    many numbers. Which number is added to which depends on nothing but `count`. `flags` are the codes of
    first and second, two bits each; nothing is written where the code is 3.
    """
    row = tl.program_id(0) // blocks
    plane = tl.arange(0, PLANES)
    step = tl.program_id(0) % blocks * STEPS + tl.arange(0, STEPS)
    at = planes + row.to(tl.int64) * partial_length + step[None, :]
    at += plane.to(tl.int64)[:, None] * plane_size
    sums = tl.zeros([PLANES, STEPS], tl.float32)
    wait_for_earlier_kernels()
    for done in range(0, count, PLANES):
        sums += tl.load(at, (done + plane < count)[:, None], 0.0)
        at += PLANES * plane_size
    total = tl.sum(sums, 0)
    own = row % rows
    time = begin + step
    target = ((own // parts).to(tl.int64) * L + time) * parts + own % parts
    if row < rows:
        store_by_code(first, target, total, time < L, flags & 3)
    else:
        store_by_code(second, target, total, time < L, flags >> 2)
