"""The decoding loop: reads the prompts, then draws a token a step, with a state of constant size."""

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor

from mamba_aot.decoder import Decoder, LanguageModel
from mamba_aot.decoding_graph import capture_step
from mamba_aot.kept_graphs import CapturedStep, DecodingGraphs, graph_key
from mamba_aot.prompt_graphs import PromptGraphs
from mamba_aot.sampling import Sampling
from mamba_aot.states import tensors_of


@dataclass(frozen=True)
class GeneratedToken:
    """One step of generation.

    Attributes:
        index: Position among the generated tokens, from 0.
        ids: The token of every sequence, int64 [B].
        logprobs: Log-probability, in nats, of each under the model itself (temperature 1, nothing cut),
            float32 [B]; None where they were not asked for.
        finished: Whether each sequence has drawn a stop token, now or earlier, bool [B]; from then on its ids
            are the first of the stop tokens.
    """

    index: int
    ids: Tensor
    logprobs: Tensor | None
    finished: Tensor


Prompt = Tensor | Sequence[Tensor]


def stream(
    model: LanguageModel,
    prompt: Prompt,
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    stop_tokens: Sequence[int] = (),
    seed: int | None = None,
    state: Any = None,
    prefill_chunk: int | None = None,
    cuda_graph: bool | None = None,
    graphs: DecodingGraphs | None = None,
    logprobs: bool = True,
) -> Iterator[GeneratedToken]:
    """Continues a prompt and yields each token as it is drawn.

    Args:
        model: The model; runs on its own device, without autograd.
        prompt: Token ids, [L] or [B, L], L at least 1; or a list of [L], of different lengths.
        max_new_tokens: How many tokens to draw.
        temperature: Divides the logits; 0 takes the most probable token.
        top_k: Draw only from the k most probable tokens.
        top_p: Draw only from the most probable tokens that together reach this probability.
        min_p: Draw only from tokens at least this probable, as a share of the most probable one.
        repetition_penalty: Above 1, makes the tokens of the prompt and those drawn less probable.
        stop_tokens: A sequence that draws one of these is finished; when all are, the stream ends.
        seed: Seed of a generator of its own; None draws from torch's global one.
        state: From `model.allocate_state`: what came before the prompt. It is moved on in place, and has at
            the end read everything but the last token.
        prefill_chunk: Tokens of the prompt that are read in one pass; it bounds the memory that a long prompt
            takes, and does not change the result. None reads all at once.
        cuda_graph: Whether a step and its draw are captured as a CUDA graph and replayed, which takes the
            time of some sixty replays to make; None does so on a GPU with `graphs` or for more than 16
            tokens.
        graphs: Keeps such a graph for the next call that can use it, and graphs that read prompts, unless
            `prefill_chunk` is given. Not used where a `state` is given, which a graph made for other memory
            cannot move on, or where there is no graph.
        logprobs: Whether tokens come with their log-probabilities.

    Raises:
        TypeError: The prompt is no tensor, `stop_tokens` no sequence of integers, the seed no integer, or
            `graphs` are no `DecodingGraphs`.
        ValueError: An argument, or a token of the prompt, is out of range, or `state` is of another number of
            sequences; raised by this call, not by the first step.
    """
    rows = prompt_rows(prompt)
    stops = _stops(stop_tokens)
    _require_tokens("prompt", model, torch.cat([row.to(model.device) for row in rows]))
    if stops:
        _require_tokens("stop_tokens", model, torch.tensor(stops))
    if max_new_tokens < 0:
        raise ValueError(f"stream: max_new_tokens must be at least 0, got {max_new_tokens}")
    if prefill_chunk is not None and prefill_chunk < 1:
        raise ValueError(f"stream: prefill_chunk must be at least 1 or None, got {prefill_chunk}")
    on_gpu = model.device.type == "cuda"
    if cuda_graph and not on_gpu:
        raise ValueError(f"stream: cuda_graph needs a model on a GPU, this one is on {model.device}")
    if not isinstance(graphs, DecodingGraphs | None):
        raise TypeError(f"stream: graphs must be DecodingGraphs or None, got {graphs!r:.80}")
    _require_seed(seed)
    _require_batch(state, len(rows))
    how = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
    if cuda_graph is None:
        cuda_graph = on_gpu and (max_new_tokens > 16 or graphs is not None)
    # One token is drawn from the prompt's logits.
    cuda_graph = cuda_graph and max_new_tokens > 1
    if not cuda_graph or state is not None:
        graphs = None
    return _stream(
        model, rows, max_new_tokens, how, stops, seed, state, prefill_chunk, cuda_graph, graphs, logprobs
    )


@overload
def generate(model: LanguageModel, prompt: Tensor, max_new_tokens: int, **options: Any) -> Tensor: ...


@overload
def generate(
    model: LanguageModel, prompt: Sequence[Tensor], max_new_tokens: int, **options: Any
) -> list[Tensor]: ...


def generate(
    model: LanguageModel, prompt: Prompt, max_new_tokens: int, **options: Any
) -> Tensor | list[Tensor]:
    """Continues a prompt as `stream` does, with its options.

    Returns:
        Prompt and new tokens: int64 [L + n] or [B, L + n], with n below `max_new_tokens` if all sequences
        have stopped; for a list of prompts a list, each with its tokens up to its own stop token.
    """
    # What nobody sees is not computed.
    steps = list(stream(model, prompt, max_new_tokens, **{"logprobs": False, **options}))
    rows = prompt_rows(prompt)
    device = rows[0].device
    new = torch.stack([s.ids for s in steps], dim=-1) if steps else rows[0].new_empty(len(rows), 0)
    new = new.to(device).long()
    if isinstance(prompt, Tensor):
        whole = torch.cat([torch.stack(rows).long(), new], dim=-1)
        return whole.squeeze(0) if prompt.dim() == 1 else whole
    lasts = [new.shape[1]] * len(rows)
    if steps:
        finished = torch.stack([s.finished for s in steps], dim=-1)
        lasts = (new.shape[1] - (finished.sum(-1) - 1).clamp(min=0)).tolist()
    return [torch.cat([row.long(), n[:last]]) for row, n, last in zip(rows, new, lasts, strict=True)]


def prompt_rows(prompt: Prompt) -> list[Tensor]:
    """The prompts one by one, each [L]; raises TypeError or ValueError for what is no prompt."""
    if isinstance(prompt, Tensor) and prompt.dim() not in (1, 2):
        raise ValueError(f"stream: prompt must be [length] or [batch, length], got {list(prompt.shape)}")
    batch = prompt.unsqueeze(0) if isinstance(prompt, Tensor) and prompt.dim() == 1 else prompt
    if not isinstance(batch, Tensor | list | tuple) or not all(isinstance(row, Tensor) for row in batch):
        raise TypeError(
            f"stream: prompt must be a tensor of tokens or a list of such tensors, got {prompt!r:.80}; "
            "torch.tensor makes one of a list of tokens"
        )
    rows = list(batch)
    for row in rows:
        if row.dim() != 1 or row.numel() == 0 or row.dtype not in (torch.int64, torch.int32):
            raise ValueError(
                "stream: prompt must be [length] or [batch, length], or a list of [length], of dtype int64 "
                f"or int32 and not empty, got {list(row.shape)} of {row.dtype}"
            )
    if not rows:
        raise ValueError("stream: prompt must have at least one sequence and not be empty, got none")
    return rows


@torch.inference_mode()
def prefill(model: LanguageModel, rows: list[Tensor], state: Any, chunk: int | None) -> Tensor:
    """Reads prompts of different lengths into `state`; logits of what comes next, [B, V]."""
    length = max(row.shape[0] for row in rows)
    ids = rows[0].new_zeros(len(rows), length)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for index, row in enumerate(rows):
        # At the end, so that every row has its last token in the last chunk.
        ids[index, length - row.shape[0] :] = row
        mask[index, length - row.shape[0] :] = True
    padded = any(row.shape[0] != length for row in rows)
    ids, mask = ids.to(model.device), mask.to(model.device)
    logits = ids.new_empty(0)
    chunk = length if chunk is None else chunk
    for start in range(0, length, chunk):
        piece = slice(start, start + chunk)
        logits = model(
            ids[:, piece], state, attention_mask=mask[:, piece] if padded else None, last_only=True
        )
    return logits


def _require_tokens(name: str, model: LanguageModel, tokens: Tensor) -> None:
    """Raises ValueError for tokens without an embedding: on a GPU they would end the process."""
    least, most = tokens.aminmax()
    if least < 0 or most >= model.vocab_size:
        raise ValueError(
            f"stream: {name} must hold tokens from 0 to {model.vocab_size - 1}, those of the model, "
            f"got {int(least if least < 0 else most)}"
        )


def _require_seed(seed: int | None) -> None:
    if seed is None:
        return
    try:
        value = operator.index(seed)
    except TypeError:
        raise TypeError(f"stream: seed must be an integer or None, got {seed!r}") from None
    if not -(2**63) <= value < 2**64:
        raise ValueError(f"stream: seed must be an integer of 64 bits, got {value}")


def _require_batch(state: Any, batch: int) -> None:
    for tensor in () if state is None else tensors_of(state):
        if tensor.shape[0] != batch:
            raise ValueError(
                f"stream: state must be of as many sequences as there are prompts, {batch}, "
                f"got {tensor.shape[0]}; allocate_state({batch}) makes one"
            )


def _stops(stop_tokens: Sequence[int]) -> tuple[int, ...]:
    try:
        return tuple(operator.index(token) for token in stop_tokens)
    except TypeError:
        raise TypeError(f"stream: stop_tokens must be a sequence of integers, got {stop_tokens!r}") from None


@torch.inference_mode()
def _stream(
    model: LanguageModel,
    rows: list[Tensor],
    max_new_tokens: int,
    how: Sampling,
    stops: tuple[int, ...],
    seed: int | None,
    state: Any,
    chunk: int | None,
    cuda_graph: bool,
    graphs: DecodingGraphs | None,
    logprobs: bool,
) -> Iterator[GeneratedToken]:
    max_length = max(row.shape[0] for row in rows) + max_new_tokens
    key, step = None, None
    if graphs is not None:
        key = graph_key(model, len(rows), max_length, how, stops, seed is None, logprobs)
        step = graphs.take(key)
    # Kept by name for as long as a graph may read them. The model has them only while it works: between two
    # tokens the caller may do anything with it.
    with model.fixed_decays() as decays:
        if step is None:
            state = model.allocate_state(len(rows), max_length=max_length) if state is None else state
            decoder = Decoder(model, state, rows, how, stops, logprobs)
            decoder.generator = None if seed is None else torch.Generator(model.device).manual_seed(seed)
            prompts = None if graphs is None else PromptGraphs(decoder)
        else:
            step.restart(rows, seed, decays)
            decoder, prompts, decays = step.decoder, step.prompts, step.decays
    # Those that stay, for graphs that are captured now.
    with model.fixed_decays(decays):
        logits = None if prompts is None or chunk is not None else prompts.read(rows)
        if logits is None:
            logits = prefill(model, rows, decoder.state, chunk)
        if max_new_tokens > 0:
            decoder.start(logits)
        if cuda_graph and step is None:
            step = CapturedStep(decoder, capture_step(decoder), decays, prompts)
    try:
        for index in range(max_new_tokens):
            if index > 0 and step is not None:
                step.replay()
            elif index > 0:
                with model.fixed_decays(decays):
                    decoder.advance()
            drawn = None if decoder.logprobs is None else decoder.logprobs.clone()
            yield GeneratedToken(index, decoder.ids.clone(), drawn, decoder.finished.clone())
            if stops and bool(decoder.finished.all()):
                return
    finally:
        if graphs is not None and step is not None:
            graphs.give(key, step)
