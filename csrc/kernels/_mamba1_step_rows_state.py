"""The last but one kernel of a token of many rows: dt_proj, softplus, state update, gate."""

from _arithmetic import LOG2E, exp2_fast, sigmoid_fast, softplus
from _half import narrowed_pairs, widened, widened_pairs, widened_singly
from _matrix_rows import WIDE, first_rows, multiply_rows, result_places, results
from _overlap import let_next_kernel_begin, wait_for_earlier_kernels
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy


@gluon.jit
def mamba1_step_rows_state_kernel(
    low,
    dt_proj,
    dt_bias,
    A,
    D_skip,
    x,
    z,
    state,
    out,
    z_row,
    batch,
    inner,
    rank,
    flags,
    N: gl.constexpr,
    STAGES: gl.constexpr,
):
    """low = dt_proj's input, B, C in one row; rows of z lie `z_row` apart; 16 states.

    16 channels and 8 N vectors a program, of which eight at a time, their states through a ring of STAGES
    buffers. States are fp32, or of the sixteen-bit format of all else.
    """
    WARPS: gl.constexpr = gl.num_warps()
    TYPE: gl.constexpr = state.dtype.element_ty
    # A lane has 16 bytes of a channel's states, so that a warp's states lie side by side.
    OWN: gl.constexpr = 128 // TYPE.primitive_bitwidth
    X: gl.constexpr = gl.BlockedLayout([1, 1, OWN], [1, 2 * OWN, 16 // OWN], [WARPS, 1, 1], [2, 1, 0])
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
    vector, channel, n = state_places(first, X)
    at_state = ((first_vector + vector) * inner + channel) * 16 + n
    ring = gl.allocate_shared_memory(TYPE, [STAGES, 8, 16, 16], gl.SwizzledSharedLayout(1, 1, 1, [2, 1, 0]))
    for stage in gl.static_range(STAGES - 1):
        inside = vector < batch - first_vector - 8 * stage
        places = state + (at_state + inner * (128 * stage))
        async_copy.async_copy_global_to_shared(ring.index(stage), places, inside)
        async_copy.commit_group()
    rates = gl.load(A + (channel * 16 + n)) * LOG2E
    own = first + gl.arange(0, 16, gl.SliceLayout(0, OF_CHANNEL))[None, :]
    skip = gl.load(D_skip + own)
    row, _ = result_places(first, 0, 1, N)
    stored_bias = gl.load(dt_bias + row)
    ahead = first_rows(dt_proj, first, inner, 0, end, half, 1, N, WARPS, 1)
    wait_for_earlier_kernels()
    tiles = fetch_inputs(low, x, z, z_row, first_vector, first, batch, inner, rank, 8 * N)
    shares = multiply_rows(
        ahead,
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
    delta = softplus(results(shares, 1, N, WARPS) + widened(stored_bias, flags), FAST=True)
    IN_ORDER: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    deltas = gl.allocate_shared_memory(gl.float32, [8 * N, 16], IN_ORDER, delta)
    deltas = deltas._reinterpret(gl.float32, [N, 8, 16], IN_ORDER)
    for eight in range(0, gl.minimum(N, gl.cdiv(batch - first_vector, 8))):
        now = first_vector + eight * 8
        async_copy.wait_group(STAGES - 2)
        h = widened_pairs(ring.index(eight % STAGES).load(X), flags)
        inside = vector < batch - now - 8 * (STAGES - 1)
        places = state + (at_state + inner * (128 * (STAGES - 1)))
        async_copy.async_copy_global_to_shared(ring.index((eight + (STAGES - 1)) % STAGES), places, inside)
        async_copy.commit_group()
        u = widened_singly(tiles[0].index(eight).load(OF_CHANNEL), flags)
        gate = widened_singly(tiles[1].index(eight).load(OF_CHANNEL), flags)
        B = widened_pairs(tiles[2].index(eight).load(OF_STATE), flags)
        C = widened_pairs(tiles[3].index(eight).load(OF_STATE), flags)
        step = deltas.index(eight).load(OF_CHANNEL)
        h = gl.fma(exp2_fast(step[:, :, None] * rates), h, (step * u)[:, :, None] * B[:, None, :])
        # Read again after all other layers' states, so there is no use in keeping it in the cache.
        gl.store(state + at_state, narrowed_pairs(h, TYPE, flags), vector < batch - now, cache_modifier=".cs")
        y = (gl.sum(h * C[:, None, :], 2) + skip * u) * gate * sigmoid_fast(gate)
        vectors = now + gl.arange(0, 8, gl.SliceLayout(1, OF_CHANNEL))[:, None]
        gl.store(
            out + (vectors * inner + own), narrowed_pairs(y, out.dtype.element_ty, flags), vectors < batch
        )
        at_state += inner * 128
    async_copy.wait_group(0)


@gluon.jit
def fetch_inputs(low, x, z, z_row, first_vector, first, batch, inner, rank, COUNT: gl.constexpr):
    """Asks for x and z of 16 channels, B and C, each [COUNT / 8, 8, 16], of COUNT vectors."""
    at_low = low + rank
    return (
        fetch_tile(x + first, inner, first_vector, batch, COUNT),
        fetch_tile(z + first, z_row, first_vector, batch, COUNT),
        fetch_tile(at_low, rank + 32, first_vector, batch, COUNT),
        fetch_tile(at_low + 16, rank + 32, first_vector, batch, COUNT),
    )


@gluon.jit
def fetch_tile(begin, row_stride, first_row, rows, COUNT: gl.constexpr):
    LAYOUT: gl.constexpr = gl.BlockedLayout([1, 8], [16, 2], [gl.num_warps(), 1], [1, 0])
    IN_ORDER: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    row = first_row + gl.arange(0, COUNT, gl.SliceLayout(1, LAYOUT))[:, None]
    column = gl.arange(0, 16, gl.SliceLayout(0, LAYOUT))[None, :]
    tile = gl.allocate_shared_memory(gl.int16, [COUNT, 16], IN_ORDER)
    async_copy.async_copy_global_to_shared(tile, begin + (row * row_stride + column), row < rows)
    async_copy.commit_group()
    return tile._reinterpret(gl.int16, [COUNT // 8, 8, 16], IN_ORDER)


@gluon.jit
def state_places(first, LAYOUT: gl.constexpr):
    """[8, 16, 16] along each axis: vectors from 0, channels from `first` and states."""
    vector = gl.arange(0, 8, gl.SliceLayout(1, gl.SliceLayout(2, LAYOUT)))[:, None, None]
    channel = gl.arange(0, 16, gl.SliceLayout(0, gl.SliceLayout(2, LAYOUT)))[None, :, None]
    n = gl.arange(0, 16, gl.SliceLayout(0, gl.SliceLayout(1, LAYOUT)))[None, None, :]
    return vector, first + channel, n
