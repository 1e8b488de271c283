"""One image for both sixteen-bit types: what _half.py is to Gluon kernels, for those in Triton's language."""

import triton
import triton.language as tl

# Set for float16, clear for bfloat16, where a tensor comes as int16: kFloat16 in csrc/ops/launch_arguments.h.
FLOAT16 = tl.constexpr(1 << 30)


@triton.jit
def widened(value, flags):
    """int16 that stands for either sixteen-bit format, as fp32."""
    half = value.to(tl.float16, bitcast=True).to(tl.float32)
    brain = (value.to(tl.int32) << 16).to(tl.float32, bitcast=True)
    return tl.where((flags & FLOAT16) != 0, half, brain)


@triton.jit
def load_wide(pointer, mask, flags):
    """Load fp32, or int16 that stands for either sixteen-bit format, as fp32."""
    value = tl.load(pointer, mask, 0)
    if pointer.dtype.element_ty == tl.int16:
        value = widened(value, flags)
    return value


@triton.jit
def store_narrow(pointer, value, mask, flags):
    """The other way."""
    if pointer.dtype.element_ty == tl.int16:
        half = value.to(tl.float16).to(tl.int16, bitcast=True)
        brain = value.to(tl.bfloat16).to(tl.int16, bitcast=True)
        value = tl.where((flags & FLOAT16) != 0, half, brain)
    tl.store(pointer, value, mask)
