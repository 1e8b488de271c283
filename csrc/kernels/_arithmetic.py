"""Scalar functions and register permutations shared by the kernels, accurate to about one unit of fp32."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

LOG2E = gl.constexpr(1.4426950408889634)
LOG2E_LOW = gl.constexpr(1.9259629911266175e-08)
LN2 = gl.constexpr(0.6931471805599453)
INVERSE_TWO_PI = gl.constexpr(0.15915494309189535)
INVERSE_TWO_PI_LOW = gl.constexpr(6.420638316725915e-09)
# 1.5 * 2^22: adding and subtracting it rounds an fp32 number to the nearest half.
HALVES = gl.constexpr(6291456.0)
# sin(2 pi r) / r and cos(2 pi r) by powers of r^2, |r| <= 1/4, the highest first.
SINE = gl.constexpr(
    (39.710918110813076, -76.57499217755503, 81.60223124253316, -41.341677478389116, 6.283185273790802)
)
COSINE = gl.constexpr(
    (
        -25.006796777638176,
        60.14820497104457,
        -85.45383071218295,
        64.93935359616557,
        -19.73920862435102,
        1.0,
    )
)


@gluon.jit
def exp2_fast(x):
    """2^x by the special-function unit, without the denormal sequence that exp2 would add."""
    return gl.inline_asm_elementwise(
        "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=gl.float32, is_pure=True, pack=1
    )


@gluon.jit
def anew(x):
    """x (int32) in a form that hides where it came from.

    What follows from it is computed again where it is needed, not kept in registers that a loop is short of.
    """
    return gl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], dtype=gl.int32, is_pure=False, pack=1)


@gluon.jit
def prefetch(pointers):
    """Bring the cache lines at `pointers` into L1. The result is a dummy: an operation must have one."""
    gl.inline_asm_elementwise(
        "prefetch.global.L1 [$1]; mov.b32 $0, 0;",
        "=r,l",
        [pointers.to(gl.int64, bitcast=True)],
        dtype=gl.int32,
        is_pure=False,
        pack=1,
    )


@gluon.jit
def reciprocal(x):
    return gl.inline_asm_elementwise(
        "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=gl.float32, is_pure=True, pack=1
    )


@gluon.jit
def exp(x):
    """e^x; the low part of log2(e) keeps the relative error flat for large |x|."""
    high = x * LOG2E
    low = gl.fma(x, gl.full_like(x, LOG2E), -high) + x * LOG2E_LOW
    power = exp2_fast(high)
    return gl.fma(power * LN2, low, power)


@gluon.jit
def sigmoid(x):
    return reciprocal(1.0 + exp(-x))


@gluon.jit
def sigmoid_fast(x):
    """sigmoid() in half the instructions, with a relative error of |x| / 2 units."""
    return reciprocal(1.0 + exp2_fast(x * -LOG2E))


@gluon.jit
def softplus(x, FAST: gl.constexpr = False):
    """log(1 + e^x) = max(x, 0) + log1p(e^-|x|); log1p(e) / e on [0, 1] is a polynomial (minimax with 1 at 0,
    3e-8). FAST as sigmoid_fast().
    """
    e = exp2_fast(gl.abs(x) * -LOG2E) if FAST else exp(-gl.abs(x))
    terms: gl.constexpr = (
        0.00536482278429222,
        -0.030065786114965923,
        0.07920452555110365,
        -0.13753801496695925,
        0.19153654547016738,
        -0.2485716356910657,
        0.3332132260614866,
        -0.49999647962979493,
        1.0,
    )
    p = gl.full_like(e, terms[0])
    for k in gl.static_range(1, len(terms)):
        p = gl.fma(p, e, gl.full_like(e, terms[k]))
    return gl.fma(p, e, gl.maximum(x, 0.0))


@gluon.jit
def turns_of(radians):
    """radians / (2 pi) as a number and what its rounding left."""
    turns = radians * INVERSE_TWO_PI
    return turns, gl.fma(radians, gl.full_like(turns, INVERSE_TWO_PI), -turns) + radians * INVERSE_TWO_PI_LOW


@gluon.jit
def tail_of(x, terms: gl.constexpr):
    """The polynomial without its constant term, divided by x."""
    p = gl.full_like(x, terms[0])
    for k in gl.static_range(1, len(terms) - 1):
        p = gl.fma(x, p, gl.full_like(x, terms[k]))
    return p


@gluon.jit
def angle_of(x, turns, low):
    """x (turns + low) without the nearest half turns, which are taken off exactly: 1.5 * 2^22 more than how
    many turns these are, the rest r, r^2, and tails of the sine's and the cosine's polynomials.
    """
    rounded = gl.fma(x, turns, HALVES)
    r = gl.fma(x, low, gl.fma(x, turns, HALVES - rounded))
    w = r * r
    return rounded, r, w, tail_of(w, SINE), tail_of(w, COSINE)


@gluon.jit
def turned(magnitude, rounded):
    """magnitude, with the sign that half turns leave."""
    sign = rounded.to(gl.int32, bitcast=True) << 31
    return (magnitude.to(gl.int32, bitcast=True) ^ sign).to(gl.float32, bitcast=True)


@gluon.jit
def polar(magnitude, x, turns, low):
    """(real, imaginary) of magnitude e^(2 pi i x (turns + low)): the nearest half turn goes into the sign,
    the rest is two polynomials (minimax, 5e-9 and 3e-10; 1 at 0).

    The angle is never rounded while it is large: steps of a scan would add its errors up, all of one sign.
    """
    rounded, r, w, s, c = angle_of(x, turns, low)
    s = gl.fma(w, s, gl.full_like(w, SINE[-1]))
    c = gl.fma(w, c, gl.full_like(w, COSINE[-1]))
    magnitude = turned(magnitude, rounded)
    return magnitude * c, magnitude * (r * s)


@gluon.jit
def compose(a_left, b_left, a_right, b_right):
    """Two steps of h -> a h + b as one."""
    return a_left * a_right, a_right * b_left + b_right


@gluon.jit
def compose_complex(ar, ai, br, bi, cr, ci, dr, di):
    """compose() for complex a, b as pairs: first (ar + i ai, br + i bi), then (cr + i ci, dr + i di)."""
    return (
        ar * cr - ai * ci,
        ar * ci + ai * cr,
        cr * br - ci * bi + dr,
        cr * bi + ci * br + di,
    )
