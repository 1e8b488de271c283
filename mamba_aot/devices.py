"""The device that a command was asked to run on."""

import torch


def require_device(name: str, command: str) -> torch.device:
    """The device "cpu" or "cuda"; raises ValueError for any other and for a GPU that is not there."""
    if name not in ("cpu", "cuda"):
        raise ValueError(f'{command}: --device must be "cpu" or "cuda", got "{name}"')
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"{command}: --device cuda needs a GPU that torch can use, torch {torch.__version__} finds none; "
            "pass --device cpu, or see what `mamba-aot doctor` says"
        )
    # With its index, as tensors on it have it.
    return torch.device(name, torch.cuda.current_device()) if name == "cuda" else torch.device(name)
