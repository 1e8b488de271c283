"""How the adjoint of the state comes through spans of time, where whole rows are too few to fill a GPU.

The backward kernel walks a span by itself once it knows the adjoint that comes back from the spans after it.
This kernel walks each span from an adjoint of zero; entering_adjoint() puts the spans together.
"""

from _arithmetic import LOG2E, exp2_fast, sigmoid, softplus
from _recurrence import collect, exponential, later_steps, pick, publish, scale, scaled_rates, scan_backward
from _scan_operands import CHUNK, HAS_BIAS, HAS_STATE, HAS_Z, SOFTPLUS, load_steps, prefetch_steps
from _scan_packing import load_used, offsets
from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.jit
def selective_scan_adjoint_kernel(
    dout,
    delta,
    z,
    A,
    C,
    delta_bias,
    ends,
    elapsed_times,
    D,
    L,
    N,
    groups,
    padded_length,
    chunk_begin,
    chunk_end,
    spans,
    dout_batch,
    dout_channel,
    dout_time,
    delta_batch,
    delta_channel,
    delta_time,
    z_batch,
    z_channel,
    z_time,
    flags,
    LAYOUT: gl.constexpr,
    SEGMENTS: gl.constexpr,
    STEPS: gl.constexpr,
    CHANNELS: gl.constexpr,
):
    """One program a span, batch row and block of channels: `ends` [spans, batch, N, D] is the adjoint at the
    span's first step from zero behind it, `elapsed_times` [spans, batch, D] the sum of the span's steps.
    """
    X: gl.constexpr = gl.BlockedLayout(
        [1, STEPS, 1],
        [SEGMENTS, 1, 32 // SEGMENTS],
        [1, 1, gl.num_warps()],
        [1, 0, 2] if LAYOUT == "seq" else [1, 2, 0],
    )
    SEGMENT: gl.constexpr = gl.SliceLayout(1, gl.SliceLayout(2, X))
    STEP: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(2, X))
    CHANNEL: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(1, X))
    gl.static_assert(SEGMENTS * STEPS == CHUNK, "spans are of whole chunks")
    if LAYOUT == "seq":
        dout_time = 1
        delta_time = 1
        z_time = 1

    blocks_per_group = gl.cdiv(D // groups, CHANNELS)
    blocks = groups * blocks_per_group
    block = gl.program_id(0) % blocks
    row = (gl.program_id(0) // blocks).to(gl.int64)
    batches = gl.num_programs(0) // (blocks * spans)
    batch = row % batches
    group = block // blocks_per_group
    in_group = (block % blocks_per_group) * CHANNELS + gl.arange(0, CHANNELS, CHANNEL)
    channel = group * (D // groups) + in_group
    valid = in_group < D // groups
    segment = gl.arange(0, SEGMENTS, SEGMENT)
    row_segment = gl.arange(0, SEGMENTS, gl.SliceLayout(1, gl.SliceLayout(1, X)))
    step = gl.arange(0, STEPS, STEP)
    first = (step == 0)[None, :, None]
    SHARED: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    slots = gl.allocate_shared_memory(gl.float32, [2, SEGMENTS, CHANNELS], SHARED)

    begin, end = chunks_of_span((row // batches).to(gl.int32), chunk_begin, chunk_end, spans)
    input_row = (batch * groups + group) * N
    ends_at = ends + row * N * D + channel
    A_at = A + channel.to(gl.int64) * N
    bias = gl.load(delta_bias + channel, valid & ((flags & HAS_BIAS) != 0), 0.0)[None, None, :]
    whole = gl.full_like(channel, 0).to(gl.float32)
    for chunk in range(end - 1, begin - 1, -1):
        segment_start = chunk * CHUNK + segment * STEPS
        time = segment_start[:, None] + step[None, :]
        used = (time < L)[:, :, None] & valid[None, None, :]
        delta_at = delta + batch * delta_batch
        delta_at += offsets(segment_start, step, channel, delta_time, delta_channel, LAYOUT)
        dt = load_used(delta_at, used, flags) + bias
        if (flags & SOFTPLUS) != 0:
            dt = softplus(dt)
        dt = gl.where(used, dt, 0.0)
        dout_at = dout + batch * dout_batch
        dy = load_used(
            dout_at + offsets(segment_start, step, channel, dout_time, dout_channel, LAYOUT), used, flags
        )
        if (flags & HAS_Z) != 0:
            z_at = z + batch * z_batch + offsets(segment_start, step, channel, z_time, z_channel, LAYOUT)
            zv = load_used(z_at, used, flags)
            dy *= zv * sigmoid(zv)
        elapsed = gl.sum(dt, 1)
        whole += gl.sum(elapsed, 0)
        known = valid & (chunk < end - 1)
        for n in range(N):
            following = gl.minimum(n + 1, N - 1)
            prefetch_steps(C, input_row + following, segment_start, padded_length, False)
            c = load_steps(C, input_row + n, time, padded_length, N > 0, False)
            rates = scaled_rates((gl.load(A_at + n, valid, 0.0),), False)
            mu = gl.load(ends_at + n * D.to(gl.int64), known, 0.0)
            a = exponential(dt, (rates[0][None, None, :],), False)
            adjoint = scan_backward(later_steps(a, False), scale(c, dy, False), False)
            publish(
                slots,
                pick((a[0] * adjoint[0],), first, False),
                exponential(elapsed, (rates[0][None, :],), False),
                False,
            )
            _, mu = collect(slots, (mu,), row_segment, True, False)
            gl.store(ends_at + n * D.to(gl.int64), mu[0], valid)
    gl.store(elapsed_times + row * D + channel, whole, valid)


@gluon.jit
def chunks_of_span(span, chunk_begin, chunk_end, spans):
    """Which chunks of a launch are the span's: as many as the others', but for the last."""
    each = gl.cdiv(chunk_end - chunk_begin, spans)
    begin = gl.minimum(chunk_begin + span * each, chunk_end)
    return begin, gl.minimum(begin + each, chunk_end)


@gluon.jit
def entering_adjoint(
    incoming, ends, elapsed_times, rate, at, channel, known, row, batches, spans, D, N, flags
):
    """The adjoint that enters a span, for some states and channels: that which comes back to the launch
    (`incoming`, if flags say that there is one), through the spans behind. `at` is where a row [N, D] has
    them.
    """
    batch = row % batches
    span = (row // batches).to(gl.int32)
    mu = gl.load(incoming + batch * N * D + at, known & ((flags & HAS_STATE) != 0), 0.0)
    for behind in range(spans - 1, span, -1):
        other = behind * batches + batch
        elapsed = gl.load(elapsed_times + other * D + channel, known, 0.0)
        mu = exp2_fast(rate * LOG2E * elapsed) * mu + gl.load(ends + other * N * D + at, known, 0.0)
    return mu
