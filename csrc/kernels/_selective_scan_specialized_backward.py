"""Selective scan, backward, in warps of two kinds: of sixteen-bit sequences and at most 16 real states,
without packing, gate or ZOH.

Half of a program's warps go back through time and do nothing else (_selective_scan_specialized_adjoints.py).
The others do what is done once an element, before and behind them, and add up what they leave of each tile
(_selective_scan_specialized_gradients.py). They meet at barriers in shared memory: once half a chunk, when
its numbers are ready (`first_ready`, `second_ready`), and twice a tile, when its states are known (`C_full`,
until it is added up: `C_empty`) and when its adjoints are (`B_full`, `B_empty`).

Halves of chunks lie in three places: the first half of a chunk by turns in two of them, for that of the
chunk before it is made meanwhile, the second half in the third.
"""

from _overlap import wait_for_earlier_kernels
from _selective_scan_adjoint import chunks_of_span
from _selective_scan_specialized_adjoints import walk_back
from _selective_scan_specialized_gradients import make_gradients
from _specialized_backward_layouts import (
    CHANNELS,
    LANES,
    ROWS,
    STAGES,
    STEPS,
    TILES,
    scalars_slots,
    shares_slots,
    starts_slots,
    terms_slots,
    weights_slots,
)
from _specialized_layouts import WARPS
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier


@gluon.jit
def selective_scan_specialized_bwd_kernel(
    dout,
    u,
    delta,
    z,
    A,
    B,
    C,
    D_skip,
    delta_bias,
    chunk_states,
    du,
    ddelta,
    dz,
    dA,
    dB,
    dC,
    dD,
    ddelta_bias,
    carry,
    incoming,
    span_ends,
    span_times,
    D,
    L,
    N,
    groups,
    padded_length,
    chunk_begin,
    chunk_end,
    spans,
    pieces,
    partial_length,
    dout_batch,
    dout_channel,
    dout_time,
    u_batch,
    u_channel,
    u_time,
    delta_batch,
    delta_channel,
    delta_time,
    z_batch,
    z_channel,
    z_time,
    du_batch,
    du_channel,
    du_time,
    ddelta_batch,
    ddelta_channel,
    ddelta_time,
    dz_batch,
    dz_channel,
    dz_time,
    flags,
    LAYOUT: gl.constexpr,
    KEPT: gl.constexpr,
    REGISTERS: gl.constexpr,
):
    """The gradients of a launch's chunks; its buffers are those of selective_scan_plain_bwd_kernel.

    REGISTERS are for threads that go back. With KEPT they hold what the last piece of a tile takes until they
    come back to it, and do not read it again.
    """
    ALONG_TIME: gl.constexpr = LAYOUT == "seq"
    SLOTS: gl.constexpr = STAGES * TILES
    OF_TILE: gl.constexpr = [SLOTS, STEPS, CHANNELS, 1]
    dt_slots = gl.allocate_shared_memory(gl.float32, OF_TILE, scalars_slots(ALONG_TIME))
    dtx_slots = gl.allocate_shared_memory(gl.float32, OF_TILE, scalars_slots(ALONG_TIME))
    dy_slots = gl.allocate_shared_memory(gl.float32, OF_TILE, scalars_slots(ALONG_TIME))
    B_slots = gl.allocate_shared_memory(gl.float32, [SLOTS, LANES, STEPS, ROWS], weights_slots())
    C_slots = gl.allocate_shared_memory(gl.float32, [SLOTS, LANES, STEPS, ROWS], weights_slots())
    # Those that two chunks begin with, by turns, and those of the second to the last tile.
    starts = gl.allocate_shared_memory(gl.float32, [2 * TILES + 1, LANES, CHANNELS, ROWS], starts_slots())
    B_terms = gl.allocate_shared_memory(gl.float32, [LANES, STEPS, CHANNELS // 2, ROWS], terms_slots())
    C_terms = gl.allocate_shared_memory(gl.float32, [LANES, STEPS, CHANNELS // 2, ROWS], terms_slots())
    y_shares = gl.allocate_shared_memory(gl.float32, [LANES, STEPS, CHANNELS], shares_slots())
    ddt_shares = gl.allocate_shared_memory(gl.float32, [LANES, STEPS, CHANNELS], shares_slots())
    dkick_shares = gl.allocate_shared_memory(gl.float32, [LANES, STEPS, CHANNELS], shares_slots())
    # D and the bias.
    FLAT: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    channel_slots = gl.allocate_shared_memory(gl.float32, [2, CHANNELS], FLAT)
    barriers = ()
    for _ in gl.static_range(6):
        barrier = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
        mbarrier.init(barrier, count=1)
        barriers += (barrier,)

    blocks_per_group = gl.cdiv(D // groups, CHANNELS)
    block = gl.program_id(0) % (groups * blocks_per_group)
    sums_row = (gl.program_id(0) // (groups * blocks_per_group)).to(gl.int64)
    batches = gl.num_programs(0) // (groups * blocks_per_group * spans)
    own_begin, own_end = chunks_of_span((sums_row // batches).to(gl.int32), chunk_begin, chunk_end, spans)
    group = block // blocks_per_group
    block_in_group = block % blocks_per_group
    partial_row = ((block_in_group * 2 * batches + sums_row % batches) * groups + group) * N
    shared = (
        (dt_slots, dtx_slots, dy_slots),
        (B_slots, C_slots),
        starts,
        (B_terms, C_terms),
        (y_shares, ddt_shares, dkick_shares),
        barriers,
    )
    place = (sums_row, batches, group, block_in_group * CHANNELS)
    sizes = (D, L, N, groups, padded_length)
    sequences = (dout, u, delta, z, du, ddelta, dz)
    strides = (
        (dout_batch, u_batch, delta_batch, z_batch, du_batch, ddelta_batch, dz_batch),
        (dout_channel, u_channel, delta_channel, z_channel, du_channel, ddelta_channel, dz_channel),
        (dout_time, u_time, delta_time, z_time, du_time, ddelta_time, dz_time),
    )
    of_gradients = (B, C, D_skip, delta_bias, chunk_states, dB, dC, dD, ddelta_bias)
    of_adjoints = (A, dA, carry, incoming, span_ends, span_times)
    span = (own_begin, own_end, chunk_begin, partial_row, partial_length)
    wait_for_earlier_kernels()
    gl.warp_specialize(
        [
            (
                make_gradients,
                (
                    shared,
                    channel_slots,
                    sequences,
                    strides,
                    of_gradients,
                    place,
                    sizes,
                    span,
                    flags,
                    ALONG_TIME,
                ),
            ),
            (
                walk_back,
                (shared, of_adjoints, place, sizes, (own_begin, own_end, spans, pieces), flags, KEPT),
            ),
        ],
        [WARPS],
        [REGISTERS],
    )
