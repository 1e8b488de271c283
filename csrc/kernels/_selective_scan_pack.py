"""Makes fp32 rows along time of B and C, which programs of the scans load as they are, in one launch."""

import triton
import triton.language as tl


@triton.jit
def load_as(x, offset, mask, code):
    """Load fp32, fp16 or bf16, which `code` says it is, as fp32."""
    if code == 0:
        value = tl.load(x.to(tl.pointer_type(tl.float32), bitcast=True) + offset, mask, 0.0)
    else:
        bits = tl.load(x.to(tl.pointer_type(tl.int16), bitcast=True) + offset, mask, 0)
        half = bits.to(tl.float16, bitcast=True).to(tl.float32)
        brain = (bits.to(tl.int32) << 16).to(tl.float32, bitcast=True)
        value = tl.where(code == 1, half, brain)
    return value


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
    `flags` holds the dtype of B in two bits and that of C in the next two: 0 fp32, 1 fp16, 2 bf16.
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
    if of_C == 0:
        at = batch * B_batch + group * B_group + state * B_state + part * B_part
        value = load_as(B, at[:, None] + (time * B_time)[None, :], used, flags & 3)
    else:
        at = batch * C_batch + group * C_group + state * C_state + part * C_part
        value = load_as(C, at[:, None] + (time * C_time)[None, :], used, flags >> 2 & 3)
    target = (of_C * rows + row).to(tl.int64) * padded_length
    # Rows are whole multiples of STEPS.
    tl.store(out + target[:, None] + step[None, :], value, (row < rows)[:, None])
