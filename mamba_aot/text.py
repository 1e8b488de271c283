"""Between text and tokens: one token per byte, or a tokenizer that comes with a model."""

import codecs
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

# The published state-spaces models come without a tokenizer; they were trained with this one.
_STATE_SPACES_TOKENIZER = "EleutherAI/gpt-neox-20b"


class Text(Protocol):
    """How a model's text becomes tokens and back."""

    def encode(self, text: str) -> Tensor:
        """Token ids, int64 [L]."""
        ...

    def decode(self, ids: Iterable[int]) -> Iterator[str]:
        """The text of a stream of tokens, each piece as soon as its characters are whole."""
        ...


class Bytes:
    """One token per byte of UTF-8."""

    def encode(self, text: str) -> Tensor:
        """Token ids, int64 [L]. What was no UTF-8 where the text comes from is these bytes again."""
        return torch.tensor(list(text.encode(errors="surrogateescape")), dtype=torch.int64)

    def decode(self, ids: Iterable[int]) -> Iterator[str]:
        """The text of a stream of bytes; what is no UTF-8 becomes replacement characters."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for value in ids:
            if piece := decoder.decode(bytes([value])):
                yield piece
        if rest := decoder.decode(b"", final=True):
            yield rest


class Tokenized:
    """Tokens of a `tokenizers.Tokenizer`."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def encode(self, text: str) -> Tensor:
        """Token ids, int64 [L]."""
        return torch.tensor(self.tokenizer.encode(text).ids, dtype=torch.int64)

    def decode(self, ids: Iterable[int]) -> Iterator[str]:
        """The text of a stream of tokens, without special ones."""
        from tokenizers.decoders import DecodeStream

        pieces = DecodeStream(skip_special_tokens=True)
        for value in ids:
            if piece := pieces.step(self.tokenizer, value):
                yield piece


def text_of(name: str, directory: Path, vocab_size: int, tokenizer: str | None) -> Text:
    """How the model `name`, whose files are in `directory`, reads and writes text.

    Args:
        name: As the user gave it.
        directory: Where its files are.
        vocab_size: Its number of tokens.
        tokenizer: A `tokenizer.json`, or the name of a tokenizer on the hub; None for the model's own.

    Raises:
        ValueError: There is no tokenizer, or it does not fit.
        ImportError: The package tokenizers is needed and not installed.
    """
    own = directory / "tokenizer.json"
    if tokenizer is None and own.is_file():
        tokenizer = str(own)
    if tokenizer is None and vocab_size == 256:
        return Bytes()
    if tokenizer is None and name.startswith("state-spaces/"):
        tokenizer = _STATE_SPACES_TOKENIZER
    if tokenizer is None:
        raise ValueError(
            f"generate: {name} comes without a tokenizer.json and has {vocab_size} tokens, not one per byte; "
            "pass --tokenizer, a file or a name on the hub"
        )
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise ImportError(
            f'generate: {name} needs the package tokenizers: pip install "mamba-aot[hf]"'
        ) from None
    is_file = Path(tokenizer).is_file()
    if not is_file and (Path(tokenizer).exists() or tokenizer.endswith(".json")):
        raise ValueError(f"generate: --tokenizer must be a file or a name on the hub, {tokenizer} is no file")
    try:
        loaded = Tokenizer.from_file(tokenizer) if is_file else Tokenizer.from_pretrained(tokenizer)
    # The package raises nothing narrower.
    except Exception as error:
        raise ValueError(
            f"generate: {tokenizer} must be a tokenizer of the package tokenizers: {error}"
        ) from error
    if loaded.get_vocab_size() > vocab_size:
        raise ValueError(
            f"generate: the tokenizer must have at most the {vocab_size} tokens of {name}, "
            f"got {loaded.get_vocab_size()} in {tokenizer}"
        )
    return Tokenized(loaded)
