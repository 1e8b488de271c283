"""Activation checkpointing: what a layer's backward needs is computed again instead of kept."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

Recompute = Literal["none", "selective", "full"]
RECOMPUTE: tuple[Recompute, ...] = ("none", "selective", "full")

T = TypeVar("T")


def run(mode: Recompute, function: Callable[..., T], *arguments: object) -> T:
    """Calls `function`, keeping for its backward what `mode` says.

    Args:
        mode: "none" keeps everything. "full" keeps the arguments and runs the whole function again in the
            backward. "selective" keeps the results of matrix products, attention and scans, and computes
            again what costs little beside them: convolutions, norms, gates and conversions.
        function: Without side effects and without randomness.
    """
    if mode == "none":
        return function(*arguments)
    options: dict[str, Any] = {} if mode == "full" else {"context_fn": _keep_costly}
    result = checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False, **options)
    return result  # pyright: ignore[reportReturnType], checkpoint is annotated as if it returned nothing


def _policy(_context: object, op: object, *_arguments: object, **_options: object) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in _costly() else CheckpointPolicy.PREFER_RECOMPUTE


def _costly() -> tuple[object, ...]:
    aten = torch.ops.aten
    return (
        aten.mm.default,
        aten.addmm.default,
        aten.bmm.default,
        aten._scaled_dot_product_flash_attention.default,
        aten._scaled_dot_product_flash_attention_for_cpu.default,
        aten._scaled_dot_product_efficient_attention.default,
        aten._scaled_dot_product_cudnn_attention.default,
        torch.ops.mamba_aot.selective_scan_fwd.default,
    )


_keep_costly = partial(create_selective_checkpoint_contexts, _policy)
