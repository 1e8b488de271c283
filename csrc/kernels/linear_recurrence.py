"""Linear recurrence h_t = a_t h_{t-1} + b_t along time, forward and backward, real and complex.

One program owns a block of rows and walks over time in tiles [SEGMENTS, STEPS, ROWS]; what crosses tiles
stays in registers. A reversed recurrence is the same one over places counted from the other end.
"""

from _recurrence import (
    add,
    collect,
    conjugate,
    earlier_steps,
    expand,
    later_steps,
    multiply,
    multiply_conjugate,
    pick,
    publish,
    scan_backward,
    scan_from,
    where,
)
from _recurrence_tiles import (
    CHUNK,
    HAS_STATE,
    REVERSE,
    SAVE_CHUNKS,
    load_numbers,
    load_tile,
    places,
    prefetch_tile,
    start_of_rows,
    store_numbers,
    store_tile,
    whole_segments,
)
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from tools.aot.spec import Config, Kernel


@gluon.jit
def linear_recurrence_fwd_kernel(
    a,
    b,
    h,
    initial_state,
    last_state,
    chunk_states,
    rows,
    L,
    Q,
    R,
    a_p,
    a_q,
    a_r,
    a_time,
    b_p,
    b_q,
    b_r,
    b_time,
    h_p,
    h_q,
    h_r,
    h_time,
    state_p,
    state_q,
    state_r,
    flags,
    COMPLEX: gl.constexpr,
    LAYOUT: gl.constexpr,
    SEGMENTS: gl.constexpr,
    STEPS: gl.constexpr,
    ROWS: gl.constexpr,
):
    X: gl.constexpr = gl.BlockedLayout(
        [1, STEPS, 1],
        [SEGMENTS // gl.num_warps(), 1, ROWS],
        [gl.num_warps(), 1, 1],
        [1, 2, 0] if LAYOUT == "strided" else [1, 0, 2],
    )
    SEGMENT: gl.constexpr = gl.SliceLayout(1, gl.SliceLayout(2, X))
    STEP: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(2, X))
    ROW: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(1, X))
    TILE: gl.constexpr = SEGMENTS * STEPS
    PARTS: gl.constexpr = 2 if COMPLEX else 1
    if LAYOUT == "seq":
        a_time = 1
        b_time = 1
        h_time = 1

    row = gl.program_id(0) * ROWS + gl.arange(0, ROWS, ROW)
    valid = row < rows
    row = gl.minimum(row, rows - 1)
    segment = gl.arange(0, SEGMENTS, SEGMENT)
    row_segment = gl.arange(0, SEGMENTS, gl.SliceLayout(1, gl.SliceLayout(1, X)))
    step = gl.arange(0, STEPS, STEP)
    first = (step == 0)[None, :, None]
    last = (step == STEPS - 1)[None, :, None]
    a_rows = a + start_of_rows(row, Q, R, a_p, a_q, a_r)
    b_rows = b + start_of_rows(row, Q, R, b_p, b_q, b_r)
    h_rows = h + start_of_rows(row, Q, R, h_p, h_q, h_r)
    state_row = start_of_rows(row, Q, R, state_p, state_q, state_r)
    SHARED: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    slots = gl.allocate_shared_memory(gl.float32, [2 * PARTS, SEGMENTS, ROWS], SHARED)
    carry = load_numbers(initial_state + state_row, valid & ((flags & HAS_STATE) != 0), flags, COMPLEX)

    for start in range(0, L, TILE):
        place = places(start + segment * STEPS, step, L, flags, STEPS, LAYOUT)
        inside = ((place >= 0) & (place < L))[:, :, None] & valid[None, None, :]
        # Steps past the end leave the state alone: a = 1, b = 0.
        decay = load_tile(a_rows, place, a_time, inside, 1.0, flags, LAYOUT, COMPLEX)
        kick = load_tile(b_rows, place, b_time, inside, 0.0, flags, LAYOUT, COMPLEX)
        if LAYOUT == "seq":
            upcoming = (start + TILE + row_segment * STEPS)[:, None]
            prefetch_tile(a_rows, upcoming, L, flags, STEPS)
            prefetch_tile(b_rows, upcoming, L, flags, STEPS)
        whole, end = whole_segments(decay, kick, last, COMPLEX)
        publish(slots, end, whole, COMPLEX)
        entering, carry = collect(slots, carry, row_segment, False, COMPLEX)
        if (flags & SAVE_CHUNKS) != 0:
            # Chunks start at segments: what enters such a segment is the state to save.
            segment_at = start + row_segment * STEPS
            saved = (segment_at // CHUNK).to(gl.int64)[:, None] * rows + state_row[None, :]
            saving = ((segment_at < L) & (segment_at % CHUNK == 0))[:, None] & valid[None, :]
            store_numbers(chunk_states + saved, entering, saving, COMPLEX)
        states = scan_from(entering, decay, kick, first, COMPLEX)
        store_tile(h_rows, place, h_time, inside, states, flags, LAYOUT, COMPLEX)

    store_numbers(last_state + state_row, carry, valid, COMPLEX)


@gluon.jit
def linear_recurrence_bwd_kernel(
    dh,
    a,
    values,
    initial_state,
    chunk_states,
    dlast_state,
    da,
    db,
    dinitial_state,
    rows,
    L,
    Q,
    R,
    dh_p,
    dh_q,
    dh_r,
    dh_time,
    a_p,
    a_q,
    a_r,
    a_time,
    values_p,
    values_q,
    values_r,
    values_time,
    da_p,
    da_q,
    da_r,
    da_time,
    db_p,
    db_q,
    db_r,
    db_time,
    state_p,
    state_q,
    state_r,
    has_last_state,
    flags,
    COMPLEX: gl.constexpr,
    LAYOUT: gl.constexpr,
    SEGMENTS: gl.constexpr,
    STEPS: gl.constexpr,
    ROWS: gl.constexpr,
):
    """Adjoints g_t = dh_t + conj(a_{t+1}) g_{t+1} run against time; db = g, da_t = g_t conj(h_{t-1}).

    `values` is h where that is fp32; else it is b, and states are computed again from the saved ones.
    """
    X: gl.constexpr = gl.BlockedLayout(
        [1, STEPS, 1],
        [SEGMENTS // gl.num_warps(), 1, ROWS],
        [gl.num_warps(), 1, 1],
        [1, 2, 0] if LAYOUT == "strided" else [1, 0, 2],
    )
    SEGMENT: gl.constexpr = gl.SliceLayout(1, gl.SliceLayout(2, X))
    STEP: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(2, X))
    ROW: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(1, X))
    TILE: gl.constexpr = SEGMENTS * STEPS
    PARTS: gl.constexpr = 2 if COMPLEX else 1
    RECOMPUTE: gl.constexpr = values.dtype.element_ty != gl.float32
    gl.static_assert(TILE % CHUNK == 0, "a tile starts where a state was saved")
    if LAYOUT == "seq":
        dh_time = 1
        a_time = 1
        values_time = 1
        da_time = 1
        db_time = 1

    row = gl.program_id(0) * ROWS + gl.arange(0, ROWS, ROW)
    valid = row < rows
    row = gl.minimum(row, rows - 1)
    segment = gl.arange(0, SEGMENTS, SEGMENT)
    row_segment = gl.arange(0, SEGMENTS, gl.SliceLayout(1, gl.SliceLayout(1, X)))
    step = gl.arange(0, STEPS, STEP)
    first = (step == 0)[None, :, None]
    last = (step == STEPS - 1)[None, :, None]
    dh_rows = dh + start_of_rows(row, Q, R, dh_p, dh_q, dh_r)
    a_rows = a + start_of_rows(row, Q, R, a_p, a_q, a_r)
    values_rows = values + start_of_rows(row, Q, R, values_p, values_q, values_r)
    da_rows = da + start_of_rows(row, Q, R, da_p, da_q, da_r)
    db_rows = db + start_of_rows(row, Q, R, db_p, db_q, db_r)
    state_row = start_of_rows(row, Q, R, state_p, state_q, state_r)
    SHARED: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    adjoint_slots = gl.allocate_shared_memory(gl.float32, [2 * PARTS, SEGMENTS, ROWS], SHARED)
    if RECOMPUTE:
        state_slots = gl.allocate_shared_memory(gl.float32, [2 * PARTS, SEGMENTS, ROWS], SHARED)
    # What a step passes to the one before it: conj(a) times its adjoint.
    carry = load_numbers(dlast_state + state_row, valid & (has_last_state != 0), flags, COMPLEX)

    tiles = gl.cdiv(L, TILE)
    for back in range(0, tiles):
        start = (tiles - 1 - back) * TILE
        place = places(start + segment * STEPS, step, L, flags, STEPS, LAYOUT)
        inside = ((place >= 0) & (place < L))[:, :, None] & valid[None, None, :]
        decay = load_tile(a_rows, place, a_time, inside, 1.0, flags, LAYOUT, COMPLEX)
        grad = load_tile(dh_rows, place, dh_time, inside, 0.0, flags, LAYOUT, COMPLEX)
        value = load_tile(values_rows, place, values_time, inside, 0.0, flags, LAYOUT, COMPLEX)
        if LAYOUT == "seq":
            upcoming = (start - TILE + row_segment * STEPS)[:, None]
            prefetch_tile(a_rows, upcoming, L, flags, STEPS)
            prefetch_tile(dh_rows, upcoming, L, flags, STEPS)
            prefetch_tile(values_rows, upcoming, L, flags, STEPS)
        decay_conj = conjugate(decay, COMPLEX)
        decay_next = later_steps(decay_conj, COMPLEX)

        whole, end = whole_segments(decay, value, last, COMPLEX)
        if RECOMPUTE:
            saved = (start // CHUNK).to(gl.int64) * rows + state_row
            publish(state_slots, end, whole, COMPLEX)
            state = load_numbers(chunk_states + saved, valid, flags, COMPLEX)
        adjoint = scan_backward(decay_next, grad, COMPLEX)
        end = pick(multiply(decay_conj, adjoint, COMPLEX), first, COMPLEX)
        publish(adjoint_slots, end, conjugate(whole, COMPLEX), COMPLEX)
        if RECOMPUTE:
            entering, state = collect(state_slots, state, row_segment, False, COMPLEX)
            states = scan_from(entering, decay, value, first, COMPLEX)
        else:
            # The state before a segment is the last one of the segment before it.
            states = value
            at = start + row_segment * STEPS - 1
            at_place = gl.where((flags & REVERSE) != 0, L - 1 - at, at).to(gl.int64)[:, None] * values_time
            within = ((at >= 0) & (at < L))[:, None] & valid[None, :]
            entering = load_numbers(values_rows[None, :] + at_place, within, flags, COMPLEX)
            opening = (at < 0)[:, None] & valid[None, :] & ((flags & HAS_STATE) != 0)
            entering = add(
                entering, load_numbers((initial_state + state_row)[None, :], opening, flags, COMPLEX), COMPLEX
            )
        returning, carry = collect(adjoint_slots, carry, row_segment, True, COMPLEX)

        closed = add(grad, expand(returning, 1, COMPLEX), COMPLEX)
        adjoint = scan_backward(decay_next, where(last, closed, grad, COMPLEX), COMPLEX)
        before = where(first, expand(entering, 1, COMPLEX), earlier_steps(states, COMPLEX), COMPLEX)
        da_tile = multiply_conjugate(adjoint, before, COMPLEX)
        store_tile(da_rows, place, da_time, inside, da_tile, flags, LAYOUT, COMPLEX)
        store_tile(db_rows, place, db_time, inside, adjoint, flags, LAYOUT, COMPLEX)

    store_numbers(dinitial_state + state_row, carry, valid, COMPLEX)


_AXES = dict(T=["f32", "half"], COMPLEX=[False, True], LAYOUT=["seq", "strided"])
_SIZES = dict(rows="i32", L="i32", Q="i32", R="i32", flags="i32")
_STATE_STRIDES = dict.fromkeys(("state_p", "state_q", "state_r"), "i64")


def _no_need(values: dict) -> bool:
    """Complex numbers are pairs of fp32, which never lie one step apart."""
    return values["COMPLEX"] and (values["T"] != "f32" or values["LAYOUT"] != "strided")


def _tensors(*names: str) -> dict[str, str]:
    strides = {f"{t}_{axis}": "i64" for t in names for axis in ("p", "q", "r", "time")}
    return {**dict.fromkeys(names, "*T"), **strides}


def _buffers(*names: str) -> dict[str, str]:
    return dict.fromkeys(names, "*f32")


def _aligned(*names: str):
    """What is a multiple of 16 where steps are neighbours in memory: 16-byte loads follow from it."""

    def aligned(values: dict) -> list[str]:
        if values["LAYOUT"] == "strided":
            return []
        return [*names, "L", *(f"{t}_{axis}" for t in names for axis in ("p", "q", "r"))]

    return aligned


# ROWS is the number of lanes that SEGMENTS leave: where rows are few, several warps share a tile's segments.
_CONFIGS = [
    Config("complex_few", when="COMPLEX and rows < FEW", SEGMENTS=16, STEPS=8, ROWS=8, num_warps=4),
    Config("complex", when="COMPLEX", SEGMENTS=8, STEPS=8, ROWS=4, num_warps=1),
    Config(
        "columns_few",
        when="LAYOUT == 'strided' and rows < FEW",
        SEGMENTS=16,
        STEPS=16,
        ROWS=8,
        num_warps=4,
    ),
    Config("columns", when="LAYOUT == 'strided'", SEGMENTS=4, STEPS=16, ROWS=8, num_warps=1),
    Config("few", when="rows < FEW", SEGMENTS=16, STEPS=16, ROWS=2, num_warps=1),
    Config("many", SEGMENTS=8, STEPS=16, ROWS=4, num_warps=1),
]

KERNELS = [
    Kernel(
        linear_recurrence_fwd_kernel,
        args={
            **_tensors("a", "b", "h"),
            **_buffers("initial_state", "last_state", "chunk_states"),
            **_SIZES,
            **_STATE_STRIDES,
        },
        axes=_AXES,
        skip=_no_need,
        aligned=_aligned("a", "b", "h"),
        shape=["rows"],
        tuned=["FEW"],
        configs=_CONFIGS,
    ),
    Kernel(
        linear_recurrence_bwd_kernel,
        args={
            **_tensors("dh", "a", "values", "da", "db"),
            **_buffers("initial_state", "chunk_states", "dlast_state", "dinitial_state"),
            **_SIZES,
            **_STATE_STRIDES,
            "has_last_state": "i32",
        },
        axes=_AXES,
        skip=_no_need,
        aligned=_aligned("dh", "a", "values", "da", "db"),
        shape=["rows"],
        tuned=["FEW"],
        configs=_CONFIGS,
    ),
]
