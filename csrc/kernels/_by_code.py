"""Numbers of a dtype that a code says: 0 fp32, 1 fp16, 2 bf16. So small operands need no variants."""

import triton
import triton.language as tl


@triton.jit
def load_by_code(pointer, at, mask, code):
    """What lies there, as fp32, and 0 where the mask is clear."""
    if code == 0:
        value = tl.load(pointer.to(tl.pointer_type(tl.float32), bitcast=True) + at, mask, 0.0)
    elif code == 1:
        value = tl.load(pointer.to(tl.pointer_type(tl.float16), bitcast=True) + at, mask, 0.0).to(tl.float32)
    else:
        value = tl.load(pointer.to(tl.pointer_type(tl.bfloat16), bitcast=True) + at, mask, 0.0).to(tl.float32)
    return value


@triton.jit
def store_by_code(pointer, at, value, mask, code):
    """Writes an fp32 value; any other code writes nothing."""
    if code == 0:
        tl.store(pointer.to(tl.pointer_type(tl.float32), bitcast=True) + at, value, mask)
    elif code == 1:
        tl.store(pointer.to(tl.pointer_type(tl.float16), bitcast=True) + at, value.to(tl.float16), mask)
    elif code == 2:
        tl.store(pointer.to(tl.pointer_type(tl.bfloat16), bitcast=True) + at, value.to(tl.bfloat16), mask)
