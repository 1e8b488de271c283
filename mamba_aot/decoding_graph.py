"""CUDA graphs of what decoding does again and again: one launch from the host for all of it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mamba_aot.decoder import Decoder
from mamba_aot.states import tensors_of


def capture_step(decoder: Decoder) -> Callable[[], None]:
    """Captures `decoder.advance`, the draw included; the result does the same by a replay."""
    written = [*tensors_of(decoder.state), *decoder.buffers()]
    return capture(decoder.advance, written, decoder.ids.device, decoder.generator)


def capture(
    work: Callable[[], None],
    written: list[Tensor],
    device: torch.device,
    generator: torch.Generator | None = None,
    pool: Any = None,
) -> Callable[[], None]:
    """Captures `work`; the result does the same by a replay.

    Making the graph runs it a few times, to load kernels and to let libraries set themselves up, which is not
    allowed under capture. What that changes, `written` and random numbers, is put back.

    Args:
        work: Does the same at every call, with tensors that stay where they are.
        written: Those of them that it overwrites and that somebody needs.
        device: A GPU.
        generator: What it draws from; None for torch's own.
        pool: Memory that it shares with other graphs, which then must not run at the same time.
    """
    before = [tensor.clone() for tensor in written]
    own = generator or torch.cuda.default_generators[device.index]
    random_state = own.get_state()

    with torch.cuda.device(device), casting_anew(device.type):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                work()
                _restore(written, before)
        torch.cuda.current_stream().wait_stream(side)
        own.set_state(random_state)
        graph = torch.cuda.CUDAGraph()
        # Torch's own generator is known to every graph.
        if generator is not None:
            graph.register_generator_state(generator)
        with torch.cuda.graph(graph, pool=pool):
            work()
    _restore(written, before)
    return graph.replay


def casting_anew(device_type: str) -> torch.autocast:
    """Autocast as it is, but for weights that it has cast and keeps: they are gone when its context ends,
    which a graph may outlive.
    """
    dtype, enabled = torch.get_autocast_dtype(device_type), torch.is_autocast_enabled(device_type)
    return torch.autocast(device_type, dtype, enabled, cache_enabled=False)


def _restore(written: list[Tensor], before: list[Tensor]) -> None:
    for tensor, value in zip(written, before, strict=True):
        tensor.copy_(value)
