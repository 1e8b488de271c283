"""mamba1_step: a layer's token in four launches, matrix-vector products with the work around them fused in.

mamba1_step_in: residual + x, RMSNorm, in_proj, convolution, SiLU
mamba1_step_project: x_proj, and later out_proj
mamba1_step_state: dt_proj, softplus, state update, gate

Weights are read once a batch row. Every sum is in fp32 and has one order. What goes from one kernel to the
next is fp32.
"""

from _arithmetic import exp, sigmoid, softplus
from _half import FLOAT16, narrowed, widened
from _matrix_vector import even_and_odd, load_tile, load_wide_pairs, matrix_vector, multiply_add, tile_layout
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.language import debug_barrier

from tools.aot.spec import Config, Kernel

# Bits of `flags`, the same as in csrc/ops/mamba1_step.cpp.
HAS_RESIDUAL = gl.constexpr(2)
HAS_BIAS = gl.constexpr(4)
WIDE_OUT = gl.constexpr(8)
# From these bits on: the dtypes of residual and sum, two bits each (0 fp32, 1 fp16, 2 bf16).
RESIDUAL_TYPE = gl.constexpr(16)
SUM_TYPE = gl.constexpr(18)


@gluon.jit
def mamba1_step_in_kernel(
    x,
    residual,
    norm_weight,
    in_proj,
    conv_state,
    conv_weight,
    conv_bias,
    sum_out,
    xz,
    eps,
    width,
    inner,
    taps,
    kept,
    flags,
    ROWS: gl.constexpr,
):
    """xz[:inner] = silu(conv(u)), xz[inner:] = z, where u, z = in_proj(norm(x + residual))."""
    E: gl.constexpr = gl.BlockedLayout([1], [32], [gl.num_warps()], [0])
    blocks = 2 * inner // ROWS
    block = gl.program_id(0) % blocks
    batch = (gl.program_id(0) // blocks).to(gl.int64)
    first = block * ROWS
    row = first + gl.arange(0, ROWS, E)
    conv_state += batch * inner * kept
    lagged, weights, bias = load_convolution(
        conv_state, conv_weight, conv_bias, row, inner, taps, kept, flags
    )
    u = normed_matrix_vector(
        x, residual, batch * width, norm_weight, in_proj, block, blocks, sum_out, eps, width, flags, ROWS
    )
    u = gl.convert_layout(u, E)
    if first < inner:
        u = convolved(u, conv_state, row, kept, lagged, weights, bias, flags)
    gl.store(xz + batch * 2 * inner + row, u)


@gluon.jit
def load_convolution(conv_state, conv_weight, conv_bias, row, inner, taps, kept, flags):
    """Of some channels, as stored: what they were one, two and three steps ago, taps by lag, bias."""
    here = row < inner
    last = conv_state + row * kept + kept - 1
    tap = conv_weight + row * taps + taps - 1
    lagged = (
        gl.load(last, here & (taps > 1), 0),
        gl.load(last - 1, here & (taps > 2), 0),
        gl.load(last - 2, here & (taps > 3), 0),
    )
    weights = (
        gl.load(tap, here, 0),
        gl.load(tap - 1, here & (taps > 1), 0),
        gl.load(tap - 2, here & (taps > 2), 0),
        gl.load(tap - 3, here & (taps > 3), 0),
    )
    return lagged, weights, gl.load(conv_bias + row, here & ((flags & HAS_BIAS) != 0), 0)


@gluon.jit
def convolved(u, conv_state, row, kept, lagged, weights, bias, flags):
    """silu(conv(u)) of some channels; what is kept moves by one step."""
    new = narrowed(u, conv_state.dtype.element_ty, flags)
    y = widened(new, flags) * widened(weights[0], flags) + widened(bias, flags)
    for lag in gl.static_range(3):
        y += widened(lagged[lag], flags) * widened(weights[lag + 1], flags)
    last = conv_state + row * kept + kept - 1
    # Several threads hold the same channel, and one of them stores it: not before all have read.
    debug_barrier()
    gl.store(last, new, kept > 0)
    for lag in gl.static_range(3):
        gl.store(last - (lag + 1), lagged[lag], kept > lag + 1)
    return y * sigmoid(y)


@gluon.jit
def normed_matrix_vector(
    x,
    residual,
    at_token,
    norm_weight,
    matrix,
    block,
    blocks,
    sum_out,
    eps,
    width,
    flags,
    ROWS: gl.constexpr,
):
    """matrix_vector of norm(x + residual); the blocks share the work of storing the sum."""
    WARPS: gl.constexpr = gl.num_warps()
    STEP: gl.constexpr = 128 * WARPS
    TILE: gl.constexpr = tile_layout(ROWS, WARPS)
    half = width // 2
    float16 = (flags & FLOAT16) != 0
    matrix += (block * ROWS).to(gl.int64) * half
    k = gl.arange(0, STEP, gl.SliceLayout(0, TILE))
    at_row = (gl.arange(0, ROWS, gl.SliceLayout(1, TILE)) * half)[:, None]
    # Without a residual, neither is true.
    code = (flags >> RESIDUAL_TYPE) & 3
    is_wide = gl.where(((flags & HAS_RESIDUAL) != 0) & (code == 0), -1, 0)
    wide_residual = residual.to(gl.pointer_type(gl.float32), bitcast=True)
    sums = gl.zeros([ROWS, STEP], gl.float32, TILE)
    square = gl.zeros([STEP], gl.float32, gl.SliceLayout(0, TILE))
    tile = load_tile(matrix, at_row, k, half)
    for begin in range(0, half, STEP):
        here = begin + k
        inside = here < half
        following = load_tile(matrix, at_row, here + STEP, half)
        pairs = gl.load(x + at_token // 2 + here, inside, 0)
        scales = gl.load(norm_weight + here, inside, 0)
        narrow_residual = gl.load(residual + at_token // 2 + here, inside & (code > 0), 0)
        added_even, added_odd = load_wide_pairs(wide_residual + at_token, begin, half & is_wide, ROWS)
        if code > 0:
            added_even, added_odd = even_and_odd(narrow_residual, code == 1)
        even, odd = even_and_odd(pairs, float16)
        scale_even, scale_odd = even_and_odd(scales, float16)
        even += added_even
        odd += added_odd
        if begin // STEP % blocks == block:
            store_as(sum_out, at_token + 2 * here, even, inside, (flags >> SUM_TYPE) & 3)
            store_as(sum_out, at_token + 2 * here + 1, odd, inside, (flags >> SUM_TYPE) & 3)
        square += even * even + odd * odd
        # The row's 1 / rms is one factor of all sums: it is known at their end.
        sums = multiply_add(tile, even * scale_even, odd * scale_odd, sums, flags)
        tile = following
    return gl.sum(sums, 1) * gl.rsqrt(gl.sum(square, 0) / width + eps)


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


@gluon.jit
def mamba1_step_project_kernel(x, matrix, out, wide_out, rows, width, x_row, flags, ROWS: gl.constexpr):
    """Matrix [rows, width] times fp32 [width] for each batch row: into `wide_out`, or narrowed into `out`."""
    E: gl.constexpr = gl.BlockedLayout([1], [32], [gl.num_warps()], [0])
    blocks = rows // ROWS
    first = gl.program_id(0) % blocks * ROWS
    batch = (gl.program_id(0) // blocks).to(gl.int64)
    y = gl.convert_layout(matrix_vector(matrix, first, x + batch * x_row, width, flags, ROWS), E)
    at = batch * rows + first + gl.arange(0, ROWS, E)
    if (flags & WIDE_OUT) != 0:
        gl.store(wide_out + at, y)
    else:
        gl.store(out + at, narrowed(y, out.dtype.element_ty, flags))


@gluon.jit
def mamba1_step_state_kernel(
    low,
    dt_proj,
    dt_bias,
    A,
    D_skip,
    xz,
    state,
    out,
    inner,
    rank,
    flags,
    CHANNELS: gl.constexpr,
):
    """low = dt_proj's input, B, C in one row; xz = x and z in one row; 16 states."""
    N: gl.constexpr = 16
    WARPS: gl.constexpr = gl.num_warps()
    LANES: gl.constexpr = 8
    STEP: gl.constexpr = 4 * LANES
    # Eight lanes share a channel: two states each, or eight columns of dt_proj.
    X: gl.constexpr = gl.BlockedLayout([1, 2], [4, LANES], [WARPS, 1], [1, 0])
    K: gl.constexpr = gl.BlockedLayout([1, 4], [4, LANES], [WARPS, 1], [1, 0])
    S: gl.constexpr = gl.BlockedLayout([1, 4, 2], [4, LANES, 1], [WARPS, 1, 1], [2, 1, 0])
    OF_PAIR: gl.constexpr = gl.SliceLayout(0, S)
    ROW: gl.constexpr = gl.SliceLayout(1, X)
    blocks = inner // CHANNELS
    block = gl.program_id(0) % blocks
    batch = (gl.program_id(0) // blocks).to(gl.int64)
    first = block * CHANNELS
    channel = first + gl.arange(0, CHANNELS, ROW)
    n = gl.arange(0, N, gl.SliceLayout(0, X))
    at = channel[:, None] * N + n[None, :]
    low += batch * (rank + 2 * N)
    xz += batch * 2 * inner
    state += batch * inner * N
    half = rank // 2
    k = gl.arange(0, STEP, gl.SliceLayout(0, K))
    at_row = ((first + gl.arange(0, CHANNELS, gl.SliceLayout(1, K))) * half)[:, None]
    # All that comes from memory is asked for before the first sum.
    tile = load_tile(dt_proj, at_row, k, half)
    h = gl.load(state + at)
    rates = gl.load(A + at)
    B = gl.load(low + rank + n)
    C = gl.load(low + rank + N + n)
    x = gl.load(xz + channel)
    z = gl.load(xz + inner + channel)
    skip = gl.load(D_skip + channel)
    bias = widened(gl.load(dt_bias + channel), flags)
    sums = gl.zeros([CHANNELS, STEP], gl.float32, K)
    for begin in range(0, half, STEP):
        following = load_tile(dt_proj, at_row, begin + STEP + k, half)
        pair = begin + gl.arange(0, STEP, gl.SliceLayout(1, OF_PAIR))
        of_pair = (2 * pair)[:, None] + gl.arange(0, 2, gl.SliceLayout(0, OF_PAIR))[None, :]
        even, odd = gl.split(gl.load(low + of_pair, (pair < half)[:, None], 0.0))
        even = gl.convert_layout(even, gl.SliceLayout(0, K), assert_trivial=True)
        odd = gl.convert_layout(odd, gl.SliceLayout(0, K), assert_trivial=True)
        sums = multiply_add(tile, even, odd, sums, flags)
        tile = following
    delta = softplus(gl.convert_layout(gl.sum(sums, 1), ROW) + bias)
    h = exp(delta[:, None] * rates) * h + (delta * x)[:, None] * B[None, :]
    gl.store(state + at, h)
    y = gl.sum(h * C[None, :], 1) + skip * x
    gl.store(out + batch * inner + channel, y * z * sigmoid(z))


_PAIRS = dict.fromkeys(("x", "norm_weight", "in_proj"), "*i32")
_HALVES = dict.fromkeys(("conv_state", "conv_weight", "conv_bias"), "*half")

KERNELS = [
    Kernel(
        mamba1_step_in_kernel,
        args={
            **_PAIRS,
            **_HALVES,
            **dict(residual="*i32", sum_out="*i32", xz="*f32", eps="f32"),
            **dict.fromkeys(("width", "inner", "taps", "kept", "flags"), "i32"),
        },
        aligned=lambda _: [*_PAIRS, "residual", "sum_out", "xz", "width", "inner"],
        configs=[Config("only", ROWS=4, num_warps=2)],
    ),
    Kernel(
        mamba1_step_project_kernel,
        args={
            **dict(x="*f32", matrix="*i32", out="*half", wide_out="*f32"),
            **dict(rows="i32", width="i32", x_row="i64", flags="i32"),
        },
        aligned=lambda _: ["x", "matrix", "out", "wide_out", "rows", "width", "x_row"],
        shape=["rows"],
        configs=[
            Config("few", when="rows <= 1024", ROWS=2, num_warps=8),
            Config("many", ROWS=4, num_warps=4),
        ],
    ),
    Kernel(
        mamba1_step_state_kernel,
        args={
            **dict.fromkeys(("low", "A", "D_skip", "xz", "state", "out"), "*f32"),
            **dict(dt_proj="*i32", dt_bias="*half"),
            **dict.fromkeys(("inner", "rank", "flags"), "i32"),
        },
        aligned=lambda _: ["dt_proj", "A", "state", "xz", "low", "out", "inner", "rank"],
        configs=[Config("only", CHANNELS=16, num_warps=4)],
    ),
]
