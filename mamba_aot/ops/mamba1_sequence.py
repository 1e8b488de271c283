"""Many tokens through what a published block does between its outer projections, in one call of the host."""

import torch
from torch import Tensor

from mamba_aot.ops._boundary import raises_typed_errors, untracked


@raises_typed_errors
def mamba1_sequence(
    xz: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    x_proj: Tensor,
    dt_proj: Tensor,
    dt_bias: Tensor | None,
    A: Tensor,
    D: Tensor,
    conv_state: Tensor | None = None,
    ssm_state: Tensor | None = None,
) -> Tensor:
    """Convolution with SiLU, projection to Δ, B and C, selective scan with gate, without autograd.

    Computes what the ops and torch's products would one by one; from Python some twenty calls of them take
    longer than a GPU does with a few thousand tokens. With states, a sequence is continued: they are read,
    and overwritten in place by what it leaves.

    Args:
        xz: Sequence and gate side by side, [batch, length, 2 channels], float32, float16 or bfloat16 (float64
            too on a CPU).
        conv_weight: Taps, [channels, taps], of any floating dtype, as the bias.
        conv_bias: [channels].
        x_proj: [rank + 2 state, channels], dtype of `xz`.
        dt_proj: [channels, rank], dtype of `xz`.
        dt_bias: [channels], of any floating dtype, as A and D.
        A: Diagonal state matrix, [channels, state], real.
        D: Skip weight, [channels].
        conv_state: The steps before, oldest first, [batch, channels, taps - 1 or more], dtype of `xz`; the
            last taps - 1 count. Zero when absent.
        ssm_state: The state before the first step, [batch, channels, state], float32 (float64 beside a
            float64 `xz`) or of the dtype of `xz`; given if `conv_state` is.

    Returns:
        [batch, length, channels], dtype of `xz`. Not differentiable.

    Raises:
        TypeError: An argument is not a tensor.
        ValueError: A shape, dtype or device is not as above; no state has been written.
        RuntimeError: The GPU, its driver or a kernel image for it is missing.

    Source: Gu & Dao, "Mamba", arXiv 2312.00752, section 3.4.
    """
    op = torch.ops.mamba_aot.mamba1_sequence.default
    y = untracked(op, xz, conv_weight, conv_bias, x_proj, dt_proj, dt_bias, A, D, conv_state, ssm_state)
    for state in (conv_state, ssm_state):
        if state is not None:
            torch.autograd.graph.increment_version(state)
    return y


@torch.library.register_fake("mamba_aot::mamba1_sequence")
def _(
    xz: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    x_proj: Tensor,
    dt_proj: Tensor,
    dt_bias: Tensor | None,
    A: Tensor,
    D: Tensor,
    conv_state: Tensor | None,
    ssm_state: Tensor | None,
) -> Tensor:
    return xz.new_empty((xz.shape[0], xz.shape[1], A.shape[0]))
