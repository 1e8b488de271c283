"""Saves a `MambaLM` to a directory and loads it back: `config.json` and `model.safetensors`, no pickle."""

import dataclasses
import json
import os
from pathlib import Path

import torch

from mamba_aot.model import MambaLM, MambaLMConfig
from mamba_aot.modules import SSMConfig

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"

# Written as `model_type`, so that a directory of another model is refused with its name.
_MODEL_TYPE = "mamba_aot"
# A tied head is the embedding's weight; it is stored once, under the embedding's name.
_TIED = "lm_head.weight"


def save_pretrained(model: MambaLM, directory: str | os.PathLike[str]) -> None:
    """Writes the configuration and the weights of `model` into `directory`, which is made if it is missing.

    Each file appears whole or not at all: it is written beside its place and then moved there.
    """
    # Here, not above: importing the package must not cost what only saving and loading need.
    from safetensors.torch import save_file

    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    if model.config.tie_embeddings:
        del weights[_TIED]
    config = {"model_type": _MODEL_TYPE, **dataclasses.asdict(model.config)}

    partial = directory / (WEIGHTS_FILE + ".partial")
    save_file(weights, partial, metadata={"format": "pt"})
    partial.replace(directory / WEIGHTS_FILE)
    partial = directory / (CONFIG_FILE + ".partial")
    partial.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    partial.replace(directory / CONFIG_FILE)


def from_pretrained(
    directory: str | os.PathLike[str],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> MambaLM:
    """Loads the model that `save_pretrained` wrote, in evaluation mode.

    Args:
        directory: Where `config.json` and `model.safetensors` are.
        device: Where the parameters go.
        dtype: Dtype of the parameters; None keeps the one they were saved in.

    Raises:
        FileNotFoundError: One of the two files is missing.
        ValueError: A key of the configuration or a weight is unknown, missing or of another shape; each is
            named.
    """
    directory = Path(directory)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (directory / name).is_file():
            raise FileNotFoundError(
                f"from_pretrained: {directory} must hold {CONFIG_FILE} and {WEIGHTS_FILE}, "
                f"{name} is missing; save_pretrained(model, directory) writes both"
            )
    config = _read_config(directory / CONFIG_FILE)
    weights = _read_weights(directory / WEIGHTS_FILE, device)

    # Built without memory, because every parameter is replaced by one from the file.
    with torch.device("meta"):
        model = MambaLM(config)
    if config.tie_embeddings and "embedding.weight" in weights:
        weights.setdefault(_TIED, weights["embedding.weight"])
    _require_equal_shapes({name: t.shape for name, t in model.state_dict().items()}, weights)
    model.load_state_dict(weights, assign=True)
    if config.tie_embeddings:
        model.lm_head.weight = model.embedding.weight
    if dtype is not None:
        model.to(dtype)
    return model.requires_grad_().eval()


def _read_config(path: Path) -> MambaLMConfig:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"from_pretrained: {path} must be JSON, got: {error}") from None
    found = values.pop("model_type", None) if isinstance(values, dict) else None
    if found != _MODEL_TYPE:
        raise ValueError(f'from_pretrained: model_type in {path} must be "{_MODEL_TYPE}", got {found!r}')
    ssm = values.pop("ssm", {})
    for place, given, known in (("", values, MambaLMConfig), ("ssm.", ssm, SSMConfig)):
        unknown = sorted(set(given) - {f.name for f in dataclasses.fields(known)})
        if unknown:
            names = ", ".join(place + name for name in unknown)
            raise ValueError(
                f"from_pretrained: {path} has keys that this version does not know: {names}; "
                "a newer mamba_aot may have written it"
            )
    return MambaLMConfig(**values, ssm=SSMConfig(**ssm))


def _read_weights(path: Path, device: torch.device | str) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is not a dict
    except SafetensorError as error:
        raise ValueError(f"from_pretrained: {path} must be a safetensors file, got: {error}") from None


def _require_equal_shapes(expected: dict[str, torch.Size], weights: dict[str, torch.Tensor]) -> None:
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
