"""How a tile of the plain forward lies in registers where it is loaded and stored, and in shared memory.

There in pieces of 16 bytes: eight that are written or read at once never share a bank. Where that is faster,
neighbouring threads go along time, as memory does (ALONG), and runs lie a little apart; else across channels.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.constexpr_function
def bits(n):
    return n.bit_length() - 1


@gluon.constexpr_function
def shares_layout(LANES, RUN, CHANNELS, RUNS, WARPS, LAYOUT, ALONG):
    """[lanes, steps of a run, channels, runs], all lanes of an element in one thread."""
    if ALONG:
        across = 32 // RUNS
        return gl.BlockedLayout([LANES, RUN, 1, 1], [1, 1, across, RUNS], [1, 1, WARPS, 1], [1, 0, 3, 2])
    across = min(CHANNELS, 8 if LAYOUT == "seq" else 32)
    wide = min(WARPS, CHANNELS // across)
    warps = [1, 1, wide, WARPS // wide]
    return gl.BlockedLayout([LANES, RUN, 1, 1], [1, 1, across, 32 // across], warps, [1, 0, 2, 3])


@gluon.constexpr_function
def scalars_in_pieces(RUN, CHANNELS, RUNS):
    """Of tiles ALONG time, [steps of a run, channels, runs]: at once eight channels, or channels' runs."""
    bases = [[1, 0, 0], [2, 0, 0]]
    bases += [[0, 1 << b, 0] for b in range(bits(CHANNELS))]
    bases += [[1 << b, 0, 0] for b in range(2, bits(RUN))]
    bases += [[0, 0, 1 << b] for b in range(bits(RUNS))]
    return gl.PaddedSharedLayout([[RUN * CHANNELS, 32 // min(8, RUNS)]], bases, [], [RUN, CHANNELS, RUNS])


@gluon.constexpr_function
def shares_in_pieces(LANES, RUN, CHANNELS, RUNS):
    """The same, [lanes, steps of a run, channels, runs]."""
    bases = [[0, 1, 0, 0], [0, 2, 0, 0]]
    bases += [[0, 0, 1 << b, 0] for b in range(bits(CHANNELS))]
    bases += [[1 << b, 0, 0, 0] for b in range(bits(LANES))]
    bases += [[0, 1 << b, 0, 0] for b in range(2, bits(RUN))]
    bases += [[0, 0, 0, 1 << b] for b in range(bits(RUNS))]
    pads = [[LANES * RUN * CHANNELS, 32 // min(8, RUNS)]]
    return gl.PaddedSharedLayout(pads, bases, [], [LANES, RUN, CHANNELS, RUNS])
