"""Generation: reads the prompt in one pass, then one token a step, with a state of constant size."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mamba_aot.model import MambaLM


@dataclass(frozen=True)
class GeneratedToken:
    """One step of generation.

    Attributes:
        index: Position among the generated tokens, from 0.
        ids: The token of every sequence, int64 [B].
        logprobs: Log-probability, in nats, of each under the model itself (temperature 1, nothing cut),
            float32 [B].
    """

    index: int
    ids: Tensor
    logprobs: Tensor


def stream(
    model: MambaLM,
    prompt: Tensor,
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
) -> Iterator[GeneratedToken]:
    """Continues a prompt and yields each token as it is drawn.

    Args:
        model: The model; runs on its own device, without autograd.
        prompt: Token ids, [L] or [B, L], L at least 1.
        max_new_tokens: How many tokens to draw.
        temperature: Divides the logits; 0 takes the most probable token.
        top_k: Draw only from the k most probable tokens.
        top_p: Draw only from the most probable tokens that together reach this probability.
        seed: Seed of a generator of its own; None draws from torch's global one.

    Raises:
        ValueError: An argument is out of range; raised by this call, not by the first step.
    """
    if prompt.dim() not in (1, 2) or prompt.shape[-1] == 0 or prompt.dtype not in (torch.int64, torch.int32):
        raise ValueError(
            "stream: prompt must be [length] or [batch, length] of dtype int64 or int32 and not empty, "
            f"got {list(prompt.shape)} of {prompt.dtype}"
        )
    if max_new_tokens < 0:
        raise ValueError(f"stream: max_new_tokens must be at least 0, got {max_new_tokens}")
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"stream: temperature must be finite and at least 0, got {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"stream: top_k must be at least 1, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"stream: top_p must be in (0, 1], got {top_p}")
    ids = prompt.unsqueeze(0) if prompt.dim() == 1 else prompt
    return _stream(model, ids, max_new_tokens, temperature, top_k, top_p, seed)


def generate(model: MambaLM, prompt: Tensor, max_new_tokens: int, **options) -> Tensor:
    """Continues a prompt as `stream` does; returns prompt and new tokens, int64 [..., L + max_new_tokens]."""
    steps = [token.ids for token in stream(model, prompt, max_new_tokens, **options)]
    new = torch.stack(steps, dim=-1) if steps else prompt.new_empty(*prompt.shape[:-1], 0)
    if prompt.dim() == 1 and steps:
        new = new.squeeze(0)
    return torch.cat([prompt.long(), new.to(prompt.device).long()], dim=-1)


def sample(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draws a token from each row of logits, [B, V] to int64 [B]; arguments as in `stream`."""
    if temperature == 0:
        return logits.argmax(-1)
    ranked, order = (logits.float() / temperature).sort(dim=-1, descending=True)
    probabilities = ranked.softmax(-1)
    if top_k is not None:
        probabilities[:, top_k:] = 0
    if top_p is not None:
        # A token stays if what is more probable than it falls short of top_p: the first one always does.
        before = probabilities.cumsum(-1) - probabilities
        probabilities[before >= top_p * probabilities.sum(-1, keepdim=True)] = 0
    return order.gather(-1, torch.multinomial(probabilities, 1, generator=generator)).squeeze(-1)


@torch.inference_mode()
def _stream(
    model: MambaLM,
    ids: Tensor,
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    seed: int | None,
) -> Iterator[GeneratedToken]:
    device = model.embedding.weight.device
    generator = None if seed is None else torch.Generator(device).manual_seed(seed)
    state = model.allocate_state(ids.shape[0])
    logits = model(ids.to(device), state)[:, -1]
    for index in range(max_new_tokens):
        token = sample(logits, temperature, top_k, top_p, generator)
        logprobs = logits.float().log_softmax(-1).gather(-1, token.unsqueeze(-1)).squeeze(-1)
        yield GeneratedToken(index, token, logprobs)
        if index + 1 < max_new_tokens:
            logits = model.step(token, state)
