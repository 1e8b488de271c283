"""Makes rows along time of words that hold B and C, both bfloat16, for the specialised scan."""

import triton
import triton.language as tl
from _overlap import let_next_kernel_begin, wait_for_earlier_kernels


@triton.jit
def selective_scan_pair_kernel(
    B,
    C,
    out,
    L,
    N,
    groups,
    rows,
    blocks,
    padded_length,
    B_batch,
    B_group,
    B_state,
    B_time,
    C_batch,
    C_group,
    C_state,
    C_time,
    ROWS: tl.constexpr,
    STEPS: tl.constexpr,
    FEW: tl.constexpr,
):
    """out [rows, padded_length] of B (upper half) and C (lower), [batch, groups, state, time]; zero behind L.

    A row is a state of a group of a batch row. ROWS of them and STEPS steps a program.
    """
    program = tl.program_id(0)
    step = program % blocks * STEPS + tl.arange(0, STEPS)
    row = program // blocks * ROWS + tl.arange(0, ROWS)
    state = (row % N).to(tl.int64)
    group = (row // N % groups).to(tl.int64)
    batch = (row // N // groups).to(tl.int64)
    time = step.to(tl.int64)[None, :]
    used = (row < rows)[:, None] & (step < L)[None, :]
    B_at = (batch * B_batch + group * B_group + state * B_state)[:, None] + time * B_time
    C_at = (batch * C_batch + group * C_group + state * C_state)[:, None] + time * C_time
    # More programs would be in the way of the next kernel's where they end last.
    if tl.num_programs(0) <= FEW:
        let_next_kernel_begin()
    wait_for_earlier_kernels()
    upper = tl.load(B + B_at, used, 0).to(tl.int32) << 16
    lower = tl.load(C + C_at, used, 0).to(tl.int32) & 0xFFFF
    # Rows are whole multiples of STEPS.
    target = row.to(tl.int64)[:, None] * padded_length + step[None, :]
    tl.store(out + target, upper | lower, (row < rows)[:, None])
