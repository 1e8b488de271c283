"""Drawing a token from logits: what is cut away, what is made less probable, and the draw."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mamba_aot.ops._gradients import is_transformed
from mamba_aot.ops.mamba1_step import argmax_rows

# What argmax_rows reads on a GPU.
_READ = (torch.float16, torch.bfloat16, torch.float32)
# Temperatures below the first could take logits beyond float32; those below the second would be 0 in it.
_SMALL, _LEAST = 1e-6, 1e-30


@dataclass(frozen=True)
class Sampling:
    """How to draw, in this order.

    Attributes:
        repetition_penalty: Divides the logits above zero of tokens that have been seen, and multiplies those
            below; 1 changes nothing.
        temperature: Divides the logits; 0 takes the most probable token, and nothing that follows matters.
        top_k: Draw only from the k most probable tokens.
        top_p: Draw only from the most probable tokens that together reach this probability.
        min_p: Draw only from tokens at least this probable, as a share of the most probable one.

    Source: Keskar et al., "CTRL", arXiv 1909.05858, for the penalty; Holtzman et al., arXiv 1904.09751, for
    top_p; Nguyen et al., arXiv 2407.01082, for min_p.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"stream: temperature must be finite and at least 0, got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"stream: top_k must be at least 1, got {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"stream: top_p must be in (0, 1], got {self.top_p}")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise ValueError(f"stream: min_p must be in [0, 1], got {self.min_p}")
        if not 0 < self.repetition_penalty < float("inf"):
            raise ValueError(
                f"stream: repetition_penalty must be finite and above 0, got {self.repetition_penalty}"
            )


def draw(
    logits: Tensor, how: Sampling, generator: torch.Generator | None = None, seen: Tensor | None = None
) -> Tensor:
    """Draws a token from each row of logits, [B, V] to int64 [B]. Does not wait for the device.

    Args:
        logits: [B, V].
        how: The cuts.
        generator: On the device of `logits`; None draws from torch's global one.
        seen: True at the tokens that the penalty is for, bool [B, V].
    """
    if seen is not None and how.repetition_penalty != 1:
        logits = logits.float()
        weaker = torch.where(logits > 0, logits / how.repetition_penalty, logits * how.repetition_penalty)
        logits = torch.where(seen, weaker, logits)
    if how.temperature == 0:
        return _argmax(logits)
    logits = logits.float()
    if how.temperature < _SMALL:
        # Only differences count.
        logits = logits - logits.amax(-1, keepdim=True)
    logits = logits / max(how.temperature, _LEAST)
    if how.top_k is None and how.top_p is None and how.min_p is None:
        return _race(logits.softmax(-1), generator)
    if how.top_k is None:
        ranked, order = logits.sort(dim=-1, descending=True)
    else:
        ranked, order = logits.topk(min(how.top_k, logits.shape[-1]), dim=-1)
    probabilities = ranked.softmax(-1)
    if how.top_p is not None:
        # A token stays if what is more probable than it falls short of top_p: the first one always does.
        before = probabilities.cumsum(-1) - probabilities
        enough = before >= how.top_p * probabilities.sum(-1, keepdim=True)
        probabilities = probabilities.masked_fill(enough, 0)
    if how.min_p is not None:
        probabilities = probabilities.masked_fill(probabilities < how.min_p * probabilities[:, :1], 0)
    return order.gather(-1, _race(probabilities, generator).unsqueeze(-1)).squeeze(-1)


def sample(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
    *,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    seen: Tensor | None = None,
) -> Tensor:
    """`draw` with the fields of `Sampling` as arguments."""
    return draw(logits, Sampling(temperature, top_k, top_p, min_p, repetition_penalty), generator, seen)


def _race(probabilities: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draws an index from each row of weights, [B, V] to [B]: the first of exponential clocks at these rates.

    That is what torch.multinomial does, number for number, but for its check that waits for the device.
    """
    clocks = torch.empty_like(probabilities).exponential_(generator=generator)
    return _argmax(probabilities / clocks)


def _argmax(x: Tensor) -> Tensor:
    """Of each row of [B, V]."""
    plain = type(x) is Tensor and x.is_cuda and x.dtype in _READ and x.stride(-1) == 1
    # A compiler makes its own, and torch.vmap and other kinds of tensors have rules for torch's alone.
    if not plain or is_transformed() or torch.compiler.is_compiling():
        return x.argmax(-1)
    return argmax_rows(x)
