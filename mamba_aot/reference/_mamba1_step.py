"""A token through a layer with a published block, made of the references of its ops."""

from torch import Tensor

from mamba_aot.reference._conv import causal_conv1d_update_ref
from mamba_aot.reference._norm import rms_norm_ref
from mamba_aot.reference._state_update import selective_state_update_ref


def mamba1_step_ref(
    x: Tensor,
    residual: Tensor | None,
    norm_weight: Tensor | None,
    in_proj: Tensor,
    conv_state: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    x_proj: Tensor,
    dt_proj: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    ssm_state: Tensor,
    out_proj: Tensor,
    next_norm_weight: Tensor | None = None,
    *,
    eps: float = 1e-5,
    next_eps: float = 1e-5,
    residual_in_fp32: bool = False,
) -> tuple[Tensor, Tensor]:
    """Every step by itself. Shapes: `mamba_aot.ops.mamba1_step.mamba1_step`."""

    def norm(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        y = rms_norm_ref(
            x, weight, residual=residual, eps=eps, prenorm=True, residual_in_fp32=residual_in_fp32
        )
        assert isinstance(y, tuple)
        return y

    if norm_weight is not None:
        x, residual = norm(x, residual, norm_weight, eps)
    u, z = (x @ in_proj.T).chunk(2, dim=-1)
    u = causal_conv1d_update_ref(u, conv_state, conv_weight, conv_bias, activation="silu")
    states = A.shape[1]
    low, B, C = (u @ x_proj.T).split([dt_proj.shape[1], states, states], dim=-1)
    y = selective_state_update_ref(
        ssm_state, u, low @ dt_proj.T, A, B, C, D, z=z, dt_bias=dt_bias, dt_softplus=True
    )
    out = y @ out_proj.T
    if next_norm_weight is not None:
        return norm(out, residual, next_norm_weight, next_eps)
    assert residual is not None
    return out, residual
