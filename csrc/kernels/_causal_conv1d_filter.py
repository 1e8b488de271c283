"""The filter's gradient from the sums of a backward's programs."""

import triton
import triton.language as tl
from _causal_conv1d_steps import HAS_BIAS


@triton.jit
def causal_conv1d_filter_kernel(
    dfilter,
    dweight,
    dbias,
    D,
    rows,
    planes,
    width,
    flags,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """`dfilter` [rows, planes, D] holds a plane per distance, the first `width` of which count, dbias last.

    Each program adds one plane of CHANNELS channels, always in the same order.
    """
    channel_blocks = tl.cdiv(D, CHANNELS)
    distance = tl.program_id(0) // channel_blocks
    d = (tl.program_id(0) % channel_blocks).to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS)
    plane = tl.where(distance == width, planes - 1, distance)
    row = tl.arange(0, ROWS)[:, None].to(tl.int64)
    at = dfilter + (row * planes + plane) * D + d[None, :]
    total = tl.zeros([ROWS, CHANNELS], tl.float32)
    for begin in range(0, rows, ROWS):
        total += tl.load(at, mask=(row + begin < rows) & (d < D)[None, :], other=0.0)
        at += planes.to(tl.int64) * ROWS * D
    sums = tl.sum(total, 0)
    if distance < width:
        tl.store(dweight + d * width + (width - 1 - distance), sums, mask=d < D)
    elif (flags & HAS_BIAS) != 0:
        tl.store(dbias + d, sums, mask=d < D)
