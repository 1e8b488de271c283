"""What the norms load and store of a row: operands by flag, parameters and residuals of any dtype."""

import triton
import triton.language as tl
from _by_code import load_by_code, store_by_code
from _half_blocks import load_wide, store_narrow

# Bits of the kernels' `flags`, the same as in csrc/ops/rms_norm.cpp.
HAS_BIAS = tl.constexpr(1)
HAS_RESIDUAL = tl.constexpr(2)
HAS_Z = tl.constexpr(4)
GATE_LAST = tl.constexpr(8)
CENTERED = tl.constexpr(16)
# The sum of x and residual is returned; in the backward: it has a gradient.
HAS_SUM = tl.constexpr(32)
# The gradient of residual has a dtype of its own.
HAS_DRESIDUAL = tl.constexpr(64)
# Without it the residual is the whole sum already, and x is not read.
HAS_X = tl.constexpr(128)
# Only blocks of up to this many channels are given groups of one channel, see the configs in rms_norm.py.
FEW = tl.constexpr(128)
# From this bit on: the dtype of weight, bias, residual, sum, two bits each (0 fp32, 1 fp16, 2 bf16).
DTYPES = tl.constexpr(8)


@triton.jit
def load_as(pointer, at, mask, flags, POSITION: tl.constexpr):
    """Load fp32, fp16 or bf16, whichever `flags` says, as fp32."""
    return load_by_code(pointer, at, mask, (flags >> (DTYPES + 2 * POSITION)) & 3)


@triton.jit
def store_as(pointer, at, value, mask, flags, POSITION: tl.constexpr):
    store_by_code(pointer, at, value, mask, (flags >> (DTYPES + 2 * POSITION)) & 3)


@triton.jit
def sigmoid(z):
    return 1.0 / (1.0 + tl.exp(-z))


@triton.jit
def load_total(x, residual, x_at, residual_at, mask, flags):
    total = tl.zeros(mask.shape, tl.float32)
    if (flags & HAS_X) != 0:
        total = load_wide(x + x_at, mask, flags)
    if (flags & HAS_RESIDUAL) != 0:
        total += load_as(residual, residual_at, mask, flags, 2)
    return total


@triton.jit
def rounded_product(x, y):
    """x y, never made one operation with a subtraction that follows."""
    return tl.inline_asm_elementwise(
        "mul.rn.f32 $0, $1, $2;", "=f,f,f", [x, y], dtype=tl.float32, is_pure=True, pack=1
    )


@triton.jit
def gated_first(value, z, z_at, mask, flags):
    """value silu(z) if there is a gate and it is first, else value."""
    if (flags & (HAS_Z | GATE_LAST)) == HAS_Z:
        zv = load_wide(z + z_at, mask, flags)
        gate = zv * sigmoid(zv)
        if mask.shape[1] <= FEW:
            # The mean is that of rounded products: only from those does it leave 0 of a single one.
            value = rounded_product(value, gate)
        else:
            value *= gate
    return value


@triton.jit
def gated_last(value, z, z_at, mask, flags):
    """value silu(z) if there is a gate and it is last, else value."""
    if (flags & (HAS_Z | GATE_LAST)) == (HAS_Z | GATE_LAST):
        zv = load_wide(z + z_at, mask, flags)
        value *= zv * sigmoid(zv)
    return value


@triton.jit
def affine(h, weight, bias, channel, inside, flags):
    y = h * load_as(weight, channel, inside, flags, 0)
    if (flags & HAS_BIAS) != 0:
        y += load_as(bias, channel, inside, flags, 1)
    return y


@triton.jit
def store_normed(out, u, mean, rstd, weight, bias, z, out_at, z_at, channel, mask, inside, flags):
    y = affine((u - mean[:, None]) * rstd[:, None], weight, bias, channel, inside, flags)
    y = gated_last(y, z, z_at, mask, flags)
    store_narrow(out + out_at, y, mask, flags)


@triton.jit
def load_normed(x, residual, z, mean, rstd, x_at, residual_at, z_at, mask, flags):
    """h, and 0 outside."""
    u = gated_first(load_total(x, residual, x_at, residual_at, mask, flags), z, z_at, mask, flags)
    return tl.where(mask, (u - mean[:, None]) * rstd[:, None], 0.0)


@triton.jit
def width_as(flags, POSITION: tl.constexpr):
    """Bytes of a number that load_as() reads."""
    return tl.where(((flags >> (DTYPES + 2 * POSITION)) & 3) == 0, 4, 2)


@triton.jit
def ask_for_row(pointer, first, width, count, wanted, BLOCK: tl.constexpr):
    """Brings `count` numbers of `width` bytes, at most BLOCK, from number `first` on into L2."""
    offset = tl.arange(0, BLOCK * 4 // 128) * 128
    tl.inline_asm_elementwise(
        "{ .reg .pred p; setp.ne.s32 p, $2, 0; @p prefetch.global.L2 [$1]; mov.b32 $0, 0; }",
        "=r,l,r",
        [
            pointer.to(tl.int64, bitcast=True) + first * width + offset,
            (wanted & (offset < count * width)).to(tl.int32),
        ],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )
