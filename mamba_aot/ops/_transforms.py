"""What torch.autocast and torch.vmap do to the ops, all rules on one screen.

Under autocast, sequences take its dtype, weights and states keep theirs: A, D, delta_bias and the others stay
in float32. Norms have no rule, because they take any mixture and compute in float32.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mamba_aot.ops._autocast import cast_under_autocast, promote_under_autocast
from mamba_aot.ops._batching import fold_into_batch, map_slices

_ops = torch.ops.mamba_aot

cast_under_autocast(_ops.selective_scan_fwd.default, ["u", "delta", "z"])
cast_under_autocast(_ops.causal_conv1d_fwd.default, ["x", "initial_states"])
cast_under_autocast(_ops.causal_conv1d_update.default, ["x"], like="conv_state")
cast_under_autocast(_ops.state_update.default, ["x", "dt", "z"], like="out")
promote_under_autocast(_ops.linear_recurrence_fwd.default, ["a", "b"])


def _backward_follows(tensors: Sequence[Tensor]) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _half_backward_follows(tensors: Sequence[Tensor]) -> bool:
    return tensors[0].dtype in (torch.float16, torch.bfloat16) and _backward_follows(tensors)


# Weights mapped over, and sums over the batch in a backward, make it a call for every slice. Without a batch,
# as [D, N] or pairs of that, B and C are weights too.
_scan_batch = dict(u=3, delta=3, B=4, C=4, z=3, decay_gate=3, initial_state=3)
for _op, _batched, _saves in (
    (_ops.selective_scan_fwd, _scan_batch, _backward_follows),
    (_ops.causal_conv1d_fwd, dict(x=3, initial_states=3), None),
    (_ops.rms_norm_fwd, dict(x=3, residual=3, z=3), None),
):
    torch.library.register_vmap(_op.default, fold_into_batch(_op.default, _batched, _saves))
for _op, _saves in (
    (_ops.selective_scan_bwd, None),
    (_ops.sequence_runs, None),
    (_ops.causal_conv1d_sequences, None),
    (_ops.causal_conv1d_bwd, None),
    (_ops.causal_conv1d_update, None),
    (_ops.state_update, None),
    (_ops.linear_recurrence_fwd, _half_backward_follows),
    (_ops.linear_recurrence_bwd, None),
    (_ops.rms_norm_bwd, None),
):
    torch.library.register_vmap(_op.default, map_slices(_op.default, _saves))
