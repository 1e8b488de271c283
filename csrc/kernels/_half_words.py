"""Words of 32 bits that hold two sixteen-bit numbers: loaded so, they stay together until they are used.

The lower half is the first of the two in memory. A bit of `flags` says which format they have (_half.py).
"""

from _half import FLOAT16
from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.jit
def low_bfloat(words):
    return (words << 16).to(gl.float32, bitcast=True)


@gluon.jit
def high_bfloat(words):
    return (words & -65536).to(gl.float32, bitcast=True)


@gluon.jit
def _halves(words, flags):
    if (flags & FLOAT16) != 0:
        low, high = gl.inline_asm_elementwise(
            "{ .reg .b16 low, high; mov.b32 {low, high}, $2; cvt.f32.f16 $0, low; cvt.f32.f16 $1, high; }",
            "=f,=f,r",
            [words],
            dtype=(gl.float32, gl.float32),
            is_pure=True,
            pack=1,
        )
    else:
        low = low_bfloat(words)
        high = high_bfloat(words)
    return low, high


@gluon.jit
def widened_words(words, flags, ALONG_TIME: gl.constexpr, ELEMENTS: gl.constexpr):
    """What words [steps, channels, runs] hold, in fp32: two steps ALONG_TIME, or else two channels."""
    low, high = _halves(words, flags)
    both = gl.join(low, high)
    if ALONG_TIME:
        both = both.permute(0, 3, 1, 2).reshape([words.shape[0] * 2, words.shape[1], words.shape[2]])
    else:
        both = both.permute(0, 1, 3, 2).reshape([words.shape[0], words.shape[1] * 2, words.shape[2]])
    return gl.convert_layout(both, ELEMENTS, assert_trivial=True)


@gluon.jit
def narrowed_words(x, flags, ALONG_TIME: gl.constexpr, WORDS: gl.constexpr):
    """The other way."""
    if ALONG_TIME:
        both = x.reshape([x.shape[0] // 2, 2, x.shape[1], x.shape[2]]).permute(0, 2, 3, 1)
    else:
        both = x.reshape([x.shape[0], x.shape[1] // 2, 2, x.shape[2]]).permute(0, 1, 3, 2)
    low, high = gl.split(both)
    if (flags & FLOAT16) != 0:
        words = gl.inline_asm_elementwise(
            "cvt.rn.f16x2.f32 $0, $2, $1;", "=r,f,f", [low, high], dtype=gl.int32, is_pure=True, pack=1
        )
    else:
        words = gl.inline_asm_elementwise(
            "cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,f,f", [low, high], dtype=gl.int32, is_pure=True, pack=1
        )
    return gl.convert_layout(words, WORDS, assert_trivial=True)
