"""Where the runs of equal indices of packed rows start and end."""

import torch
from torch import Tensor

from mamba_aot.ops._boundary import raises_typed_errors


@raises_typed_errors
def sequence_runs(seq_idx: Tensor) -> Tensor:
    """Of each step, where its run of steps with one index starts and where that ends.

    Args:
        seq_idx: [batch, length], int32; negative for padding, all of which has one index.

    Returns:
        int32 [2, batch, length]: the first step of the run, and the one after its last; of padding, -1 -
        start and -end. An index that returns after another one begins a new run.

    Raises:
        ValueError: `seq_idx` is not int32 or not [batch, length].
    """
    return torch.ops.mamba_aot.sequence_runs(seq_idx)


@torch.library.register_fake("mamba_aot::sequence_runs")
def _(seq_idx: Tensor) -> Tensor:
    return seq_idx.new_empty(2, *seq_idx.shape)
