"""What the specialised backward does once an element, half a chunk at a time: the numbers that its way back
takes, and the gradients of u, delta and z, made of the sums that it leaves.
"""

from _arithmetic import LN2, anew, sigmoid_fast, softplus
from _half_words import narrowed_words, widened_words
from _scan_operands import HAS_Z, SOFTPLUS
from _specialized_backward_layouts import STAGES, elements_layout, half_shape, half_slots, words_layout
from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.jit
def _words_at(sequences, i: gl.constexpr, begin, ALONG_TIME: gl.constexpr):
    """Where the i-th sequence has its words of the half that begins at a step. Made where it is used, for
    registers are few.
    """
    tensors, strides, places, _, _ = sequences
    by_batch, by_channel, by_time = strides
    batch, channel, row, time, word = places
    at = tensors[i].to(gl.pointer_type(gl.int32), bitcast=True)
    if ALONG_TIME:
        at += (batch * by_batch[i] + channel * by_channel[i] + begin) >> 1
        return at + (anew(row) * (by_channel[i] >> 1).to(gl.int32) + word)
    else:
        at += (anew(batch) * by_batch[i] + begin * by_time[i] + channel) >> 1
        return at + (anew(time) * (by_time[i] >> 1).to(gl.int32) + word)


@gluon.jit
def _used(sequences, begin):
    _, _, places, there, L = sequences
    return there & (begin + places[3] < L)


@gluon.jit
def load_words(sequences, begin, wanted, flags, ALONG_TIME: gl.constexpr):
    """The gradient of the output, u, delta and z, as they are stored."""
    used = _used(sequences, begin) & wanted
    dout = gl.load(_words_at(sequences, 0, begin, ALONG_TIME), used, 0)
    u = gl.load(_words_at(sequences, 1, begin, ALONG_TIME), used, 0)
    delta = gl.load(_words_at(sequences, 2, begin, ALONG_TIME), used, 0)
    z = gl.load(_words_at(sequences, 3, begin, ALONG_TIME), used & ((flags & HAS_Z) != 0), 0)
    return dout, u, delta, z


@gluon.jit
def _store_words(sequences, i: gl.constexpr, begin, value, flags, ALONG_TIME: gl.constexpr):
    words = narrowed_words(value, flags, ALONG_TIME, words_layout(ALONG_TIME))
    gl.store(_words_at(sequences, i, begin, ALONG_TIME), words, _used(sequences, begin))


@gluon.jit
def _half_of(slots, stage, ALONG_TIME: gl.constexpr):
    """Slots of tiles as a half of a chunk."""
    SHAPE: gl.constexpr = half_shape(ALONG_TIME)
    halves = slots._reinterpret(gl.float32, [STAGES, SHAPE[0], SHAPE[1], SHAPE[2]], half_slots(ALONG_TIME))
    return halves.index(stage)


@gluon.jit
def _of_channels(elements, i: gl.constexpr, ALONG_TIME: gl.constexpr):
    """D or the bias of each channel, from shared memory, for registers are few."""
    OF_CHANNEL: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(2, elements_layout(ALONG_TIME)))
    return elements[2].index(i).load(OF_CHANNEL)[None, :, None]


@gluon.jit
def _inside(elements, begin, L):
    time, valid, _ = elements
    return (begin + time < L) & valid


@gluon.jit
def prepare_half(scalars, stage, words, sequences, elements, begin, flags, ALONG_TIME: gl.constexpr):
    """delta after its bias and softplus, delta u, and the gradient of y."""
    dt_slots, dtx_slots, dy_slots = scalars
    ELEMENTS: gl.constexpr = elements_layout(ALONG_TIME)
    bias = _of_channels(elements, 1, ALONG_TIME)
    dy = widened_words(words[0], flags, ALONG_TIME, ELEMENTS)
    x = widened_words(words[1], flags, ALONG_TIME, ELEMENTS)
    dt = widened_words(words[2], flags, ALONG_TIME, ELEMENTS) + bias
    if (flags & SOFTPLUS) != 0:
        dt = softplus(dt, True)
    # A step of length 0 leaves the state alone: so do the steps past the end.
    dt = gl.where(_inside(elements, begin, sequences[4]), dt, 0.0)
    if (flags & HAS_Z) != 0:
        z = widened_words(words[3], flags, ALONG_TIME, ELEMENTS)
        dy *= z * sigmoid_fast(z)
    _half_of(dt_slots, stage, ALONG_TIME).store(dt)
    _half_of(dtx_slots, stage, ALONG_TIME).store(dt * x)
    _half_of(dy_slots, stage, ALONG_TIME).store(dy)


@gluon.jit
def finish_gate(scalars, stage, words, sequences, elements, begin, flags, ALONG_TIME: gl.constexpr):
    """Writes the gradient of z; returned is that of y."""
    ELEMENTS: gl.constexpr = elements_layout(ALONG_TIME)
    D_value = _of_channels(elements, 0, ALONG_TIME)
    dy = widened_words(words[0], flags, ALONG_TIME, ELEMENTS)
    if (flags & HAS_Z) != 0:
        x = widened_words(words[1], flags, ALONG_TIME, ELEMENTS)
        z = widened_words(words[3], flags, ALONG_TIME, ELEMENTS)
        y = _half_of(scalars[2], stage, ALONG_TIME).load(ELEMENTS)
        y = gl.fma(x, gl.broadcast(D_value, y)[0], y)
        s = sigmoid_fast(z)
        _store_words(sequences, 6, begin, dy * y * s * (1.0 + z * (1.0 - s)), flags, ALONG_TIME)
        dy *= z * s
    return dy


@gluon.jit
def finish_half(scalars, stage, words, dy, sequences, elements, begin, flags, ALONG_TIME: gl.constexpr):
    """Writes the gradients of u and delta; what each thread adds to those of D and the bias is returned."""
    ELEMENTS: gl.constexpr = elements_layout(ALONG_TIME)
    D_value = _of_channels(elements, 0, ALONG_TIME)
    bias = _of_channels(elements, 1, ALONG_TIME)
    x = widened_words(words[1], flags, ALONG_TIME, ELEMENTS)
    dt = widened_words(words[2], flags, ALONG_TIME, ELEMENTS) + bias
    dkick = _half_of(scalars[1], stage, ALONG_TIME).load(ELEMENTS)
    ddt = gl.fma(dkick, x, _half_of(scalars[0], stage, ALONG_TIME).load(ELEMENTS) * LN2)
    if (flags & SOFTPLUS) != 0:
        ddt *= sigmoid_fast(dt)
        dt = softplus(dt, True)
    # An adjoint of the last state passes through the padding, where there is no delta to take a gradient of.
    ddt = gl.where(_inside(elements, begin, sequences[4]), ddt, 0.0)
    _store_words(sequences, 4, begin, gl.fma(dkick, dt, D_value * dy), flags, ALONG_TIME)
    _store_words(sequences, 5, begin, ddt, flags, ALONG_TIME)
    return gl.sum(dy * x, 0), gl.sum(ddt, 0)
