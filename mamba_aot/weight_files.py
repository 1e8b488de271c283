"""Weights in files: safetensors, whole or in shards, and pickles of published models; and where they are."""

import json
import os
import pickle
import re
from pathlib import Path

import torch
from torch import Tensor

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
_INDEX_FILE = "model.safetensors.index.json"
_PICKLE_FILE = "pytorch_model.bin"
_PICKLE_INDEX_FILE = "pytorch_model.bin.index.json"


def directory_of(name: str | os.PathLike[str], revision: str | None) -> Path:
    """The local directory of a checkpoint: the one named, or one that a hub name was fetched into.

    Raises:
        FileNotFoundError: There is no such directory, and `name` is no hub name either.
        ImportError: `name` is one, and huggingface_hub is not installed.
    """
    path = Path(name)
    if path.is_dir():
        return path
    if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or name.startswith("."):
        raise FileNotFoundError(
            f'from_pretrained: {path} must be a directory, or a name on the hub like "owner/model"; '
            "there is no such directory"
        )
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ImportError(
            f"from_pretrained: there is no directory {name}, and to fetch it from the hub huggingface_hub "
            'must be installed: pip install "mamba-aot[hf]"'
        ) from None
    small = ["config.json", "tokenizer.json", "*.index.json"]
    found = Path(snapshot_download(name, revision=revision, allow_patterns=[*small, "model*.safetensors"]))
    if not any(found.glob("*.safetensors")):
        found = Path(
            snapshot_download(name, revision=revision, allow_patterns=[*small, "pytorch_model*.bin"])
        )
    return found


def read_weights(directory: Path, device: torch.device | str) -> dict[str, Tensor]:
    """Every weight in a directory, by its name there.

    Raises:
        FileNotFoundError: There are no weights, or a shard is missing.
        ValueError: A file is damaged, or a pickle that holds more than tensors.
    """
    for name, index in ((WEIGHTS_FILE, _INDEX_FILE), (_PICKLE_FILE, _PICKLE_INDEX_FILE)):
        if (directory / name).is_file():
            files = [directory / name]
        elif (directory / index).is_file():
            files = _shards(directory / index)
        else:
            continue
        read = _read_safetensors if name == WEIGHTS_FILE else _read_pickle
        weights: dict[str, Tensor] = {}
        for file in files:
            weights |= read(file, device)
        return weights
    raise FileNotFoundError(
        f"from_pretrained: {directory} must hold {CONFIG_FILE} and {WEIGHTS_FILE}, "
        f"{WEIGHTS_FILE} is missing (as are {_INDEX_FILE} and {_PICKLE_FILE}); "
        "save_pretrained(model, directory) writes both"
    )


def write_weights(weights: dict[str, Tensor], directory: Path, max_shard_size: int) -> None:
    """Writes weights as safetensors, in shards if they are more than `max_shard_size` bytes.

    Each file is written beside its place and then moved there. Files of an earlier save that would be read
    instead, or not at all, are removed.
    """
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in weights.items():
        if shards[-1] and size + tensor.nbytes > max_shard_size:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    if len(shards) == 1:
        names = [WEIGHTS_FILE]
    else:
        names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        _write_safetensors(shard, directory / name)
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(tensor.nbytes for tensor in weights.values())},
            "weight_map": {key: name for name, shard in zip(names, shards, strict=True) for key in shard},
        }
        write_text(json.dumps(index, indent=2) + "\n", directory / _INDEX_FILE)
        names.append(_INDEX_FILE)
    for stale in [*directory.glob("model*.safetensors"), directory / _INDEX_FILE]:
        if stale.name not in names:
            stale.unlink(missing_ok=True)


def write_text(text: str, path: Path) -> None:
    """Writes a file that appears whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _write_safetensors(weights: dict[str, Tensor], path: Path) -> None:
    # Here, not above: importing the package must not cost what only saving and loading need.
    from safetensors.torch import save_file

    partial = path.with_name(path.name + ".partial")
    save_file(weights, partial, metadata={"format": "pt"})
    partial.replace(path)


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(
            f"from_pretrained: {index} must be JSON with a weight_map from weights to files, got: {error!r}"
        ) from None
    files = [index.parent / name for name in names]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"from_pretrained: {index} names {file.name}, which is missing")
    return files


def _read_safetensors(path: Path, device: torch.device | str) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is not a dict
    except SafetensorError as error:
        raise ValueError(f"from_pretrained: {path} must be a safetensors file, got: {error}") from None


def _read_pickle(path: Path, device: torch.device | str) -> dict[str, Tensor]:
    try:
        weights = torch.load(path, map_location=device, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"from_pretrained: {path} must be a pickle of tensors alone, which is all that is read from one, "
            f"got: {error}"
        ) from None
    if not isinstance(weights, dict) or not all(isinstance(tensor, Tensor) for tensor in weights.values()):
        raise ValueError(f"from_pretrained: {path} must hold a dict of tensors, got {type(weights).__name__}")
    return weights
