"""Sixteen-bit numbers as int16: one image serves float16 and bfloat16, and a bit of `flags` says which it is.

Telling the formats apart costs two instructions an element. Where that would be felt, variants have exact
types.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

# Set for float16, clear for bfloat16: kFloat16 in csrc/ops/launch_arguments.h.
FLOAT16 = gl.constexpr(1 << 30)


@gluon.jit
def widened(x, flags):
    """What was loaded, in fp32."""
    if x.dtype == gl.int16:
        half = x.to(gl.float16, bitcast=True).to(gl.float32)
        brain = (x.to(gl.int32) << 16).to(gl.float32, bitcast=True)
        return gl.where((flags & FLOAT16) != 0, half, brain)
    else:
        return x.to(gl.float32)


@gluon.jit
def narrowed(value, dtype: gl.constexpr, flags):
    """fp32 `value` as it is stored in a tensor of `dtype`."""
    if dtype == gl.int16:
        half = value.to(gl.float16).to(gl.int16, bitcast=True)
        brain = value.to(gl.bfloat16).to(gl.int16, bitcast=True)
        return gl.where((flags & FLOAT16) != 0, half, brain)
    else:
        return value.to(dtype)


@gluon.jit
def widened_pairs(x, flags):
    """widened() of a tile whose neighbours lie in one register: an instruction an element, and a branch."""
    if x.dtype == gl.bfloat16:
        wide = widened_bfloats(x)
    elif x.dtype != gl.int16:
        wide = x.to(gl.float32)
    elif (flags & FLOAT16) != 0:
        wide = x.to(gl.float16, bitcast=True).to(gl.float32)
    else:
        wide = widened_bfloats(x)
    return wide


@gluon.jit
def widened_singly(x, flags):
    """The same of int16 numbers that lie in a register each."""
    if (flags & FLOAT16) != 0:
        wide = x.to(gl.float16, bitcast=True).to(gl.float32)
    else:
        wide = (x.to(gl.int32) << 16).to(gl.float32, bitcast=True)
    return wide


@gluon.jit
def widened_bfloats(x):
    return gl.inline_asm_elementwise(
        "shl.b32 $0, $2, 16; and.b32 $1, $2, 0xffff0000;",
        "=f,=f,r",
        [x],
        dtype=gl.float32,
        is_pure=True,
        pack=2,
    )


@gluon.jit
def narrowed_pairs(value, dtype: gl.constexpr, flags):
    """The other way: half an instruction an element, and a branch."""
    if dtype == gl.int16:
        if (flags & FLOAT16) != 0:
            narrow = gl.inline_asm_elementwise(
                "cvt.rn.f16x2.f32 $0, $2, $1;", "=r,f,f", [value], dtype=gl.int16, is_pure=True, pack=2
            )
        else:
            narrow = gl.inline_asm_elementwise(
                "cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,f,f", [value], dtype=gl.int16, is_pure=True, pack=2
            )
    else:
        narrow = value.to(dtype)
    return narrow
