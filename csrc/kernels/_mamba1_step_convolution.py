"""The step of the convolution inside of a layer's token, for channels whose new input was just computed."""

from _arithmetic import sigmoid
from _half import widened
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.language import debug_barrier

# A bit of `flags`, the same as in csrc/ops/mamba1_step.cpp.
HAS_BIAS = gl.constexpr(4)


# Set where there are four taps and three kept steps, and what is kept begins on a boundary of four bytes.
IN_WORDS = gl.constexpr(32)


@gluon.jit
def load_lagged(conv_state, place, here, taps, kept):
    """What some channels were one, two and three steps ago. `place` counts channels of the whole batch."""
    last = conv_state + place * kept + kept - 1
    return (
        gl.load(last, here & (taps > 1), 0),
        gl.load(last - 1, here & (taps > 2), 0),
        gl.load(last - 2, here & (taps > 3), 0),
    )


@gluon.jit
def load_taps(conv_weight, conv_bias, channel, here, taps, flags):
    """Taps by lag, and the bias."""
    tap = conv_weight + channel * taps + taps - 1
    weights = (
        gl.load(tap, here, 0),
        gl.load(tap - 1, here & (taps > 1), 0),
        gl.load(tap - 2, here & (taps > 2), 0),
        gl.load(tap - 3, here & (taps > 3), 0),
    )
    return weights, gl.load(conv_bias + channel, here & ((flags & HAS_BIAS) != 0), 0)


@gluon.jit
def keep(conv_state, place, here, kept, lagged, new):
    """Moves what is kept by one step, to `new`."""
    last = conv_state + place * kept + kept - 1
    # Several threads hold the same channel, and one of them stores it: not before all have read.
    debug_barrier()
    gl.store(last, new, here & (kept > 0))
    for lag in gl.static_range(3):
        gl.store(last - (lag + 1), lagged[lag], here & (kept > lag + 1))


@gluon.jit
def convolution(new, lagged, weights, bias, flags):
    """silu(conv(u)), where u was rounded to `new`."""
    y = widened(new, flags) * widened(weights[0], flags) + widened(bias, flags)
    for lag in gl.static_range(3):
        y += widened(lagged[lag], flags) * widened(weights[lag + 1], flags)
    return y * sigmoid(y)


@gluon.jit
def load_words(conv_state, pair, here):
    """Three kept steps of each of two channels: s0 s1, s2 t0, t1 t2, oldest first."""
    first = conv_state.to(gl.pointer_type(gl.int32), bitcast=True) + pair * 3
    return gl.load(first, here, 0), gl.load(first + 1, here, 0), gl.load(first + 2, here, 0)


@gluon.jit
def lagged_of_words(words, LAYOUT: gl.constexpr):
    """The kept steps as load_lagged() gives them, latest first."""
    return (
        _channels(words[1], words[2] >> 16, LAYOUT),
        _channels(words[0] >> 16, words[2], LAYOUT),
        _channels(words[0], words[1] >> 16, LAYOUT),
    )


@gluon.jit
def _channels(even, odd, LAYOUT: gl.constexpr):
    both = gl.join(even.to(gl.int16), odd.to(gl.int16))
    return gl.convert_layout(gl.reshape(both, [2 * even.shape[0]]), LAYOUT)


@gluon.jit
def store_words(conv_state, first_pair, pairs, words, new):
    """The same as keep(), of words.

    Words that lie side by side go to lanes side by side: memory takes whole sectors faster than pieces.
    """
    PAIRS: gl.constexpr = words[0].shape[0]
    LAYOUT: gl.constexpr = words[0].type.layout
    even, odd = gl.split(gl.reshape(new, [PAIRS, 2]))
    even = gl.convert_layout(even.to(gl.int32), LAYOUT)
    odd = gl.convert_layout(odd.to(gl.int32), LAYOUT)
    moved0 = ((words[0] >> 16) & 0xFFFF) | (words[1] << 16)
    moved1 = (even & 0xFFFF) | (words[2] << 16)
    moved2 = ((words[2] >> 16) & 0xFFFF) | (odd << 16)
    # The fourth is no word of the state.
    moved = gl.reshape(gl.join(gl.join(moved0, moved2), gl.join(moved1, moved1)), [PAIRS, 4])
    IN_ORDER: gl.constexpr = gl.BlockedLayout([1, 1], [8, 4], [gl.num_warps(), 1], [1, 0])
    pair = gl.arange(0, PAIRS, gl.SliceLayout(1, IN_ORDER))[:, None]
    word = gl.arange(0, 4, gl.SliceLayout(0, IN_ORDER))[None, :]
    at = conv_state.to(gl.pointer_type(gl.int32), bitcast=True) + (first_pair + pair) * 3 + word
    gl.store(at, gl.convert_layout(moved, IN_ORDER), (pair < pairs) & (word < 3))
