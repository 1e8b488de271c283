"""Sums over the parts of a product whose columns were cut, fp32 [parts, ...]: by whoever reads them."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

# Parts that a thread asks for before it adds up: more are rare.
AT_ONCE = gl.constexpr(4)


@gluon.jit
def some_shares(shares, at, size, inside, first, parts):
    """What lies `at` some places of AT_ONCE shares, `size` numbers each, and 0 behind the last of them."""
    several = ()
    for next in gl.static_range(AT_ONCE):
        share = shares + (first + next) * size
        several += (gl.load(share + at, inside & (first + next < parts), 0.0),)
    return several


@gluon.jit
def sum_of_shares(total, several, shares, at, size, inside, parts):
    """`total` and the sum of all shares, of which `several` are the first."""
    for next in gl.static_range(AT_ONCE):
        total += several[next]
    for first in range(AT_ONCE, parts, AT_ONCE):
        several = some_shares(shares, at, size, inside, first, parts)
        for next in gl.static_range(AT_ONCE):
            total += several[next]
    return total
