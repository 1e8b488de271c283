"""Generation from a `MambaLM`: the functions people call, and prompts kept on disk after they were read."""

import dataclasses
import json
import os
from pathlib import Path

import torch

from mamba_aot.decoding import GeneratedToken, generate, stream
from mamba_aot.kept_graphs import DecodingGraphs
from mamba_aot.model import MambaLM, State
from mamba_aot.sampling import sample
from mamba_aot.states import copy_state, named_tensors

# Dtypes of a scan's state that are asked for, not those of its own accord.
_NARROW = (torch.float16, torch.bfloat16)

__all__ = [
    "DecodingGraphs",
    "GeneratedToken",
    "copy_state",
    "generate",
    "load_state",
    "sample",
    "save_state",
    "stream",
]


def save_state(model: MambaLM, state: State, path: str | os.PathLike[str]) -> None:
    """Writes the state of `model` to a safetensors file, so that what has been read need not be read again.

    The file appears whole or not at all. It holds the model's configuration, not its weights.

    Raises:
        FileNotFoundError: There is no directory to write it into.
    """
    # Here, not above: importing the package must not cost what only saving and loading need.
    from safetensors.torch import save_file

    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"save_state: {path.parent} must be a directory, there is none")
    tensors = {
        name: (torch.view_as_real(tensor) if tensor.is_complex() else tensor).detach().cpu().contiguous()
        for name, tensor in named_tensors(state)
    }
    partial = path.with_name(path.name + ".partial")
    save_file(tensors, partial, metadata={"config": _describe(model)})
    partial.replace(path)


def load_state(model: MambaLM, path: str | os.PathLike[str], *, max_length: int | None = None) -> State:
    """Reads what `save_state` wrote, onto the device of `model`.

    Args:
        model: A model of the same configuration; that it has the same weights is for the caller to know.
        path: The file.
        max_length: Slots of the attention layers, at least as many as are in use; None for as many as the
            saved state had.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is no state of this model, or `max_length` is too small.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"load_state: {path} must be a file that save_state wrote, there is none")
    try:
        with safe_open(path, framework="pt", device=str(model.device)) as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is not a dict
    except SafetensorError as error:
        raise ValueError(f"load_state: {path} must be a safetensors file, got: {error}") from None
    if metadata.get("config") != _describe(model):
        raise ValueError(
            f"load_state: {path} must be a state of this model, it was saved from a model of another "
            "configuration"
        )
    slots = max((t.shape[2] - 1 for name, t in tensors.items() if name.endswith(".keys")), default=None)
    if max_length is not None and slots is not None:
        used = max(int(t.max()) for name, t in tensors.items() if name.endswith(".lengths"))
        if max_length < used:
            raise ValueError(f"load_state: max_length must be at least {used}, got {max_length}")
        slots = max_length
    # A model of feed-forward layers alone has no state.
    batch = next(iter(tensors.values())).shape[0] if tensors else 0
    narrow = {t.dtype for name, t in tensors.items() if name.endswith(".ssm") and t.dtype in _NARROW}
    state = model.allocate_state(batch, max_length=slots, ssm_dtype=narrow.pop() if narrow else None)
    for name, tensor in named_tensors(state):
        saved = tensors[name]
        target = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        if name.endswith((".keys", ".values")):
            kept = min(saved.shape[2], target.shape[2]) - 1
            saved, target = saved[:, :, :kept], target[:, :, :kept]
        target.copy_(saved)
    return state


def _describe(model: MambaLM) -> str:
    return json.dumps(dataclasses.asdict(model.config), sort_keys=True)
