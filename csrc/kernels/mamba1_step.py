"""mamba1_step: a layer's token in four launches, matrix-vector products with the work around them fused in.
Batches that are worth a tensor core have the kernels of _mamba1_step_rows.py.

mamba1_step_in: residual + x, RMSNorm, in_proj, convolution, SiLU
mamba1_step_project: x_proj, and later out_proj
mamba1_step_state: dt_proj, softplus, state update, gate

Weights are read once a batch row. Every sum is in fp32 and has one order. What goes from one kernel to the
next is fp32.
"""

from _argmax_rows import argmax_rows_kernel, argmax_rows_parts_kernel
from _arithmetic import exp, sigmoid, softplus
from _few_rows_linear import few_rows_linear_kernel
from _half import narrowed, widened
from _mamba1_step_convolution import convolution, keep, load_lagged, load_taps
from _mamba1_step_rows import mamba1_step_rows_convolution_kernel, mamba1_step_rows_norm_kernel
from _mamba1_step_rows_products import (
    mamba1_step_rows_project_kernel,
    mamba1_step_rows_project_large_kernel,
    mamba1_step_rows_sum_kernel,
)
from _mamba1_step_rows_state import mamba1_step_rows_state_kernel
from _matrix_vector import (
    ROUNDS,
    WIDE,
    allocate_rows,
    fetch_first_rows,
    load_wide_tiles,
    multiply_add,
    multiply_rows,
)
from _overlap import let_next_kernel_begin, prefetch_into_l2, wait_for_earlier_kernels
from _scaled_token import scaled_token
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from tools.aot.spec import Config, Kernel

# A bit of `flags`, the same as in csrc/ops/mamba1_step.cpp.
WIDE_OUT = gl.constexpr(8)
# Bytes of its rows that a program asks for before it may read them. More gained nothing.
PREFETCHED = gl.constexpr(16384)


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
    count,
    flags,
    SPLIT: gl.constexpr,
    TILES: gl.constexpr,
):
    """xz[:inner] = silu(conv(u)), xz[inner:] = z, where u, z = in_proj(norm(x + residual)).

    `count` rows of in_proj a program.
    """
    E: gl.constexpr = gl.BlockedLayout([1], [32], [gl.num_warps()], [0])
    MOST_ROWS: gl.constexpr = ROUNDS * gl.num_warps() // SPLIT
    programs = gl.cdiv(2 * inner, count)
    program = gl.program_id(0) % programs
    batch = (gl.program_id(0) // programs).to(gl.int64)
    first = program * count
    count = gl.minimum(count, 2 * inner - first)
    half = width // 2
    in_proj += first.to(gl.int64) * half
    slots = allocate_rows(SPLIT, TILES)
    # What an unknown kernel before this one may still write is asked for, not read. The next kernel may read
    # its weights before it waits, because it begins when this one has waited.
    prefetch_into_l2(in_proj, gl.minimum(count * width * 2, PREFETCHED))
    wait_for_earlier_kernels()
    let_next_kernel_begin()
    fetch_first_rows(slots, in_proj, 0, count, half, SPLIT, TILES)
    own = gl.arange(0, MOST_ROWS, E)
    row = first + own
    place = batch * inner + row
    convolves = (own < count) & (row < inner)
    lagged = load_lagged(conv_state, place, convolves, taps, kept)
    weights, bias = load_taps(conv_weight, conv_bias, row, convolves, taps, flags)
    square = 0.0
    u = gl.zeros([MOST_ROWS], gl.float32, E)
    for part in range(0, gl.cdiv(half, SPLIT * TILES * WIDE)):
        if part > 0:
            fetch_first_rows(slots, in_proj, part, count, half, SPLIT, TILES)
        even, odd, squares = scaled_token(
            x, residual, batch * width, norm_weight, sum_out, part, half, program == 0, flags, SPLIT, TILES
        )
        square += squares
        sums = multiply_rows(slots, in_proj, part, count, even, odd, half, flags, SPLIT, TILES)
        u += gl.convert_layout(sums, E)
    # The row's 1 / rms is one factor of all sums.
    u *= gl.rsqrt(square / width + eps)
    new = narrowed(u, conv_state.dtype.element_ty, flags)
    y = convolution(new, lagged, weights, bias, flags)
    keep(conv_state, place, convolves, kept, lagged, new)
    gl.store(xz + batch * 2 * inner + row, gl.where(row < inner, y, u), own < count)


@gluon.jit
def mamba1_step_project_kernel(
    x,
    matrix,
    out,
    wide_out,
    rows,
    width,
    x_row,
    count,
    flags,
    SPLIT: gl.constexpr,
    TILES: gl.constexpr,
):
    """Matrix [rows, width] times fp32 [width] for each batch row: into `wide_out`, or narrowed into `out`.

    `count` rows a program.
    """
    E: gl.constexpr = gl.BlockedLayout([1], [32], [gl.num_warps()], [0])
    MOST_ROWS: gl.constexpr = ROUNDS * gl.num_warps() // SPLIT
    programs = gl.cdiv(rows, count)
    first = gl.program_id(0) % programs * count
    batch = (gl.program_id(0) // programs).to(gl.int64)
    count = gl.minimum(count, rows - first)
    half = width // 2
    matrix += first.to(gl.int64) * half
    let_next_kernel_begin()
    slots = allocate_rows(SPLIT, TILES)
    fetch_first_rows(slots, matrix, 0, count, half, SPLIT, TILES)
    wait_for_earlier_kernels()
    x += batch * x_row
    y = gl.zeros([MOST_ROWS], gl.float32, E)
    for part in range(0, gl.cdiv(half, SPLIT * TILES * WIDE)):
        if part > 0:
            fetch_first_rows(slots, matrix, part, count, half, SPLIT, TILES)
        even, odd = load_wide_tiles(x, part, half, SPLIT, TILES)
        y += gl.convert_layout(
            multiply_rows(slots, matrix, part, count, even, odd, half, flags, SPLIT, TILES), E
        )
    own = gl.arange(0, MOST_ROWS, E)
    at = batch * rows + first + own
    if (flags & WIDE_OUT) != 0:
        gl.store(wide_out + at, y, own < count)
    else:
        gl.store(out + at, narrowed(y, out.dtype.element_ty, flags), own < count)


@gluon.jit
def load_narrow(matrix, at_row, k, half):
    return gl.load(matrix + (at_row + k[None, :]), (at_row >= 0) & (k < half)[None, :], 0)


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
    """low = dt_proj's input, B, C in one row; xz = x and z in one row; 16 states, fp32 or of the sixteen-bit
    format of the weights.
    """
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
    let_next_kernel_begin()
    # All that comes from memory is asked for before the first sum, and what is older than this layer's first
    # kernel before the second has ended.
    tile = load_narrow(dt_proj, at_row, k, half)
    h = gl.load(state + at)
    rates = gl.load(A + at)
    skip = gl.load(D_skip + channel)
    stored_bias = gl.load(dt_bias + channel)
    wait_for_earlier_kernels()
    B = gl.load(low + rank + n)
    C = gl.load(low + rank + N + n)
    x = gl.load(xz + channel)
    z = gl.load(xz + inner + channel)
    bias = widened(stored_bias, flags)
    sums = gl.zeros([CHANNELS, STEP], gl.float32, K)
    for begin in range(0, half, STEP):
        following = load_narrow(dt_proj, at_row, begin + STEP + k, half)
        pair = begin + gl.arange(0, STEP, gl.SliceLayout(1, OF_PAIR))
        of_pair = (2 * pair)[:, None] + gl.arange(0, 2, gl.SliceLayout(0, OF_PAIR))[None, :]
        even, odd = gl.split(gl.load(low + of_pair, (pair < half)[:, None], 0.0))
        even = gl.convert_layout(even, gl.SliceLayout(0, K), assert_trivial=True)
        odd = gl.convert_layout(odd, gl.SliceLayout(0, K), assert_trivial=True)
        sums = multiply_add(tile, even[None, :], odd[None, :], sums, flags)
        tile = following
    delta = softplus(gl.convert_layout(gl.sum(sums, 1), ROW) + bias)
    h = exp(delta[:, None] * rates) * widened(h, flags) + (delta * x)[:, None] * B[None, :]
    gl.store(state + at, narrowed(h, state.dtype.element_ty, flags))
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
            **dict.fromkeys(("width", "inner", "taps", "kept", "count", "flags"), "i32"),
        },
        aligned=lambda _: [*_PAIRS, "residual", "sum_out", "xz", "width", "inner"],
        shape=["width"],
        tuned=["PROGRAMS", "FEW"],
        configs=[
            Config("narrow", when="width <= 768", SPLIT=1, TILES=3, num_warps=8),
            Config("middle", when="width <= 2048", SPLIT=2, TILES=4, num_warps=8),
            Config("wide", SPLIT=2, TILES=5, num_warps=8),
        ],
    ),
    Kernel(
        mamba1_step_project_kernel,
        args={
            **dict(x="*f32", matrix="*i32", out="*half", wide_out="*f32"),
            **dict(rows="i32", width="i32", x_row="i64", count="i32", flags="i32"),
        },
        aligned=lambda _: ["x", "matrix", "out", "wide_out", "rows", "width", "x_row"],
        shape=["width"],
        tuned=["PROGRAMS"],
        configs=[
            Config("narrow", when="width <= 1536", SPLIT=2, TILES=3, num_warps=8),
            Config("middle", when="width <= 4096", SPLIT=4, TILES=4, num_warps=8),
            Config("wide", SPLIT=4, TILES=5, num_warps=8),
        ],
    ),
    Kernel(
        mamba1_step_state_kernel,
        args={
            **dict.fromkeys(("low", "A", "D_skip", "xz", "out"), "*f32"),
            **dict(dt_proj="*i32", dt_bias="*half", state="*S"),
            **dict.fromkeys(("inner", "rank", "flags"), "i32"),
        },
        aligned=lambda _: ["dt_proj", "A", "state", "xz", "low", "out", "inner", "rank"],
        axes=dict(S=["f32", "half"]),
        configs=[Config("only", CHANNELS=16, num_warps=4)],
    ),
    Kernel(
        mamba1_step_rows_norm_kernel,
        args={
            **dict.fromkeys(("x", "norm_weight", "out"), "*half"),
            **dict(shares="*f32", residual="*i32", sum_out="*i32", eps="f32", size="i64"),
            **dict.fromkeys(("width", "parts", "flags"), "i32"),
        },
        aligned=lambda _: ["x", "norm_weight", "out", "shares", "residual", "sum_out", "size", "width"],
        configs=[Config("only", BLOCK=4096, num_warps=16)],
    ),
    Kernel(
        mamba1_step_rows_convolution_kernel,
        args={
            **dict(xz="*half", shares="*f32", **_HALVES, x="*half", z="*half", size="i64"),
            **dict.fromkeys(("inner", "taps", "kept", "parts", "flags"), "i32"),
        },
        aligned=lambda _: ["xz", "shares", "x", "z", "size", "inner"],
        shape=["inner"],
        configs=[
            Config("narrow", when="inner < 4096", CHANNELS=128, num_warps=2),
            Config("wide", CHANNELS=256, num_warps=4),
        ],
    ),
    Kernel(
        mamba1_step_rows_project_kernel,
        args={
            **dict(x="*i32", matrix="*i32", out="*half", shares="*f32"),
            **dict.fromkeys(("rows", "width", "batch", "parts", "flags"), "i32"),
        },
        aligned=lambda _: ["x", "matrix", "out", "shares", "rows", "width"],
        shape=["rows"],
        tuned=["NARROW", "WIDE", "PROGRAMS", "WIDTH"],
        configs=[
            Config("narrow", when="rows < NARROW", M=1, N=4, SPLIT=8, STEPS=1, num_warps=8),
            Config("middle", M=2, N=8, SPLIT=8, STEPS=1, num_warps=8),
        ],
    ),
    Kernel(
        mamba1_step_rows_project_large_kernel,
        args={
            **dict(x="*T", matrix="*T", out="*T", shares="*f32"),
            **dict.fromkeys(("rows", "width", "batch", "parts"), "i32"),
        },
        aligned=lambda _: ["x", "matrix", "out", "shares", "rows", "width"],
        axes=dict(T=["f16", "bf16"]),
        shape=["tall"],
        tuned=["COLUMNS"],
        arch=90,
        configs=[
            Config("tall", when="tall == 1", TALL=64, EXTRA=16, STAGES=4, num_warps=4),
            Config("even", TALL=64, EXTRA=0, STAGES=4, num_warps=4),
        ],
    ),
    Kernel(
        mamba1_step_rows_sum_kernel,
        args=dict(shares="*f32", out="*half", size="i64", parts="i32", flags="i32"),
        aligned=lambda _: ["shares", "out", "size"],
        shape=["parts"],
        configs=[
            Config("few", when="parts <= 4", PARTS=1, BLOCK=512, num_warps=4),
            Config("many", PARTS=16, BLOCK=128, num_warps=4),
        ],
    ),
    Kernel(
        mamba1_step_rows_state_kernel,
        args={
            **dict.fromkeys(("A", "D_skip"), "*f32"),
            **dict.fromkeys(("low", "x", "z", "out", "dt_bias"), "*half"),
            **dict(dt_proj="*i32", state="*S"),
            **dict.fromkeys(("z_row", "batch", "inner", "rank", "flags"), "i32"),
        },
        aligned=lambda _: ["dt_proj", "A", "state", "x", "z", "low", "out", "z_row", "inner", "rank"],
        axes=dict(S=["f32", "half"]),
        shape=["batch", "inner"],
        configs=[
            # 98 304 of 130m at 64 rows gain by smaller programs, 196 608 at 128 rows and more lose.
            Config("few", when="batch * inner < 150000", N=2, STAGES=3, num_warps=4, maxnreg=96),
            Config("many", N=4, STAGES=3, num_warps=4, maxnreg=96),
        ],
    ),
    Kernel(
        few_rows_linear_kernel,
        args={
            **dict.fromkeys(("x", "norm_weight", "matrix"), "*i32"),
            **dict(residual="*i32", out="*half", eps="f32"),
            **dict.fromkeys(("rows", "width", "count", "flags"), "i32"),
        },
        aligned=lambda _: ["x", "norm_weight", "matrix", "residual", "width"],
        shape=["width"],
        configs=[
            Config("narrow", when="width <= 768", SPLIT=1, TILES=3, num_warps=8),
            Config("middle", when="width <= 2048", SPLIT=2, TILES=4, num_warps=8),
            Config("wide", SPLIT=2, TILES=5, num_warps=8),
        ],
    ),
    Kernel(
        argmax_rows_parts_kernel,
        args=dict(x="*half", keys="*i64", size="i64", row_stride="i64", parts="i32", code="i32"),
        aligned=lambda _: ["keys"],
        configs=[Config("only", BLOCK=2048, num_warps=4)],
    ),
    Kernel(
        argmax_rows_kernel,
        args=dict(keys="*i64", out="*i64", parts="i32"),
        aligned=lambda _: ["keys", "out"],
        configs=[Config("only", BLOCK=128, num_warps=1)],
    ),
]
