"""How states come through spans of time in the plain forward scan, where rows and channels are too few to
fill a GPU: a launch before it finds where each span ends from a state of zero.
"""

from _recurrence import exponential, scale, where
from _scan_operands import HAS_GATE, load_state
from _selective_scan_plain_tile import onward
from _selective_scan_sequences import FORGOTTEN
from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.jit
def states_through_spans(entering, rates, of_spans, place, sizes, span_range, flags, tile: gl.constexpr):
    """The states behind a range of spans, of those that enter it, with the rates and the sums of steps. What
    so many spans left as `tile` says is asked for at once.
    """
    span_ends, span_times, span_gates = of_spans
    state_row, batches, channel, valid, first_state, in_planes, state_step = place
    D, N, state_size = sizes
    first_span, end = span_range
    ROWS: gl.constexpr = tile[0]
    LANES: gl.constexpr = tile[1]
    AT_ONCE: gl.constexpr = tile[2]
    COMPLEX: gl.constexpr = tile[3]
    for first_of_some in range(first_span, end, AT_ONCE):
        for k in gl.static_range(AT_ONCE):
            # One that is not there takes no time and leaves the state alone.
            there = valid & (first_of_some + k < end) if AT_ONCE > 1 else valid
            past = (first_of_some + k) * batches + state_row
            passed = gl.load(span_times + (past * D + channel), there, 0.0)
            ends_at = span_ends + (past * state_size + in_planes)
            left = ()
            for j in gl.static_range(ROWS):
                known = there & (first_state + j * LANES < N)
                ended = load_state(ends_at, j * state_step, D, known, COMPLEX)
                a = exponential(passed, rates[j], COMPLEX)
                if COMPLEX:
                    gated = known & ((flags & HAS_GATE) != 0)
                    g = span_gates + (past * N + first_state + j * LANES)
                    a = scale(a, gl.load(g, gated, 1.0), COMPLEX)
                through = onward(a, entering[j], ended, COMPLEX)
                left += (where(passed == FORGOTTEN, ended, through, COMPLEX),)
            entering = left
    return entering
