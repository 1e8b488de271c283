"""Saves a `MambaLM` to a directory and loads it back, in this package's layout or a published one."""

import json
import os
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from mamba_aot.config import MambaLMConfig
from mamba_aot.hf_layout import Layout, own_name, public_name, read_config, why_not, write_config
from mamba_aot.model import MambaLM
from mamba_aot.weight_files import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    directory_of,
    read_weights,
    write_text,
    write_weights,
)

# A tied head is the embedding's weight; it is stored once, under the embedding's name.
_TIED = "lm_head.weight"


def save_pretrained(
    model: MambaLM,
    directory: str | os.PathLike[str],
    *,
    layout: Layout | Literal["auto"] = "auto",
    max_shard_size: int = 5 * 2**30,
) -> None:
    """Writes the configuration and the weights of `model` into `directory`, which is made if it is missing.

    Each file appears whole or not at all: it is written beside its place and then moved there.

    Args:
        model: The model.
        directory: Gets `config.json` and `model.safetensors`, or shards of it and their index.
        layout: "transformers" for `MambaForCausalLM` and `FalconMambaForCausalLM`, "mamba_ssm" for
            `MambaLMHeadModel`, "mamba_aot" for this package alone; "auto" takes transformers' if that can
            hold the model.
        max_shard_size: Bytes of a file.

    Raises:
        ValueError: The layout can't hold this model.
    """
    if layout == "auto":
        layout = "mamba_aot" if why_not(model.config, "transformers") else "transformers"
    config = write_config(model.config, layout)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    weights = {
        public_name(name, layout): tensor.detach().cpu().contiguous()
        for name, tensor in model.state_dict().items()
        if not (model.config.tie_embeddings and name == _TIED)
    }
    write_weights(weights, directory, max_shard_size)
    write_text(json.dumps(config, indent=2) + "\n", directory / CONFIG_FILE)


def from_pretrained(
    name: str | os.PathLike[str],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    revision: str | None = None,
) -> MambaLM:
    """Loads a model, in evaluation mode.

    Args:
        name: A directory that holds `config.json` and `model.safetensors` (or shards of it, or a
            `pytorch_model.bin`), in one of the layouts of `save_pretrained`; or the name of a model on the
            Hugging Face hub, which is fetched into its cache.
        device: Where the parameters go.
        dtype: Dtype of the parameters; None keeps the one they were saved in.
        revision: Branch, tag or commit on the hub.

    Raises:
        FileNotFoundError: A file is missing.
        ImportError: `name` is on the hub, and huggingface_hub is not installed.
        ValueError: A key of the configuration or a weight is unknown, missing or of another shape; each is
            named.
    """
    directory = directory_of(name, revision)
    if not (directory / CONFIG_FILE).is_file():
        raise FileNotFoundError(
            f"from_pretrained: {directory} must hold {CONFIG_FILE} and {WEIGHTS_FILE}, "
            f"{CONFIG_FILE} is missing; save_pretrained(model, directory) writes both"
        )
    path = directory / CONFIG_FILE
    try:
        config, layout = _read_config(path)
        # Built without memory, because every parameter is replaced by one from the file.
        with torch.device("meta"):
            model = MambaLM(config)
    except (TypeError, ZeroDivisionError) as error:
        raise ValueError(
            f"from_pretrained: a value in {path} is of the wrong type, or 0 where none may be: {error}"
        ) from None
    weights = {own_name(key, layout): tensor for key, tensor in read_weights(directory, device).items()}
    if config.tie_embeddings and "embedding.weight" in weights:
        _tie(weights)
    _require_equal_shapes({key: t.shape for key, t in model.state_dict().items()}, weights)
    model.load_state_dict(weights, assign=True)
    if config.tie_embeddings:
        model.lm_head.weight = model.embedding.weight
    if dtype is not None:
        model.to(dtype)
    return model.requires_grad_().eval()


def _read_config(path: Path) -> tuple[MambaLMConfig, Layout]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"from_pretrained: {path} must be JSON, got: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"from_pretrained: {path} must be a JSON object, got {type(values).__name__}")
    return read_config(values, path)


def _tie(weights: dict[str, Tensor]) -> None:
    """Gives the head the embedding's weight; the published pickles hold it twice."""
    embedding = weights["embedding.weight"]
    head = weights.setdefault(_TIED, embedding)
    if head is not embedding and not torch.equal(head, embedding):
        raise ValueError(
            f"from_pretrained: the configuration ties the head to the embedding, the weights hold two "
            f"different ones; untie them in {CONFIG_FILE}"
        )


def _require_equal_shapes(expected: dict[str, torch.Size], weights: dict[str, Tensor]) -> None:
    complaints = [f"{name} is unknown" for name in sorted(set(weights) - set(expected))]
    complaints += [f"{name} is missing" for name in sorted(set(expected) - set(weights))]
    complaints += [
        f"{name} must be {list(expected[name])}, got {list(weights[name].shape)}"
        for name in sorted(set(expected) & set(weights))
        if expected[name] != weights[name].shape
    ]
    if complaints:
        raise ValueError(
            f"from_pretrained: the weights must be those of the model that {CONFIG_FILE} describes: "
            + "; ".join(complaints)
        )
