"""Scalar functions and register permutations shared by the kernels, accurate to about one unit of fp32."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

LOG2E = gl.constexpr(1.4426950408889634)
LOG2E_LOW = gl.constexpr(1.9259629911266175e-08)
LN2 = gl.constexpr(0.6931471805599453)
INVERSE_TWO_PI = gl.constexpr(0.15915494309189535)
INVERSE_TWO_PI_LOW = gl.constexpr(6.420638316725915e-09)
# 1.5 * 2^21: adding and subtracting it rounds an fp32 number to the nearest quarter.
QUARTERS = gl.constexpr(3145728.0)


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
def sine_cosine_of_turns(x, turns, low):
    """(sin, cos) of 2 pi x (turns + low): the nearest quarter turn is taken off exactly, the rest is a
    polynomial.

    The angle is never rounded while it is large: steps of a scan would add its errors up, all of one sign.
    """
    rounded = gl.fma(x, turns, QUARTERS)
    quadrant = rounded.to(gl.int32, bitcast=True)
    r = gl.fma(x, low, gl.fma(x, turns, QUARTERS - rounded))
    w = r * r
    s = gl.fma(w, gl.full_like(w, -75.40184030835883), gl.full_like(w, 81.59254820669926))
    s = gl.fma(w, s, gl.full_like(w, -41.3416626018187))
    s = r * gl.fma(w, s, gl.full_like(w, 6.28318528784011))
    c = gl.fma(w, gl.full_like(w, 59.22028820996847), gl.full_like(w, -85.44284839980975))
    c = gl.fma(w, c, gl.full_like(w, 64.9393161721056))
    c = gl.fma(w, c, gl.full_like(w, -19.739208650244358))
    c = gl.fma(w, c, gl.full_like(w, 1.0))
    swap = (quadrant & 1) != 0
    sine = gl.where(swap, c, s)
    cosine = gl.where(swap, s, c)
    sine = gl.where((quadrant & 2) != 0, -sine, sine)
    cosine = gl.where(((quadrant + 1) & 2) != 0, -cosine, cosine)
    return sine, cosine


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
