"""A token of many rows through a layer: products on tensor cores, which read each weight once for all rows.

mamba1_step_rows_norm: residual + x, RMSNorm
mamba1_step_rows_project: in_proj, x_proj and out_proj, whole or in parts of their columns
mamba1_step_rows_sum: the sum of those parts
mamba1_step_rows_convolution: convolution, SiLU
mamba1_step_rows_state: dt_proj, softplus, state update, gate

What goes from one kernel to the next is rounded to sixteen bits, as between modules. Every sum is in fp32 and
has one order.
"""

from _arithmetic import LOG2E, exp2_fast, sigmoid, softplus
from _half import narrowed, widened
from _mamba1_step_convolution import convolved, load_convolution
from _mamba1_step_sum import HAS_RESIDUAL, RESIDUAL_TYPE, SUM_TYPE, store_as
from _matrix_rows import WIDE, multiply_rows, result_places, results
from _overlap import let_next_kernel_begin, wait_for_earlier_kernels
from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.jit
def mamba1_step_rows_norm_kernel(
    x, residual, norm_weight, sum_out, out, eps, width, flags, BLOCK: gl.constexpr
):
    """norm(x + residual), a row a program."""
    E: gl.constexpr = gl.BlockedLayout([8], [32], [gl.num_warps()], [0])
    row = gl.program_id(0).to(gl.int64) * width
    # What an unknown kernel before this one may still write is not read. The next kernel may read its weights
    # before it waits, because it begins when this one has waited.
    wait_for_earlier_kernels()
    let_next_kernel_begin()
    k = gl.arange(0, BLOCK, E)
    value = added(x, residual, row, k, width, flags)
    weight = gl.load(norm_weight + k, k < width, 0)
    squares = value * value
    for first in range(BLOCK, width, BLOCK):
        following = added(x, residual, row, first + k, width, flags)
        squares += following * following
    scale = gl.rsqrt(gl.sum(squares, 0) / width + eps)
    for first in range(0, width, BLOCK):
        at = first + k
        if first > 0:
            value = added(x, residual, row, at, width, flags)
            weight = gl.load(norm_weight + at, at < width, 0)
        store_as(sum_out, row + at, value, at < width, (flags >> SUM_TYPE) & 3)
        normed = value * scale * widened(weight, flags)
        gl.store(out + row + at, narrowed(normed, out.dtype.element_ty, flags), at < width)


@gluon.jit
def added(x, residual, row, at, width, flags):
    """x + residual, fp32."""
    # Without a residual, neither is true.
    code = (flags >> RESIDUAL_TYPE) & 3
    is_wide = ((flags & HAS_RESIDUAL) != 0) & (code == 0)
    inside = at < width
    wide = residual.to(gl.pointer_type(gl.float32), bitcast=True) + row
    narrow = residual.to(gl.pointer_type(gl.int16), bitcast=True) + row
    bits = gl.load(narrow + at, inside & (code > 0), 0)
    sums = widened(gl.load(x + row + at, inside, 0), flags) + gl.load(wide + at, inside & is_wide, 0.0)
    half = bits.to(gl.float16, bitcast=True).to(gl.float32)
    brain = (bits.to(gl.int32) << 16).to(gl.float32, bitcast=True)
    return sums + gl.where(code == 1, half, brain)


@gluon.jit
def mamba1_step_rows_convolution_kernel(
    xz, conv_state, conv_weight, conv_bias, inner, taps, kept, flags, CHANNELS: gl.constexpr
):
    """xz[:, :inner] becomes silu(conv(xz[:, :inner])). CHANNELS of one row a program."""
    E: gl.constexpr = gl.BlockedLayout([1], [32], [gl.num_warps()], [0])
    blocks = gl.cdiv(inner, CHANNELS)
    channel = gl.program_id(0) % blocks * CHANNELS + gl.arange(0, CHANNELS, E)
    batch = gl.program_id(0) // blocks
    here = channel < inner
    place = batch * inner + channel
    let_next_kernel_begin()
    # Older than this layer's first kernel.
    lagged, weights, bias = load_convolution(
        conv_state, conv_weight, conv_bias, place, channel, here, taps, kept, flags
    )
    wait_for_earlier_kernels()
    at = batch.to(gl.int64) * (2 * inner) + channel
    u = widened(gl.load(xz + at, here, 0), flags)
    y = convolved(u, conv_state, place, here, kept, lagged, weights, bias, flags)
    gl.store(xz + at, narrowed(y, xz.dtype.element_ty, flags), here)


@gluon.jit
def mamba1_step_rows_project_kernel(
    x,
    matrix,
    out,
    shares,
    rows,
    width,
    batch,
    x_row,
    parts,
    flags,
    M: gl.constexpr,
    N: gl.constexpr,
    SPLIT: gl.constexpr,
    STEPS: gl.constexpr,
):
    """Matrix [rows, width] times `batch` vectors into out [batch, rows]; or, with columns cut into several
    parts, into fp32 `shares` [parts, batch, rows].
    """
    groups = gl.cdiv(batch, 8 * N)
    part = gl.program_id(0) % parts
    first_vector = gl.program_id(0) // parts % groups * (8 * N)
    first_row = gl.program_id(0) // parts // groups * (16 * M)
    half = width // 2
    steps = gl.cdiv(half, WIDE * SPLIT * STEPS)
    each = gl.cdiv(steps, parts)
    begin = gl.minimum(part * each, steps)
    end = gl.minimum(begin + each, steps)
    let_next_kernel_begin()
    sums = multiply_rows(
        matrix,
        first_row,
        rows,
        x,
        x_row // 2,
        first_vector,
        batch,
        begin,
        end,
        half,
        flags,
        M,
        N,
        SPLIT,
        STEPS,
    )
    y = results(sums, M, N, SPLIT)
    row, vector = result_places(first_row, first_vector, M, N)
    inside = (row < rows) & (vector < batch)
    if parts > 1:
        gl.store(shares + ((part * batch + vector).to(gl.int64) * rows + row), y, inside)
    else:
        at = vector.to(gl.int64) * rows + row
        gl.store(out + at, narrowed(y, out.dtype.element_ty, flags), inside)


@gluon.jit
def mamba1_step_rows_sum_kernel(shares, out, size, parts, flags, BLOCK: gl.constexpr):
    """out = the sum of `parts` times `size` numbers."""
    E: gl.constexpr = gl.BlockedLayout([4], [32], [gl.num_warps()], [0])
    at = gl.program_id(0).to(gl.int64) * BLOCK + gl.arange(0, BLOCK, E)
    let_next_kernel_begin()
    wait_for_earlier_kernels()
    total = gl.zeros([BLOCK], gl.float32, E)
    for part in range(0, parts):
        total += gl.load(shares + (at + part * size), at < size, 0.0)
    gl.store(out + at, narrowed(total, out.dtype.element_ty, flags), at < size)


@gluon.jit
def mamba1_step_rows_state_kernel(
    low,
    dt_proj,
    dt_bias,
    A,
    D_skip,
    xz,
    state,
    out,
    batch,
    inner,
    rank,
    flags,
    N: gl.constexpr,
):
    """low = dt_proj's input, B, C in one row; xz = x and z in one row; 16 states.

    16 channels and 8 N vectors a program, of which eight at a time.
    """
    WARPS: gl.constexpr = gl.num_warps()
    # Four lanes share two channels.
    X: gl.constexpr = gl.BlockedLayout([1, 2, 4], [1, 8, 4], [WARPS, 1, 1], [2, 1, 0])
    OF_CHANNEL: gl.constexpr = gl.SliceLayout(2, X)
    OF_STATE: gl.constexpr = gl.SliceLayout(1, X)
    groups = gl.cdiv(batch, 8 * N)
    first = gl.program_id(0) // groups * 16
    first_vector = gl.program_id(0) % groups * (8 * N)
    half = rank // 2
    row_of_low = rank + 32
    end = gl.cdiv(half, WIDE * WARPS)
    let_next_kernel_begin()
    # All that is older than this layer's first kernel is asked for before those before this one have ended.
    vector, channel, n = state_places(first_vector, first, X)
    h = gl.load(state + ((vector.to(gl.int64) * inner + channel) * 16 + n), vector < batch, 0.0)
    rates = gl.load(A + (channel * 16 + n)) * LOG2E
    own = first + gl.arange(0, 16, gl.SliceLayout(0, OF_CHANNEL))[None, :]
    of_n = gl.arange(0, 16, gl.SliceLayout(0, OF_STATE))[None, :]
    skip = gl.load(D_skip + own)
    row, _ = result_places(first, 0, 1, N)
    stored_bias = gl.load(dt_bias + row)
    shares = multiply_rows(
        dt_proj,
        first,
        inner,
        low.to(gl.pointer_type(gl.int32), bitcast=True),
        row_of_low // 2,
        first_vector,
        batch,
        0,
        end,
        half,
        flags,
        1,
        N,
        WARPS,
        1,
    )
    delta = softplus(results(shares, 1, N, WARPS) + widened(stored_bias, flags))
    IN_ORDER: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    deltas = gl.allocate_shared_memory(gl.float32, [8 * N, 16], IN_ORDER, delta)
    for begin in gl.static_range(0, 8 * N, 8):
        vectors = first_vector + begin + gl.arange(0, 8, gl.SliceLayout(1, OF_CHANNEL))[:, None]
        at_xz = xz + (vectors.to(gl.int64) * (2 * inner) + own)
        x = widened(gl.load(at_xz, vectors < batch, 0), flags)
        z = widened(gl.load(at_xz + inner, vectors < batch, 0), flags)
        rows = first_vector + begin + gl.arange(0, 8, gl.SliceLayout(1, OF_STATE))[:, None]
        at_low = low + (rows.to(gl.int64) * row_of_low + (rank + of_n))
        B = widened(gl.load(at_low, rows < batch, 0), flags)
        C = widened(gl.load(at_low + 16, rows < batch, 0), flags)
        now = vector + begin
        at_state = state + ((now.to(gl.int64) * inner + channel) * 16 + n)
        if begin + 8 < 8 * N:
            following = gl.load(at_state + inner.to(gl.int64) * 128, now + 8 < batch, 0.0)
        step = deltas.slice(begin, 8).load(OF_CHANNEL)
        h = gl.fma(exp2_fast(step[:, :, None] * rates), h, (step * x)[:, :, None] * B[:, None, :])
        # Read again after all other layers' states, so there is no use in keeping it in the cache.
        gl.store(at_state, h, now < batch, cache_modifier=".cs")
        y = (gl.sum(h * C[:, None, :], 2) + skip * x) * z * sigmoid(z)
        at_out = out + (vectors.to(gl.int64) * inner + own)
        gl.store(at_out, narrowed(y, out.dtype.element_ty, flags), vectors < batch)
        if begin + 8 < 8 * N:
            h = following


@gluon.jit
def state_places(first_vector, first, LAYOUT: gl.constexpr):
    """[8, 16, 16] along each axis: vectors, channels and states."""
    vector = gl.arange(0, 8, gl.SliceLayout(1, gl.SliceLayout(2, LAYOUT)))[:, None, None]
    channel = gl.arange(0, 16, gl.SliceLayout(0, gl.SliceLayout(2, LAYOUT)))[None, :, None]
    n = gl.arange(0, 16, gl.SliceLayout(0, gl.SliceLayout(1, LAYOUT)))[None, None, :]
    return first_vector + vector, first + channel, n
