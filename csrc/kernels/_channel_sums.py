"""Sums over the 8 channels of a warp's tile, by halving.

Butterflies would move all 32 numbers of a lane three times; here the first exchange moves 16 of them, the
second 8, the third 4, and every lane ends with 4 sums that no other has.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.constexpr_function
def _halving(stride):
    """PTX: from a lane's 16 numbers of each of two tensors ($16 to $31, $32 to $47) to 4 of the 32 sums over
    the 8 lanes that lie `stride` apart ($0 to $3; nobody reads the other outputs).
    """
    lines = ["{ .reg .pred upper; .reg .b32 lane, bit; .reg .f32 keep, send;", "mov.u32 lane, %laneid;"]
    values = [f"${k}" for k in range(16, 48)]
    for distance in (4, 2, 1):
        lines += [f"and.b32 bit, lane, {distance * stride};", "setp.ne.u32 upper, bit, 0;"]
        half = len(values) // 2
        sums = [f"${k}" if distance == 1 else f"sum{half}_{k}" for k in range(half)]
        if distance > 1:
            lines.append(f".reg .f32 {', '.join(sums)};")
        for low, high, target in zip(values[:half], values[half:], sums, strict=True):
            lines += [
                f"selp.f32 send, {low}, {high}, upper;",
                f"selp.f32 keep, {high}, {low}, upper;",
                f"shfl.sync.bfly.b32 send, send, {distance * stride}, 31, 0xffffffff;",
                f"add.f32 {target}, keep, send;",
            ]
        values = sums
    return " ".join([*lines, "}"])


_CONSTRAINTS = gl.constexpr(",".join(["=&f"] * 16 + ["f"] * 32))


@gluon.jit
def _element(x, step, K: gl.constexpr):
    """x at step K, for steps that lie in one thread."""
    return gl.sum(gl.where((step == K)[None, :, None], x, -0.0), 1)


@gluon.jit
def channel_sums(x, y, step, STRIDE: gl.constexpr):
    """Sums over the channels of two tiles [segments, 16, 8]: [segments, 8, 4].

    Entry k along the second axis holds steps 4 (k % 4) to 4 (k % 4) + 3, of x for k < 4 and of y for the
    others. `STRIDE` is the distance between the lanes of two neighbouring channels.
    """
    gl.static_assert(x.shape[1] == 16 and x.shape[2] == 8, "the exchanges are made for such a tile")
    sums = gl.inline_asm_elementwise(
        _halving(STRIDE), _CONSTRAINTS, [x, y], dtype=gl.float32, is_pure=True, pack=16
    )
    even = gl.join(_element(sums, step, 0), _element(sums, step, 2))
    odd = gl.join(_element(sums, step, 1), _element(sums, step, 3))
    return gl.reshape(gl.join(even, odd), [x.shape[0], x.shape[2], 4])


@gluon.jit
def channel_sum_rows(x, y, row, segment, STEPS: gl.constexpr):
    """Where the first step of each entry of channel_sums() lies, [segments, 8]: x and y hold rows from `row`
    on, a tile begins there.
    """
    entry = gl.arange(0, 8, gl.SliceLayout(0, segment.type.layout.parent))
    of_x = x.to(gl.int64, bitcast=True)
    of_y = y.to(gl.int64, bitcast=True)
    base = gl.where(entry < 4, of_x, of_y).to(gl.pointer_type(gl.float32), bitcast=True) + row
    return base[None, :] + (segment[:, None] * STEPS + (entry % 4 * 4)[None, :])


@gluon.jit
def store_channel_sums(at, sums):
    """Four steps at a time, 16 bytes."""
    LAYOUT: gl.constexpr = sums.type.layout
    first = gl.convert_layout(at, gl.SliceLayout(2, LAYOUT))[:, :, None]
    gl.store(first + gl.arange(0, 4, gl.SliceLayout(0, gl.SliceLayout(1, LAYOUT)))[None, None, :], sums)
