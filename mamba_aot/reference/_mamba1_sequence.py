"""What a published block does between its outer projections, made of the references of its ops."""

from torch import Tensor

from mamba_aot.reference._conv import causal_conv1d_ref
from mamba_aot.reference._scan import selective_scan_ref


def mamba1_sequence_ref(
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
    """Every step by itself. Shapes: `mamba_aot.ops.mamba1_sequence.mamba1_sequence`."""
    states, rank = A.shape[1], dt_proj.shape[1]
    x, z = xz.transpose(1, 2).chunk(2, dim=1)
    kept = None if conv_state is None else conv_state[..., conv_state.shape[2] - (conv_weight.shape[1] - 1) :]
    u, last_steps = causal_conv1d_ref(
        x, conv_weight, conv_bias, initial_states=kept, return_final_states=True, activation="silu"
    )
    low, B, C = (u.transpose(1, 2) @ x_proj.T).split([rank, states, states], dim=-1)
    y, last_state = selective_scan_ref(
        u,
        (low @ dt_proj.T).transpose(1, 2),
        A,
        B.transpose(1, 2),
        C.transpose(1, 2),
        D,
        z,
        dt_bias,
        True,
        True,
        initial_state=ssm_state,
    )
    if kept is not None and ssm_state is not None:
        kept.copy_(last_steps)
        ssm_state.copy_(last_state)
    return y.transpose(1, 2)
