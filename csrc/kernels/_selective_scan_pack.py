"""Makes fp32 rows along time of B and C, which programs of the scans load as they are, in one launch."""

import triton
import triton.language as tl
from _by_code import load_by_code
from _overlap import wait_for_earlier_kernels


@triton.jit
def selective_scan_pack_kernel(
    B,
    C,
    out,
    L,
    N,
    groups,
    parts,
    rows,
    blocks,
    flags,
    padded_length,
    B_batch,
    B_group,
    B_state,
    B_time,
    B_part,
    C_batch,
    C_group,
    C_state,
    C_time,
    C_part,
    ROWS: tl.constexpr,
    STEPS: tl.constexpr,
):
    """out [2, rows, padded_length] from B and C [batch, groups, state, time, part]; zero behind L.

    A row is a part of a state of a group of a batch row. ROWS of them and STEPS steps a program.
    `flags` holds the code of B's dtype in two bits and that of C's in the next two.
    """
    program = tl.program_id(0)
    of_C = program % 2
    step = program // 2 % blocks * STEPS + tl.arange(0, STEPS)
    row = program // 2 // blocks * ROWS + tl.arange(0, ROWS)
    part = (row % parts).to(tl.int64)
    state = (row // parts % N).to(tl.int64)
    group = (row // parts // N % groups).to(tl.int64)
    batch = (row // parts // N // groups).to(tl.int64)
    time = step.to(tl.int64)
    used = (row < rows)[:, None] & (step < L)[None, :]
    wait_for_earlier_kernels()
    if of_C == 0:
        at = batch * B_batch + group * B_group + state * B_state + part * B_part
        value = load_by_code(B, at[:, None] + (time * B_time)[None, :], used, flags & 3)
    else:
        at = batch * C_batch + group * C_group + state * C_state + part * C_part
        value = load_by_code(C, at[:, None] + (time * C_time)[None, :], used, flags >> 2 & 3)
    target = (of_C * rows + row).to(tl.int64) * padded_length
    # Rows are whole multiples of STEPS.
    tl.store(out + target[:, None] + step[None, :], value, (row < rows)[:, None])
