"""Shared memory of the backward of plain scans: as one array, by runs, and by parts of complex numbers, which
lie one behind the other.
"""

from _recurrence import expand
from _selective_scan_runs import RUN
from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.jit
def load_parts(slots, LAYOUT: gl.constexpr, COMPLEX: gl.constexpr):
    """A number each row: the parts lie one behind the other along the first axis."""
    if COMPLEX:
        ROWS: gl.constexpr = slots.shape[0] // 2
        return (slots.slice(0, ROWS, 0).load(LAYOUT), slots.slice(ROWS, ROWS, 0).load(LAYOUT))
    else:
        return (slots.load(LAYOUT),)


@gluon.jit
def store_parts(slots, value, COMPLEX: gl.constexpr):
    if COMPLEX:
        ROWS: gl.constexpr = slots.shape[0] // 2
        slots.slice(0, ROWS, 0).store(value[0])
        slots.slice(ROWS, ROWS, 0).store(value[1])
    else:
        slots.store(value[0])


@gluon.jit
def load_run(slots, run, X: gl.constexpr):
    """A run of all channels, as the recurrences take it."""
    of_run = slots.index(run).load(gl.SliceLayout(0, gl.SliceLayout(0, X)))
    return gl.expand_dims(gl.expand_dims(of_run, 0), 0)


@gluon.jit
def load_weights(slots, run, X: gl.constexpr, COMPLEX: gl.constexpr):
    """B or C of a run."""
    return expand(load_parts(slots.index(run), gl.SliceLayout(2, X), COMPLEX), 2, COMPLEX)


@gluon.jit
def load_inputs(dt_slots, dtx_slots, B_slots, run, X: gl.constexpr, COMPLEX: gl.constexpr):
    """What states are made of in a run: delta, delta u, and B."""
    b = load_weights(B_slots, run, X, COMPLEX)
    return load_run(dt_slots, run, X), load_run(dtx_slots, run, X), b


@gluon.jit
def whole(slots):
    """Slots as one array, not as one to index."""
    ORDER: gl.constexpr = [2, 1, 0] if len(slots.shape) == 3 else [3, 2, 1, 0]
    return slots._reinterpret(slots.dtype, slots.shape, gl.SwizzledSharedLayout(1, 1, 1, ORDER))


@gluon.jit
def stacked(runs):
    """One or two arrays as one, along a new first axis."""
    if len(runs) == 1:
        return gl.expand_dims(runs[0], 0)
    else:
        both = gl.join(runs[0], runs[1])
        if len(both.shape) == 3:
            return gl.permute(both, [2, 0, 1])
        else:
            return gl.permute(both, [3, 0, 1, 2])


@gluon.jit
def in_runs(x):
    """[runs, channels, steps], cut into runs of RUN steps."""
    JOINED: gl.constexpr = x.shape[2] // RUN
    if JOINED == 1:
        return x
    else:
        cut = gl.permute(gl.reshape(x, [x.shape[0], x.shape[1], JOINED, RUN]), [0, 2, 1, 3])
        return gl.reshape(cut, [x.shape[0] * JOINED, x.shape[1], RUN])


@gluon.jit
def joined(x, TILE: gl.constexpr):
    """The other way."""
    JOINED: gl.constexpr = TILE.size_per_thread[2] // RUN
    if JOINED == 1:
        return x
    else:
        cut = gl.permute(gl.reshape(x, [x.shape[0] // JOINED, JOINED, x.shape[1], RUN]), [0, 2, 1, 3])
        whole_run = gl.reshape(cut, [x.shape[0] // JOINED, x.shape[1], JOINED * RUN])
        return gl.convert_layout(whole_run, TILE, assert_trivial=True)


@gluon.jit
def load_tiles(slots, LAYOUTS: gl.constexpr):
    """What tiles left there, as one chunk: LAYOUTS are chunk_layouts()."""
    IN_RUNS: gl.constexpr = LAYOUTS[1]
    IN_TILES: gl.constexpr = LAYOUTS[2]
    tiles = whole(slots).load(IN_TILES)
    runs: gl.constexpr = tiles.shape[0] * tiles.shape[1]
    return gl.convert_layout(
        gl.reshape(tiles, [runs, tiles.shape[2], tiles.shape[3]]), IN_RUNS, assert_trivial=True
    )


@gluon.jit
def over_channels(terms, SUM: gl.constexpr):
    """Sums of terms [rows, channels and steps of a run]: [rows, steps of a run]."""
    rows: gl.constexpr = terms.shape[0]
    channels: gl.constexpr = terms.shape[1] // RUN
    return gl.convert_layout(gl.sum(gl.reshape(terms, [rows, channels, RUN]), 1), SUM)
