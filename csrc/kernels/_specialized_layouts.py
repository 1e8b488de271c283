"""How the warps of the specialised scan divide a tile between them, and how it lies in shared memory.

A tile is an array [lanes, steps of a run, channels, runs]: the lanes of a channel have its states, a run is
what a thread has of a channel outside of the recurrence. The recurrence takes a run in pieces of four steps,
16 bytes, and shared memory is laid out by these: eight that are written or read at once never share a bank.
"""

from _selective_scan_plain_layouts import bits
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

# Steps that a thread of the recurrence takes at a time.
PIECE = gl.constexpr(4)
# Warps of each of the two kinds.
WARPS = gl.constexpr(4)


@gluon.constexpr_function
def elements_layout(LANES, RUN, CHANNELS, RUNS, ALONG_TIME):
    """Of a tile outside of the recurrence: each element once, all of its lanes in one thread. In memory
    neighbours lie ALONG_TIME, or else across channels.
    """
    if ALONG_TIME:
        across = 32 // RUNS
        warps = [1, 1, CHANNELS // across, 1]
        return gl.BlockedLayout([LANES, RUN, 1, 1], [1, 1, across, RUNS], warps, [1, 0, 3, 2])
    across = CHANNELS // 2
    return gl.BlockedLayout([LANES, RUN, 2, 1], [1, 1, across, 32 // across], [1, 1, 1, 4], [1, 2, 0, 3])


@gluon.constexpr_function
def words_layout(RUN, CHANNELS, RUNS, ALONG_TIME):
    """The same of words of two elements, [steps of a run, channels, runs]: two steps of a channel, or two
    channels at a step.
    """
    if ALONG_TIME:
        across = 32 // RUNS
        return gl.BlockedLayout([RUN // 2, 1, 1], [1, across, RUNS], [1, CHANNELS // across, 1], [0, 2, 1])
    across = CHANNELS // 2
    return gl.BlockedLayout([RUN, 1, 1], [1, across, 32 // across], [1, 1, 4], [1, 0, 2])


@gluon.constexpr_function
def states_layout(LANES, CHANNELS):
    """Of a piece [lanes, steps, channels, 1] in the recurrence. Of neighbouring threads two share a lane, and
    two such pairs a channel: what both read of shared memory is read once.
    """
    lane = [[1 << b, 0, 0, 0] for b in range(bits(LANES))]
    channel = [[0, 0, 1 << b, 0] for b in range(bits(CHANNELS))]
    threads = [channel[0], *lane, *channel[1:]]
    steps = [[0, 1, 0, 0], [0, 2, 0, 0]]
    return gl.DistributedLinearLayout(steps, threads[:5], threads[5:], [], [LANES, 4, CHANNELS, 1])


@gluon.constexpr_function
def shares_layout(LANES, RUN, CHANNELS, RUNS):
    """Of a tile in shared memory. Read or written at once: pieces of four lanes and two channels, of every
    second of 16 channels, of a channel's runs or those of two.
    """
    lanes = [[1 << b, 0, 0, 0] for b in range(bits(LANES))]
    channels = [[0, 0, 1 << b, 0] for b in range(bits(CHANNELS))]
    bases = [[0, 1, 0, 0], [0, 2, 0, 0], *lanes[:2], *channels[:4], *lanes[2:], *channels[4:]]
    bases += [[0, 1 << b, 0, 0] for b in range(2, bits(RUN))]
    bases += [[0, 0, 0, 1 << b] for b in range(bits(RUNS))]
    pads = [[32, 4], [LANES * RUN * CHANNELS, 4]]
    return gl.PaddedSharedLayout(pads, bases, [], [LANES, RUN, CHANNELS, RUNS])


@gluon.constexpr_function
def scalars_layout(RUN, CHANNELS, RUNS):
    """The same without lanes, [steps of a run, channels, runs]: of four channels, and the others above."""
    channels = [[0, 1 << b, 0] for b in range(bits(CHANNELS))]
    bases = [[1, 0, 0], [2, 0, 0], *channels[1:4], channels[0], *channels[4:]]
    bases += [[1 << b, 0, 0] for b in range(2, bits(RUN))]
    bases += [[0, 0, 1 << b] for b in range(bits(RUNS))]
    return gl.PaddedSharedLayout([[32, 16], [RUN * CHANNELS, 4]], bases, [], [RUN, CHANNELS, RUNS])
