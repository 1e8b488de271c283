"""Where the greatest number of each row is: parts of a row at once, then the greatest of all parts.

A number and where it is are one int64 whose order is that of the numbers, and of numbers that are equal the
first is the greatest. NaN is greater than any number, as for torch.
"""

from _overlap import let_next_kernel_begin, wait_for_earlier_kernels
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

# Less than any number's key.
NOTHING = gl.constexpr(-(1 << 63))
LAST = gl.constexpr((1 << 32) - 1)


@gluon.jit
def keys_of(x, at):
    """fp32 numbers, and where they are, as int64."""
    # 0 and -0 are equal.
    bits = (x + 0.0).to(gl.int32, bitcast=True)
    order = gl.where(x == x, bits ^ ((bits >> 31) & 0x7FFFFFFF), 0x7FFFFFFF)
    return (order.to(gl.int64) << 32) | (LAST - at)


@gluon.jit
def argmax_rows_parts_kernel(x, keys, size, row_stride, parts, code, BLOCK: gl.constexpr):
    """The greatest key of BLOCK numbers: keys [rows, parts]. `code` is 0 for fp32, 1 for fp16, 2 for bf16."""
    E: gl.constexpr = gl.BlockedLayout([8], [32], [gl.num_warps()], [0])
    row = (gl.program_id(0) // parts).to(gl.int64)
    part = gl.program_id(0) % parts
    at = part.to(gl.int64) * BLOCK + gl.arange(0, BLOCK, E)
    here = at < size
    wait_for_earlier_kernels()
    let_next_kernel_begin()
    if code == 0:
        value = gl.load(x.to(gl.pointer_type(gl.float32), bitcast=True) + (row * row_stride + at), here, 0.0)
    else:
        bits = gl.load(x + (row * row_stride + at), here, 0)
        brain = (bits.to(gl.int32) << 16).to(gl.float32, bitcast=True)
        value = gl.where(code == 1, bits.to(gl.float16, bitcast=True).to(gl.float32), brain)
    key = gl.where(here, keys_of(value, at), NOTHING)
    gl.store(keys + (row * parts + part), gl.max(key, 0))


@gluon.jit
def argmax_rows_kernel(keys, out, parts, BLOCK: gl.constexpr):
    """The greatest key of each row is that of out [rows]."""
    E: gl.constexpr = gl.BlockedLayout([1], [32], [gl.num_warps()], [0])
    row = gl.program_id(0).to(gl.int64)
    at = gl.arange(0, BLOCK, E)
    let_next_kernel_begin()
    wait_for_earlier_kernels()
    found = gl.full([BLOCK], NOTHING, gl.int64, E)
    for first in range(0, parts, BLOCK):
        here = first + at < parts
        found = gl.maximum(found, gl.load(keys + (row * parts + first + at), here, NOTHING))
    gl.store(out + row, LAST - (gl.max(found, 0) & LAST))
