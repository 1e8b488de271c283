"""What the tests of scans in warps of two kinds share."""

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

BRAIN: dict[str, Any] = {"dtype": torch.bfloat16, "weight_dtype": torch.bfloat16}
NOTHING = {"D": False, "z": False, "delta_bias": False, "delta_softplus": False}
SEQUENCES = ("u", "delta", "z", "B", "C")


def kernels_of(call: Callable[[], object]) -> str:
    """Names of all kernels that a call launches, when it is not the first."""
    call()
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
        call()
        torch.cuda.synchronize()
    return " ".join(event.key for event in profiler.key_averages())


def segment_of(inputs: dict[str, Any], begin: int, end: int) -> dict[str, Any]:
    """The steps from `begin` to `end` of a scan's arguments."""
    return {name: x[..., begin:end] if name in SEQUENCES else x for name, x in inputs.items()}


def in_longer_rows(inputs: dict[str, Any], length: int) -> dict[str, Any]:
    """The same arguments as views into rows of `length` steps, whose rest is NaN."""
    longer = dict(inputs)
    for name in SEQUENCES:
        steps = inputs[name].shape[-1]
        rows = inputs[name].new_full((*inputs[name].shape[:-1], length), float("nan"))
        rows[..., :steps] = inputs[name]
        longer[name] = rows[..., :steps]
    return longer
