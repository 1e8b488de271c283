"""What ends a backward of the scan: gradients of A, D, delta_bias and the initial state, in one launch."""

import triton
import triton.language as tl
from _by_code import store_by_code
from _overlap import wait_for_earlier_kernels


@triton.jit
def selective_scan_totals_kernel(
    A_sums,
    D_sums,
    bias_sums,
    adjoint,
    dA,
    dD,
    ddelta_bias,
    dinitial_state,
    count,
    D,
    state_rows,
    batches,
    groups,
    padded_channels,
    flags,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    PLANES: tl.constexpr,
):
    """dA [D, state rows] from A_sums [count, state rows, D], dD and ddelta_bias [D] from sums [count, groups,
    padded channels of a group], dinitial_state [batches, D, state rows] from `adjoint` [batches, state rows,
    D]; a state row is a part of a state.

    A program takes a block of channels: of ROWS rows of A, then of those of a batch entry, then of D and the
    bias. `flags` are the codes of dA, dD and ddelta_bias, two bits each; where it is 3 nothing is written.
    """
    channel_blocks = tl.cdiv(D, CHANNELS)
    row_blocks = tl.maximum(tl.cdiv(state_rows, ROWS), 1)
    unit = tl.program_id(0) // channel_blocks
    channel = tl.program_id(0) % channel_blocks * CHANNELS + tl.arange(0, CHANNELS)
    row = unit % row_blocks * ROWS + tl.arange(0, ROWS)
    state_size = state_rows.to(tl.int64) * D
    inside = (row < state_rows)[:, None] & (channel < D)[None, :]
    source = row.to(tl.int64)[:, None] * D + channel[None, :]
    target = channel.to(tl.int64)[:, None] * state_rows + row[None, :]
    plane = tl.arange(0, PLANES)
    wait_for_earlier_kernels()
    if unit < row_blocks:
        at = A_sums + plane.to(tl.int64)[:, None, None] * state_size + source[None, :, :]
        sums = tl.zeros([PLANES, ROWS, CHANNELS], tl.float32)
        for done in range(0, count, PLANES):
            there = (done + plane < count)[:, None, None]
            sums += tl.load(at, there & inside[None, :, :], 0.0)
            at += PLANES * state_size
        store_by_code(dA, target, tl.trans(tl.sum(sums, 0)), tl.trans(inside), flags & 3)
    elif unit < row_blocks * (1 + batches):
        entry = (unit // row_blocks - 1) * state_size
        value = tl.load(adjoint + entry + source, inside, 0.0)
        tl.store(dinitial_state + entry + target, tl.trans(value), tl.trans(inside))
    else:
        in_group = D // groups
        padded_row = groups * padded_channels
        at = channel // in_group * padded_channels + channel % in_group
        at = plane.to(tl.int64)[:, None] * padded_row + at[None, :]
        D_sum = tl.zeros([PLANES, CHANNELS], tl.float32)
        bias_sum = tl.zeros([PLANES, CHANNELS], tl.float32)
        for done in range(0, count, PLANES):
            there = (done + plane < count)[:, None] & (channel < D)[None, :]
            D_sum += tl.load(D_sums + at, there, 0.0)
            bias_sum += tl.load(bias_sums + at, there, 0.0)
            at += PLANES * padded_row
        store_by_code(dD, channel, tl.sum(D_sum, 0), channel < D, flags >> 2 & 3)
        store_by_code(ddelta_bias, channel, tl.sum(bias_sum, 0), channel < D, flags >> 4 & 3)
