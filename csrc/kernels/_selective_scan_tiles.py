"""Parts of the backward kernel of plain scans: the recurrences over a run of steps, places of a chunk in
memory, and shared memory as one array or as one to index.
"""

from _arithmetic import anew
from _half import narrowed_pairs
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

# Steps that a thread takes at a time: 16 bytes of shared memory.
RUN = gl.constexpr(4)


@gluon.jit
def run_forward(a0, a1, a2, a3, k0, k1, k2, k3, h, _h1, _h2, _h3):
    """Of h_i = d_i + k_i, d_i = a_i h_{i-1}: all d, then all h."""
    d0 = a0 * h
    h0 = d0 + k0
    d1 = a1 * h0
    h1 = d1 + k1
    d2 = a2 * h1
    h2 = d2 + k2
    d3 = a3 * h2
    return d0, d1, d2, d3, h0, h1, h2, d3 + k3


@gluon.jit
def run_backward(a0, a1, a2, a3, c0, c1, c2, c3, m, _m1, _m2, _m3):
    """g_i = c_i + a_{i+1} g_{i+1}, where m comes from behind; then what goes on to the step before."""
    g3 = c3 + m
    g2 = c2 + a3 * g3
    g1 = c1 + a2 * g2
    g0 = c0 + a1 * g1
    m = a0 * g0
    return g0, g1, g2, g3, m, m, m, m


@gluon.jit
def first_of(x, y):
    return x


@gluon.jit
def last_of(x, y):
    return y


@gluon.jit
def places(begin, run, channel, step, time_stride, channel_stride, LAYOUT: gl.constexpr):
    """Offsets of a chunk [runs, channels, steps of a run], made where they are used."""
    start = (begin + anew(run) * RUN).to(gl.int64) * time_stride
    row = anew(channel).to(gl.int64) * channel_stride
    along = step.to(gl.int64) if LAYOUT == "seq" else anew(step).to(gl.int64) * time_stride
    return start[:, None, None] + row[None, :, None] + along[None, None, :]


@gluon.jit
def write(at, value, used, flags):
    gl.store(at, narrowed_pairs(value, at.dtype.element_ty, flags), used)


@gluon.jit
def load_run(slots, run, X: gl.constexpr):
    """A run of all channels, as the recurrences take it."""
    of_run = slots.index(run).load(gl.SliceLayout(0, gl.SliceLayout(0, X)))
    return gl.expand_dims(gl.expand_dims(of_run, 0), 0)


@gluon.jit
def whole(slots):
    """Slots as one array, not as one to index."""
    ORDER: gl.constexpr = [2, 1, 0] if len(slots.shape) == 3 else [3, 2, 1, 0]
    return slots._reinterpret(slots.dtype, slots.shape, gl.SwizzledSharedLayout(1, 1, 1, ORDER))


@gluon.jit
def load_tiles(slots, TILED: gl.constexpr, TILE: gl.constexpr):
    tiles = whole(slots).load(TILED)
    runs: gl.constexpr = tiles.shape[0] * tiles.shape[1]
    return gl.convert_layout(gl.reshape(tiles, [runs, tiles.shape[2], tiles.shape[3]]), TILE)


@gluon.jit
def over_channels(terms, SUMS: gl.constexpr, SUM: gl.constexpr):
    rows: gl.constexpr = terms.shape[0]
    channels: gl.constexpr = terms.shape[1] // RUN
    return gl.convert_layout(gl.sum(gl.reshape(terms.load(SUMS), [rows, channels, RUN]), 1), SUM)
