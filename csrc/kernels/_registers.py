"""Orders of the registers that one thread holds along a tile's time axis.

Each function permutes whole registers, so it costs no instruction; associative_scan(reverse=True) would
shuffle every element across the warp instead.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.jit
def _reverse4(x0, x1, x2, x3):
    return x3, x2, x1, x0


@gluon.jit
def _later4(x0, x1, x2, x3):
    return x1, x2, x3, x3


@gluon.jit
def _earlier4(x0, x1, x2, x3):
    return x0, x0, x1, x2


@gluon.jit
def _reverse8(x0, x1, x2, x3, x4, x5, x6, x7):
    return x7, x6, x5, x4, x3, x2, x1, x0


@gluon.jit
def _later8(x0, x1, x2, x3, x4, x5, x6, x7):
    return x1, x2, x3, x4, x5, x6, x7, x7


@gluon.jit
def _earlier8(x0, x1, x2, x3, x4, x5, x6, x7):
    return x0, x0, x1, x2, x3, x4, x5, x6


@gluon.jit
def _reverse16(x0, x1, x2, x3, x4, x5, x6, x7, x8, x9, x10, x11, x12, x13, x14, x15):
    return x15, x14, x13, x12, x11, x10, x9, x8, x7, x6, x5, x4, x3, x2, x1, x0


@gluon.jit
def _later16(x0, x1, x2, x3, x4, x5, x6, x7, x8, x9, x10, x11, x12, x13, x14, x15):
    return x1, x2, x3, x4, x5, x6, x7, x8, x9, x10, x11, x12, x13, x14, x15, x15


@gluon.jit
def _earlier16(x0, x1, x2, x3, x4, x5, x6, x7, x8, x9, x10, x11, x12, x13, x14, x15):
    return x0, x0, x1, x2, x3, x4, x5, x6, x7, x8, x9, x10, x11, x12, x13, x14


@gluon.jit
def reverse(x):
    """x[..., i, ...] -> x[..., T-1-i, ...] along axis 1, whose T = 4, 8 or 16 elements lie in one thread."""
    if x.shape[1] == 16:
        return gl.map_elementwise(_reverse16, x, pack=16)[0]
    elif x.shape[1] == 8:
        return gl.map_elementwise(_reverse8, x, pack=8)[0]
    else:
        return gl.map_elementwise(_reverse4, x, pack=4)[0]


@gluon.jit
def later(x):
    """x[i] -> x[i+1]; the last element stays."""
    if x.shape[1] == 16:
        return gl.map_elementwise(_later16, x, pack=16)[0]
    elif x.shape[1] == 8:
        return gl.map_elementwise(_later8, x, pack=8)[0]
    else:
        return gl.map_elementwise(_later4, x, pack=4)[0]


@gluon.jit
def earlier(x):
    """x[i] -> x[i-1]; the first element stays."""
    if x.shape[1] == 16:
        return gl.map_elementwise(_earlier16, x, pack=16)[0]
    elif x.shape[1] == 8:
        return gl.map_elementwise(_earlier8, x, pack=8)[0]
    else:
        return gl.map_elementwise(_earlier4, x, pack=4)[0]
