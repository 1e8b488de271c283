"""One batch being continued: what a step of decoding reads and writes."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor

from mamba_aot.sampling import Sampling, draw
from mamba_aot.states import tensors_of


class LanguageModel(Protocol):
    """What the loop asks of a model; `MambaLM` says what each of these means."""

    def __call__(
        self, ids: Tensor, state: Any, *, attention_mask: Tensor | None, last_only: bool
    ) -> Tensor: ...

    def step(self, ids: Tensor, state: Any) -> Tensor: ...

    def fixed_decays(self, decays: Any = None) -> AbstractContextManager[Any]: ...

    def allocate_state(
        self, batch: int, device: torch.device | str | None = None, *, max_length: int | None
    ) -> Any: ...

    def parameters(self) -> Iterable[Tensor]: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def vocab_size(self) -> int: ...


class Decoder:
    """One batch being continued: the token drawn last, and everything needed to draw the next.

    All of it stays where it is, so that a CUDA graph can be made of `advance`.
    """

    def __init__(
        self,
        model: LanguageModel,
        state: Any,
        rows: list[Tensor],
        how: Sampling,
        stops: tuple[int, ...],
        logprobs: bool = False,
    ) -> None:
        self.model, self.state, self.how = model, state, how
        device, batch = model.device, len(rows)
        self.generator: torch.Generator | None = None
        self.stops = torch.tensor(stops, device=device, dtype=torch.int64) if stops else None
        self.ids = torch.zeros(batch, device=device, dtype=torch.int64)
        self.logprobs = torch.zeros(batch, device=device) if logprobs else None
        self.finished = torch.zeros(batch, device=device, dtype=torch.bool)
        self.rows = rows
        self.seen: Tensor | None = None

    def start(self, logits: Tensor) -> None:
        """Draws the first token, from the logits behind the prompt, [B, V]."""
        if self.how.repetition_penalty != 1:
            if self.seen is None:
                self.seen = torch.zeros_like(logits, dtype=torch.bool)
            self.seen.zero_()
            for mask, row in zip(self.seen, self.rows, strict=True):
                mask[row.to(mask.device).long()] = True
        self._draw(logits)

    def restart(self, rows: list[Tensor], seed: int | None) -> None:
        """Forgets everything, in place, to continue as many other prompts."""
        forgotten = [*tensors_of(self.state), self.finished]
        torch._foreach_zero_(forgotten)  # pyright: ignore[reportPrivateImportUsage]
        self.rows = rows
        if self.generator is not None and seed is not None:
            self.generator.manual_seed(seed)

    def advance(self) -> None:
        """Reads the token drawn last and draws the next one."""
        self._draw(self.model.step(self.ids, self.state))

    def buffers(self) -> list[Tensor]:
        """What a step overwrites, apart from the state."""
        return [t for t in (self.ids, self.logprobs, self.finished, self.seen) if t is not None]

    def _draw(self, logits: Tensor) -> None:
        ids = draw(logits, self.how, self.generator, self.seen)
        if self.stops is not None:
            ids = torch.where(self.finished, self.stops[0], ids)
            self.finished |= (ids[:, None] == self.stops).any(1)
        self.ids.copy_(ids)
        if self.logprobs is not None:
            wide = logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
            self.logprobs.copy_(wide.gather(-1, ids.unsqueeze(-1)).squeeze(-1))
        if self.seen is not None:
            self.seen.scatter_(1, ids.unsqueeze(-1), True)
