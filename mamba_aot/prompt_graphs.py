"""The reading of prompts as CUDA graphs, for where a host takes longer to ask for it than a GPU to do it."""

from collections.abc import Callable

import torch
from torch import Tensor

from mamba_aot.decoder import Decoder
from mamba_aot.decoding_graph import capture
from mamba_aot.states import tensors_of

# Fewest tokens of a row that a graph reads; beyond it there is one for each power of two.
LEAST = 16
# Most tokens of a batch times parameters: beyond it a GPU has work for longer than the host asks for it, and
# would only do more for the padding. Reckoned: 8192 tokens of a model of 130m parameters, 1.1e12, are 7.8 ms
# of kernels on an H200, which a host asked for in 6 (benchmarks/results/h200/prefill.json).
MOST_WORK = 8 * 10**11


class PromptGraphs:
    """Reads prompts into the state of a decoder, by one graph for each power of two that rows are padded to.

    A graph is captured when a prompt first needs it. All of them work in the same memory.
    """

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self._parameters = sum(parameter.numel() for parameter in decoder.model.parameters())
        self._lengths: dict[int, _Reading] = {}
        self._pool = torch.cuda.graph_pool_handle()

    def read(self, rows: list[Tensor]) -> Tensor | None:
        """Logits of what comes next, [B, V], until the next call; None if the prompts are too long for it.

        The state has to be that of no token.
        """
        length = padded_length(rows, self._parameters)
        if length is None:
            return None
        if length not in self._lengths:
            self._lengths[length] = _Reading(self.decoder, length, self._pool)
        return self._lengths[length].read(rows)


def padded_length(rows: list[Tensor], parameters: int) -> int | None:
    """How many tokens each row is padded to for a graph of a model; None if one would not be faster."""
    longest = max(row.shape[0] for row in rows)
    length = max(LEAST, 1 << (longest - 1).bit_length())
    return length if len(rows) * length * parameters <= MOST_WORK else None


class _Reading:
    """The graph for rows of one length."""

    def __init__(self, decoder: Decoder, length: int, pool: object) -> None:
        batch, device = decoder.ids.shape[0], decoder.ids.device
        self.ids = torch.zeros(batch, length, device=device, dtype=torch.int64)
        # A token in each row, for what is captured is also run.
        self.mask = torch.zeros(batch, length, device=device, dtype=torch.bool)
        self.mask[:, 0] = True
        self.logits = torch.empty(0)
        model, state = decoder.model, decoder.state

        def work() -> None:
            self.logits = model(self.ids, state, attention_mask=self.mask, last_only=True)

        self.replay: Callable[[], None] = capture(work, tensors_of(state), device, pool=pool)

    def read(self, rows: list[Tensor]) -> Tensor:
        fill(self.ids, self.mask, rows)
        self.replay()
        return self.logits


def fill(ids: Tensor, mask: Tensor, rows: list[Tensor]) -> None:
    """Puts prompts at the start of the rows of `ids` [B, L], with zeros behind; `mask` says where."""
    present = torch.zeros(mask.shape, dtype=torch.bool)
    for index, row in enumerate(rows):
        present[index, : row.shape[0]] = True
    mask.copy_(present)
    tokens = torch.cat([row.to(rows[0].device, torch.int64) for row in rows]).to(ids.device)
    ids.zero_().masked_scatter_(mask, tokens)
