"""The sum of a layer's input and the residual, of any dtype each."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

# Bits of `flags`, the same as in csrc/ops/mamba1_step.cpp.
HAS_RESIDUAL = gl.constexpr(2)
# From these bits on: the dtypes of residual and sum, two bits each (0 fp32, 1 fp16, 2 bf16).
RESIDUAL_TYPE = gl.constexpr(16)
SUM_TYPE = gl.constexpr(18)


@gluon.jit
def store_as(pointer, at, value, mask, code):
    if code == 0:
        gl.store(pointer.to(gl.pointer_type(gl.float32), bitcast=True) + at, value, mask)
    elif code == 1:
        half = value.to(gl.float16)
        gl.store(pointer.to(gl.pointer_type(gl.float16), bitcast=True) + at, half, mask)
    else:
        brain = value.to(gl.bfloat16)
        gl.store(pointer.to(gl.pointer_type(gl.bfloat16), bitcast=True) + at, brain, mask)
