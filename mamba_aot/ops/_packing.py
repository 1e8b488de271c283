"""Packed sequences: which steps are one, as `seq_idx` and `cu_seqlens` say it."""

import torch
from torch import Tensor

from mamba_aot.ops.sequence_runs import sequence_runs


def runs_of(function: str, seq_idx: Tensor, cu_seqlens: Tensor | None, x: Tensor) -> Tensor:
    """sequence_runs() of `seq_idx`, int32 [2, B, L]. Nothing waits for the device.

    Raises:
        ValueError: `seq_idx` does not fit `x` [B, D, L] in dtype, shape or device, or `cu_seqlens` is given.
    """
    if cu_seqlens is not None:
        raise ValueError(
            f"{function}: seq_idx must be None when cu_seqlens is given, got both. Pass one of them."
        )
    if seq_idx.dtype != torch.int32:
        got = str(seq_idx.dtype).removeprefix("torch.")
        raise ValueError(
            f"{function}: seq_idx must be int32 (one sequence index per step), got {got}. "
            "Convert it with .to(torch.int32)."
        )
    if x.dim() == 3 and seq_idx.shape != (x.shape[0], x.shape[2]):
        raise ValueError(
            f"{function}: seq_idx must be [batch, length] = {[x.shape[0], x.shape[2]]}, "
            f"got {list(seq_idx.shape)}"
        )
    if seq_idx.device != x.device:
        raise ValueError(
            f"{function}: seq_idx must be on {x.device} like u, got {seq_idx.device}. "
            "Move it with .to(u.device)."
        )
    return sequence_runs(seq_idx)


def check_ends(cu_seqlens: Tensor, u: Tensor) -> None:
    """Checks the values of a `cu_seqlens` on a GPU, which waits for it."""
    if cu_seqlens.is_cpu or cu_seqlens.dtype != torch.int32 or u.dim() != 3:
        return
    # The CPU half of the op reads the values; of u it only needs the length.
    nothing = u.new_empty(1, 0, u.shape[2], device="cpu", dtype=torch.float32)
    constant = nothing.new_empty(0, 0)
    torch.ops.mamba_aot.selective_scan_fwd(
        nothing, nothing, constant, constant, constant, *[None] * 6, cu_seqlens.cpu(), False, False, False
    )
