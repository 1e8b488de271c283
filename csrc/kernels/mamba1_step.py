"""mamba1_step: a layer's token in four launches, matrix-vector products with the work around them fused in.

mamba1_step_in: residual + x, RMSNorm, in_proj, convolution, SiLU
mamba1_step_project: x_proj, and later out_proj
mamba1_step_state: dt_proj, softplus, state update, gate

Weights are read once a batch row, 16 bytes a thread and load, the next tile on its way while one is
multiplied. Every sum is in fp32 and has one order. What goes from one kernel to the next is fp32.
"""

import triton
import triton.language as tl
from _half_blocks import FLOAT16, load_wide, store_narrow
from _norm_rows import load_as, sigmoid, store_as

from tools.aot.spec import Config, Kernel

# Bits of `flags`, the same as in csrc/ops/mamba1_step.cpp; the dtypes there lie as in _norm_rows.py.
# The product is stored in fp32.
WIDE_OUT = tl.constexpr(1)
HAS_RESIDUAL = tl.constexpr(2)
HAS_BIAS = tl.constexpr(4)


@triton.jit
def softplus(x):
    """log(1 + e^x), without loss of digits where e^x is small: log(1 + e) = e log(1 + e) / ((1 + e) - 1)."""
    e = tl.exp(-tl.abs(x))
    u = 1.0 + e
    log1p = tl.where(u == 1.0, e, tl.log(u) * (e / (u - 1.0)))
    return tl.maximum(x, 0.0) + log1p


@triton.jit
def mamba1_step_in_kernel(
    x,
    residual,
    norm_weight,
    weight,
    conv_state,
    conv_weight,
    conv_bias,
    sum_out,
    out,
    eps,
    width,
    inner,
    taps,
    kept,
    conv_row,
    flags,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out[:inner] = silu(conv(u)), out[inner:] = z, where u, z = in_proj(norm(x + residual))."""
    blocks = 2 * inner // ROWS
    block = tl.program_id(0) % blocks
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    row = block * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    at_row = row.to(tl.int64)[:, None] * width
    at_token = batch * width
    product = tl.zeros([ROWS, BLOCK], tl.float32)
    square = tl.zeros([BLOCK], tl.float32)
    tile = load_next(weight, at_row, column, width)
    for begin in range(0, width, BLOCK):
        k = begin + column
        inside = k < width
        following = load_next(weight, at_row, k + BLOCK, width)
        total = load_wide(x + at_token + k, inside, flags)
        if (flags & HAS_RESIDUAL) != 0:
            total += load_as(residual, at_token + k, inside, flags, 2)
        if block == 0:
            store_as(sum_out, at_token + k, total, inside, flags, 3)
        square += total * total
        # The row's 1 / rms is one factor of all sums: it is known at their end.
        product += as_wide(tile, flags) * (total * load_wide(norm_weight + k, inside, flags))[None, :]
        tile = following
    u = tl.sum(product, 1) * tl.rsqrt(tl.sum(square, 0) / width + eps)
    if block * ROWS < inner:
        # Lag t reads the step t before this one. What is kept moves by one step.
        last = conv_state + batch * conv_row + row * kept + kept - 1
        tap = conv_weight + row * taps + taps - 1
        always = row >= 0
        new = as_wide(narrow(u, flags), flags)
        y = new * load_wide(tap, always, flags)
        old_1 = tl.load(last, always & (taps > 1), 0)
        old_2 = tl.load(last - 1, always & (taps > 2), 0)
        old_3 = tl.load(last - 2, always & (taps > 3), 0)
        y += as_wide(old_1, flags) * load_wide(tap - 1, always & (taps > 1), flags)
        y += as_wide(old_2, flags) * load_wide(tap - 2, always & (taps > 2), flags)
        y += as_wide(old_3, flags) * load_wide(tap - 3, always & (taps > 3), flags)
        if (flags & HAS_BIAS) != 0:
            y += load_wide(conv_bias + row, always, flags)
        # Several threads hold the same channel, and one of them stores it: not before all have read.
        tl.debug_barrier()
        tl.store(last, narrow(u, flags), always & (kept > 0))
        tl.store(last - 1, old_1, always & (kept > 1))
        tl.store(last - 2, old_2, always & (kept > 2))
        tl.store(last - 3, old_3, always & (kept > 3))
        u = y * sigmoid(y)
    tl.store(out + batch * 2 * inner + row, u)


@triton.jit
def mamba1_step_project_kernel(
    x, weight, out, wide_out, rows, width, x_row, flags, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """weight x, [rows, width] times fp32 [width]: into `wide_out` if it is there, else into `out`."""
    blocks = tl.cdiv(rows, ROWS)
    block = tl.program_id(0) % blocks
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    row = block * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    # Rows behind the last one read the last one again.
    at_row = tl.minimum(row, rows - 1).to(tl.int64)[:, None] * width
    product = tl.zeros([ROWS, BLOCK], tl.float32)
    tile = load_next(weight, at_row, column, width)
    for begin in range(0, width, BLOCK):
        k = begin + column
        following = load_next(weight, at_row, k + BLOCK, width)
        product += as_wide(tile, flags) * tl.load(x + batch * x_row + k, k < width, 0.0)[None, :]
        tile = following
    y = tl.sum(product, 1)
    if (flags & WIDE_OUT) != 0:
        tl.store(wide_out + batch * rows + row, y, row < rows)
    else:
        store_narrow(out + batch * rows + row, y, row < rows, flags)


@triton.jit
def mamba1_step_state_kernel(
    low,
    weight,
    dt_bias,
    A,
    D_skip,
    xz,
    state,
    out,
    inner,
    rank,
    N,
    state_row,
    flags,
    CHANNELS: tl.constexpr,
    STATES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """low = dt_proj's input, B, C in one row; xz = x and z in one row; A and D in fp32."""
    blocks = inner // CHANNELS
    block = tl.program_id(0) % blocks
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    channel = block * CHANNELS + tl.arange(0, CHANNELS)
    column = tl.arange(0, BLOCK)
    n = tl.arange(0, STATES)
    inside = (channel[:, None] >= 0) & (n < N)[None, :]
    at = channel[:, None] * N + n[None, :]
    low += batch * (rank + 2 * N)
    xz += batch * 2 * inner
    state += batch * state_row
    # All that comes from memory is asked for before the first sum.
    h = tl.load(state + at, inside, 0.0)
    rates = tl.load(A + at, inside, 0.0)
    B = tl.load(low + rank + n, n < N, 0.0)
    C = tl.load(low + rank + N + n, n < N, 0.0)
    x = tl.load(xz + channel)
    z = tl.load(xz + inner + channel)
    skip = tl.load(D_skip + channel)
    bias = load_wide(dt_bias + channel, channel >= 0, flags)
    product = tl.zeros([CHANNELS, BLOCK], tl.float32)
    for begin in range(0, rank, BLOCK):
        k = begin + column
        tile = load_next(weight, channel[:, None] * rank, k, rank)
        product += as_wide(tile, flags) * tl.load(low + k, k < rank, 0.0)[None, :]
    delta = softplus(tl.sum(product, 1) + bias)
    h = tl.exp(delta[:, None] * rates) * h + (delta * x)[:, None] * B[None, :]
    tl.store(state + at, h, inside)
    y = tl.sum(h * C[None, :], 1) + skip * x
    tl.store(out + batch * inner + channel, y * z * sigmoid(z))


@triton.jit
def load_next(weight, at_row, k, width):
    """A tile of a matrix as it is stored, zero behind its last column."""
    mask = (at_row >= 0) & (k < width)[None, :]
    return tl.load(weight + at_row + k[None, :], mask, 0)


@triton.jit
def as_wide(bits, flags):
    """int16 that stands for either sixteen-bit format, as fp32."""
    half = bits.to(tl.float16, bitcast=True).to(tl.float32)
    brain = (bits.to(tl.int32) << 16).to(tl.float32, bitcast=True)
    return tl.where((flags & FLOAT16) != 0, half, brain)


@triton.jit
def narrow(value, flags):
    """The other way."""
    half = value.to(tl.float16).to(tl.int16, bitcast=True)
    brain = value.to(tl.bfloat16).to(tl.int16, bitcast=True)
    return tl.where((flags & FLOAT16) != 0, half, brain)


_ALIGNED = ("weight", "x", "width", "out")

KERNELS = [
    Kernel(
        mamba1_step_in_kernel,
        args={
            **dict.fromkeys(
                ("x", "norm_weight", "weight", "conv_state", "conv_weight", "conv_bias"), "*half"
            ),
            **dict(residual="*u8", sum_out="*u8", out="*f32", eps="f32"),
            **dict.fromkeys(("width", "inner", "taps", "kept", "flags"), "i32"),
            **dict(conv_row="i64"),
        },
        aligned=lambda _: [*_ALIGNED, "residual", "sum_out", "norm_weight", "inner"],
        configs=[Config("only", ROWS=4, BLOCK=512, num_warps=4)],
    ),
    Kernel(
        mamba1_step_project_kernel,
        args={
            **dict(x="*f32", weight="*half", out="*half", wide_out="*f32"),
            **dict(rows="i32", width="i32", x_row="i64", flags="i32"),
        },
        aligned=lambda _: [*_ALIGNED, "wide_out", "x_row"],
        shape=["rows"],
        configs=[
            Config("few", when="rows <= 256", ROWS=1, BLOCK=1024, num_warps=4),
            Config("many", ROWS=4, BLOCK=1024, num_warps=4),
        ],
    ),
    Kernel(
        mamba1_step_state_kernel,
        args={
            **dict.fromkeys(("low", "A", "D_skip", "xz", "state", "out"), "*f32"),
            **dict(weight="*half", dt_bias="*half"),
            **dict.fromkeys(("inner", "rank", "N", "flags"), "i32"),
            **dict(state_row="i64"),
        },
        aligned=lambda _: ["weight", "A", "state", "xz", "low", "out", "inner", "rank", "N", "state_row"],
        configs=[Config("only", CHANNELS=16, STATES=16, BLOCK=64, num_warps=4)],
    ),
]
