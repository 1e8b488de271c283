"""Captured steps of decoding that outlive the call that made them."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mamba_aot.decoder import Decoder, LanguageModel
from mamba_aot.prompt_graphs import PromptGraphs
from mamba_aot.states import named_tensors


@dataclass
class CapturedStep:
    """A decoder, a replay of its step, and what the graph reads besides: A of every layer.

    If it is kept it has graphs that read its prompts, too.
    """

    decoder: Decoder
    replay: Callable[[], None]
    decays: list[Tensor]
    prompts: PromptGraphs | None = None
    last_use: torch.cuda.Event | None = None

    def restart(self, rows: list[Tensor], seed: int | None, decays: Sequence[Tensor]) -> None:
        """Makes it ready for other prompts; `decays` are those of the weights as they are now."""
        if self.last_use is not None:
            torch.cuda.current_stream(self.decoder.ids.device).wait_event(self.last_use)
        self.decoder.restart(rows, seed)
        if self.decays:
            torch._foreach_copy_(self.decays, list(decays))  # pyright: ignore[reportPrivateImportUsage]


class DecodingGraphs:
    """CUDA graphs that `stream` and `generate` keep for their next call.

    Capturing a step takes as long as some sixty replays of it, most of the time of a short answer. A graph is
    for a batch of one size, for one way to draw, and for a model whose weights stay where they are: values
    may change in place, and weights that were moved or replaced get a new graph. Hooks and modules must be
    what they were when it was captured. It holds the model, states of its batch and what a step works in.
    Calls at the same time have graphs of their own.

    Prompts are read by graphs as well, where launches would take longer than the work (up to 4096 tokens of a
    model of 130m parameters, 256 of one of 2.8b), padded to the next power of two: to rounding the logits are
    those of a call without. Each power of two has a graph, captured when a prompt first needs it.

    Args:
        most: How many steps are kept; the one unused for longest goes first.

    Raises:
        ValueError: `most` is less than 1.
    """

    def __init__(self, most: int = 4) -> None:
        if most < 1:
            raise ValueError(f"DecodingGraphs: most must be at least 1, got {most}")
        self.most = most
        self._steps: list[tuple[Any, CapturedStep]] = []
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Steps that no call is using."""
        return len(self._steps)

    def clear(self) -> None:
        """Gives their memory back."""
        with self._lock:
            self._steps.clear()

    def take(self, key: Any) -> CapturedStep | None:
        """A step captured for `key`, which nobody else gets until it is given back."""
        with self._lock:
            for index, (kept, step) in enumerate(self._steps):
                if kept == key:
                    del self._steps[index]
                    return step
        return None

    def give(self, key: Any, step: CapturedStep) -> None:
        """Keeps a step for later calls."""
        device = step.decoder.ids.device
        if device.type == "cuda":
            step.last_use = torch.cuda.Event()
            step.last_use.record(torch.cuda.current_stream(device))
        with self._lock:
            self._steps.append((key, step))
            del self._steps[: -self.most]


def graph_key(model: LanguageModel, batch: int, max_length: int, *how: Any) -> tuple[Any, ...]:
    """What a captured step depends on: where weights are, shapes of the state, and `how` to draw."""
    state = model.allocate_state(batch, device="meta", max_length=max_length)
    shapes = tuple((name, tensor.shape, tensor.dtype) for name, tensor in named_tensors(state))
    weights = tuple((p.data_ptr(), p.dtype, p.shape) for p in model.parameters())
    autocast = torch.is_autocast_enabled(model.device.type), torch.get_autocast_dtype(model.device.type)
    return weights, shapes, autocast, how
