"""Selective scan, forward, of many steps, in warps of two kinds: of sixteen-bit sequences and at most STATES
real states, without packing, gate or ZOH.

Half of a program's warps do nothing but the recurrence (_selective_scan_specialized_states.py). The others do
what is done once an element, before and after it (_selective_scan_specialized_elements.py). They meet once a
tile, at barriers in shared memory: the others arrive when its numbers are in their slots (`full`), the
recurrence's when these are free again and its shares of y are there (`done`). Of each slot there are two, by
turns, so that neither kind waits for what the other does.

A program owns CHANNELS channels of one batch entry. LANES threads share a channel, each with every LANES-th
of its states.
"""

from _overlap import wait_for_earlier_kernels
from _selective_scan_specialized_elements import make_elements
from _selective_scan_specialized_states import walk_states
from _specialized_layouts import PIECE, WARPS, scalars_layout, shares_layout
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier


@gluon.jit
def selective_scan_specialized_fwd_kernel(
    u,
    delta,
    z,
    out,
    A,
    B,
    C,
    D_skip,
    delta_bias,
    initial_state,
    last_state,
    chunk_states,
    D,
    L,
    N,
    groups,
    padded_length,
    u_batch,
    u_channel,
    u_time,
    delta_batch,
    delta_channel,
    delta_time,
    z_batch,
    z_channel,
    z_time,
    out_batch,
    out_channel,
    out_time,
    flags,
    LAYOUT: gl.constexpr,
    LANES: gl.constexpr,
    STATES: gl.constexpr,
    STEPS: gl.constexpr,
    CHANNELS: gl.constexpr,
    PAIRED: gl.constexpr,
    REGISTERS: gl.constexpr,
):
    """B and C are [batch, groups, N, padded_length]; PAIRED there is only B, bfloat16 B above C in 32 bits.

    Then the recurrence reads half as much, for two instructions more. REGISTERS are for its threads.
    """
    ALONG_TIME: gl.constexpr = LAYOUT == "seq"
    RUN: gl.constexpr = 8 if ALONG_TIME else 4
    RUNS: gl.constexpr = STEPS // RUN
    WEIGHT_PIECES: gl.constexpr = (1 if PAIRED else 2) * (STATES // LANES) * (STEPS // PIECE)
    SCALARS: gl.constexpr = scalars_layout(RUN, CHANNELS, RUNS)
    SHARES: gl.constexpr = shares_layout(LANES, RUN, CHANNELS, RUNS)
    WEIGHTS: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0, 2])
    dt_slots = gl.allocate_shared_memory(gl.float32, [2, RUN, CHANNELS, RUNS], SCALARS)
    dtx_slots = gl.allocate_shared_memory(gl.float32, [2, RUN, CHANNELS, RUNS], SCALARS)
    weight_slots = gl.allocate_shared_memory(gl.float32, [2, LANES, PIECE, WEIGHT_PIECES], WEIGHTS)
    y_slots = gl.allocate_shared_memory(gl.float32, [2, LANES, RUN, CHANNELS, RUNS], SHARES)
    full = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    done = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(2):
        mbarrier.init(full.index(stage), count=1)
        mbarrier.init(done.index(stage), count=1)

    blocks_per_group = gl.cdiv(D // groups, CHANNELS)
    block = gl.program_id(0) % (groups * blocks_per_group)
    batch = (gl.program_id(0) // (groups * blocks_per_group)).to(gl.int64)
    place = (batch, block // blocks_per_group, block % blocks_per_group * CHANNELS)
    shared = (dt_slots, dtx_slots, weight_slots, y_slots, full, done)
    sizes = (D, L, N, groups, padded_length)
    sequences = (u, delta, z, out)
    strides = (
        (u_batch, delta_batch, z_batch, out_batch),
        (u_channel, delta_channel, z_channel, out_channel),
        (u_time, delta_time, z_time, out_time),
    )
    of_elements = (B, C, D_skip, delta_bias)
    of_states = (A, initial_state, last_state, chunk_states)
    tile: gl.constexpr = (LANES, STATES, RUN, STEPS, CHANNELS, PAIRED)
    wait_for_earlier_kernels()
    gl.warp_specialize(
        [
            (make_elements, (shared, sequences, strides, of_elements, place, sizes, flags, ALONG_TIME, tile)),
            (walk_states, (shared, of_states, place, sizes, flags, tile)),
        ],
        [WARPS],
        [REGISTERS],
    )
