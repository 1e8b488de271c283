"""A step of the decoding loop as a CUDA graph: one launch from the host for a token, its draw included."""

from collections.abc import Callable

import torch
from torch import Tensor

from mamba_aot.decoder import Decoder
from mamba_aot.states import tensors_of


def capture(decoder: Decoder) -> Callable[[], None]:
    """Captures `decoder.advance`; the result does the same by a replay.

    Making the graph runs a few steps, to load kernels and to let libraries set themselves up, which is not
    allowed under capture. Whatever they changed, states, tokens and random numbers, is put back.
    """
    written = [*tensors_of(decoder.state), *decoder.buffers()]
    before = [tensor.clone() for tensor in written]
    device = decoder.ids.device
    generator = decoder.generator or torch.cuda.default_generators[device.index]
    random_state = generator.get_state()

    with torch.cuda.device(device):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                decoder.advance()
                _restore(written, before)
        torch.cuda.current_stream().wait_stream(side)
        generator.set_state(random_state)
        graph = torch.cuda.CUDAGraph()
        # Torch's own generator is known to every graph.
        if decoder.generator is not None:
            graph.register_generator_state(decoder.generator)
        with torch.cuda.graph(graph):
            decoder.advance()
    _restore(written, before)
    return graph.replay


def _restore(written: list[Tensor], before: list[Tensor]) -> None:
    for tensor, value in zip(written, before, strict=True):
        tensor.copy_(value)
