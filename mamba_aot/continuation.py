"""Continues a text on standard output; what `mamba-aot generate` does."""

import json
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any, TextIO

import torch

from mamba_aot.checkpoint import from_pretrained
from mamba_aot.decoding import GeneratedToken
from mamba_aot.text import Bytes, text_of
from mamba_aot.weight_files import CONFIG_FILE, directory_of

_DTYPES = {None: None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def run(
    name: str,
    prompt: str,
    max_new_tokens: int,
    out: TextIO,
    report: Callable[[str], None],
    *,
    device: torch.device,
    dtype: str | None,
    tokenizer: str | None = None,
    revision: str | None = None,
    **options: Any,
) -> None:
    """Writes the prompt's continuation to `out` as it comes, and at the end how fast that was to `report`.

    An interruption (Ctrl-C) is reported like an end, and then raised again.

    Args:
        name: A directory or a name on the hub.
        prompt: The text to continue.
        max_new_tokens: The most tokens to draw; the stream ends earlier at the model's end-of-text token.
        out: Gets text and nothing else.
        report: Gets sentences.
        device: Where the model runs.
        dtype: Of its weights, "float32", "bfloat16" or "float16"; None as they were saved.
        tokenizer: See `text_of`.
        revision: Branch, tag or commit on the hub.
        options: Of `mamba_aot.stream`.

    Raises:
        ValueError, FileNotFoundError, ImportError: As `from_pretrained`, `text_of` and `stream`.
    """
    if dtype not in _DTYPES:
        raise ValueError(f'generate: --dtype must be float32, bfloat16 or float16, got "{dtype}"')
    directory = directory_of(name, revision)
    model = from_pretrained(directory, device=device, dtype=_DTYPES[dtype])
    text = text_of(name, directory, model.config.vocab_size, tokenizer)
    ids = text.encode(prompt)
    if ids.numel() == 0:
        raise ValueError("generate: --prompt must not be empty")
    stops = () if isinstance(text, Bytes) else _stop_tokens(directory)
    times = [perf_counter()]

    def drawn(tokens: Iterator[GeneratedToken]) -> Iterator[int]:
        for token in tokens:
            value = int(token.ids)
            times.append(perf_counter())
            if not token.finished:
                yield value

    tokens = model.stream(ids, max_new_tokens, stop_tokens=stops, **options)
    try:
        for piece in text.decode(drawn(tokens)):
            out.write(piece)
            out.flush()
    finally:
        out.write("\n")
        out.flush()
        if len(times) > 1:
            report(f"Prompt: {ids.numel()} tokens, {_rate(ids.numel(), times[:2])} tokens-per-sec")
            report(f"Generation: {len(times) - 1} tokens, {_rate(len(times) - 2, times[1:])} tokens-per-sec")
            report(f"Peak memory: {_peak_memory(device) / 1e9:.3f} GB")


def _stop_tokens(directory: Path) -> tuple[int, ...]:
    """The end-of-text tokens that a checkpoint of transformers names."""
    value = json.loads((directory / CONFIG_FILE).read_text(encoding="utf-8")).get("eos_token_id")
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (value,)


def _rate(tokens: int, times: list[float]) -> str:
    seconds = times[-1] - times[0]
    return f"{tokens / seconds:.1f}" if tokens and seconds > 0 else "-"


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Linux counts in KiB.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
