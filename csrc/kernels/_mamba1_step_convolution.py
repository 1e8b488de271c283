"""The step of the convolution inside of a layer's token, for channels whose new input was just computed."""

from _arithmetic import sigmoid
from _half import narrowed, widened
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.language import debug_barrier

# A bit of `flags`, the same as in csrc/ops/mamba1_step.cpp.
HAS_BIAS = gl.constexpr(4)


@gluon.jit
def load_convolution(conv_state, conv_weight, conv_bias, place, channel, here, taps, kept, flags):
    """Of some channels, as stored: what they were one, two and three steps ago, taps by lag, bias.

    `place` counts channels of all rows of the batch.
    """
    last = conv_state + place * kept + kept - 1
    tap = conv_weight + channel * taps + taps - 1
    lagged = (
        gl.load(last, here & (taps > 1), 0),
        gl.load(last - 1, here & (taps > 2), 0),
        gl.load(last - 2, here & (taps > 3), 0),
    )
    weights = (
        gl.load(tap, here, 0),
        gl.load(tap - 1, here & (taps > 1), 0),
        gl.load(tap - 2, here & (taps > 2), 0),
        gl.load(tap - 3, here & (taps > 3), 0),
    )
    return lagged, weights, gl.load(conv_bias + channel, here & ((flags & HAS_BIAS) != 0), 0)


@gluon.jit
def convolved(u, conv_state, place, here, kept, lagged, weights, bias, flags):
    """silu(conv(u)) of some channels; what is kept moves by one step."""
    new = narrowed(u, conv_state.dtype.element_ty, flags)
    y = widened(new, flags) * widened(weights[0], flags) + widened(bias, flags)
    for lag in gl.static_range(3):
        y += widened(lagged[lag], flags) * widened(weights[lag + 1], flags)
    last = conv_state + place * kept + kept - 1
    # Several threads hold the same channel, and one of them stores it: not before all have read.
    debug_barrier()
    gl.store(last, new, here & (kept > 0))
    for lag in gl.static_range(3):
        gl.store(last - (lag + 1), lagged[lag], here & (kept > lag + 1))
    return y * sigmoid(y)
