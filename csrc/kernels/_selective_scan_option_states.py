"""A tile of the plain forward, of complex states with a gate or under zero-order hold: gates and states."""

from _arithmetic import anew
from _recurrence import expand, product, reversed_steps, scale, where
from _selective_scan_plain_tile import onward, walk, weighted
from _zero_order_hold import decay_and_difference, held_kick
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy


@gluon.jit
def fetch_gate(slots, rows, begin_state, start, N, L, padded_length):
    """The same of a gate, before what fetch_rows() asks for, which it waits with. `rows` are its first,
    states, and steps of the tile.
    """
    gate, state, step = rows
    of_block = begin_state + anew(state)
    at = of_block.to(gl.int64) * padded_length + (start + step)
    async_copy.async_copy_global_to_shared(slots, gate + at, (of_block < N) & (start < L))


@gluon.jit
def gates_of_tile(slots, RUNS: gl.constexpr, WEIGHTS: gl.constexpr, GATES: gl.constexpr):
    """The product of a tile's gates, [lanes, rows of states]."""
    of_runs = gl.reduce(slots.load(WEIGHTS), 1, product)
    LANES: gl.constexpr = of_runs.shape[0]
    by_row = gl.reshape(of_runs, [LANES, of_runs.shape[1] // RUNS, RUNS])
    return gl.convert_layout(gl.reduce(by_row, 2, product), GATES)


@gluon.jit
def by_run(slots):
    """Slots of which runs are the last axis and lie farthest apart, with runs as the first axis: which one is
    then for run time to know.
    """
    gl.static_assert(slots.type.layout.max_phase == 1, "runs lie in order")
    RANK: gl.constexpr = len(slots.shape)
    if RANK == 3:
        # [steps, channels, runs] or [lanes, steps, rows of runs]: the two that are left keep their order.
        ORDER: gl.constexpr = slots.type.layout.order[0:2]
        SHAPE: gl.constexpr = [slots.shape[2], slots.shape[0], slots.shape[1]]
        return slots._reinterpret(slots.dtype, SHAPE, gl.SwizzledSharedLayout(1, 1, 1, ORDER))
    else:
        # [lanes, steps, channels, runs]
        ORDER4: gl.constexpr = slots.type.layout.order[0:3]
        SHAPE4: gl.constexpr = [slots.shape[3], slots.shape[0], slots.shape[1], slots.shape[2]]
        return slots._reinterpret(slots.dtype, SHAPE4, gl.SwizzledSharedLayout(1, 1, 1, ORDER4))


@gluon.jit
def run_of_row(
    rows, j, s, ROWS: gl.constexpr, RUNS: gl.constexpr, LAYOUT: gl.constexpr, COMPLEX: gl.constexpr
):
    """row_of() of slots by_run()."""
    real = gl.expand_dims(gl.expand_dims(rows.index(j * RUNS + s).load(LAYOUT), 2), 3)
    if COMPLEX:
        imaginary = rows.index((ROWS + j) * RUNS + s).load(LAYOUT)
        return (real, gl.expand_dims(gl.expand_dims(imaginary, 2), 3))
    else:
        return (real,)


@gluon.jit
def states_with_options(
    slots,
    gate_slots,
    held,
    states,
    first_step,
    ROWS: gl.constexpr,
    RUNS: gl.constexpr,
    X: gl.constexpr,
    ENDS: gl.constexpr,
):
    """states_of_tile() of complex states with a gate or under zero-order hold. `held` are rates, their
    inverses and held_input()'s `unheld`; in `dtx_slots` a hold has u alone. Nothing is asked for ahead: there
    are too few registers. A loop, not RUNS times the code, which would take as long again to compile.
    """
    dt_runs = by_run(slots[0])
    x_runs = by_run(slots[1])
    B_runs = by_run(slots[2])
    C_runs = by_run(slots[3])
    gate_runs = by_run(gate_slots)
    rates, inverses, unheld = held
    WEIGHTS: gl.constexpr = gl.SliceLayout(2, gl.SliceLayout(3, X))
    SCALARS: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(3, X))
    for s in range(0, RUNS):
        dt = gl.expand_dims(gl.expand_dims(dt_runs.index(s).load(SCALARS), 0), 3)
        x = gl.expand_dims(gl.expand_dims(x_runs.index(s).load(SCALARS), 0), 3)
        share = dt
        through = ()
        for j in gl.static_range(ROWS):
            power, turns, low = rates[j]
            rate = (gl.expand_dims(power, 1), gl.expand_dims(turns, 1), gl.expand_dims(low, 1))
            b = run_of_row(B_runs, j, s, ROWS, RUNS, WEIGHTS, True)
            gate = run_of_row(gate_runs, j, s, ROWS, RUNS, WEIGHTS, False)[0]
            e, difference = decay_and_difference(dt, rate)
            a = scale(e, gate, True)
            kick = held_kick(difference, expand(inverses[j], 1, True), unheld, b, x)
            opened = onward(a, reversed_steps(states[j], True), kick, True)
            run = walk(a, where(first_step, opened, kick, True), False, True)
            through += (run,)
            if not ENDS:
                c = run_of_row(C_runs, j, s, ROWS, RUNS, WEIGHTS, True)
                share = weighted(c, run, share, j > 0, True)
        states = through
        if not ENDS:
            by_run(slots[4]).index(s).store(gl.sum(share, 3))
    return states
