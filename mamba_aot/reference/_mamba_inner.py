"""The middle of a block, made of the references of its ops."""

import torch
from torch import Tensor

from mamba_aot.reference._conv import causal_conv1d_ref
from mamba_aot.reference._norm import rms_norm_ref
from mamba_aot.reference._scan import selective_scan_ref


def mamba_inner_ref(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
    checkpoint_lvl: int = 1,
    b_rms_weight: Tensor | None = None,
    c_rms_weight: Tensor | None = None,
    dt_rms_weight: Tensor | None = None,
    b_c_dt_rms_eps: float = 1e-6,
) -> Tensor:
    """Every step of the block's middle by itself. Shapes and source: `mamba_aot.mamba_inner_fn`.

    Results are rounded to the dtype of `xz` where a tensor of that dtype stands between two steps.
    """
    batch, _, length = xz.shape
    x, z = xz.chunk(2, dim=1)
    u = causal_conv1d_ref(x, conv1d_weight[:, 0], conv1d_bias, activation="silu")
    assert isinstance(u, Tensor)
    rank, numbers = delta_proj_weight.shape[1], A.shape[1] * (2 if A.is_complex() else 1)
    projected = u.transpose(1, 2) @ x_proj_weight.T
    low, rest = projected[..., :rank], projected[..., rank:]
    delta = low @ delta_proj_weight.T
    if dt_rms_weight is not None:
        delta = _rows_normed(delta, dt_rms_weight, b_c_dt_rms_eps)

    def weight(given: Tensor | None, bias: Tensor | None, norm: Tensor | None, rows: Tensor) -> Tensor:
        if given is not None:
            return given[None, :, :, None].expand(batch, -1, -1, length)
        if bias is not None:
            rows = rows + bias
        if norm is not None:
            rows = _rows_normed(rows, norm, b_c_dt_rms_eps)
        if A.is_complex():
            # There is no complex bfloat16.
            wide = rows.to(A.dtype.to_real())
            rows = torch.complex(*wide.unflatten(-1, (-1, 2)).unbind(-1))
        return rows.transpose(1, 2).unsqueeze(1).expand(-1, x.shape[1], -1, -1)

    B = weight(B, B_proj_bias, b_rms_weight, rest[..., :numbers])
    C = weight(C, C_proj_bias, c_rms_weight, rest[..., rest.shape[-1] - numbers :])
    y = selective_scan_ref(u, delta.transpose(1, 2), A, B, C, D, z, delta_bias, delta_softplus)
    assert isinstance(y, Tensor)
    out = y.transpose(1, 2) @ out_proj_weight.T
    return out if out_proj_bias is None else out + out_proj_bias.to(out.dtype)


def _rows_normed(rows: Tensor, weight: Tensor, eps: float) -> Tensor:
    normed = rms_norm_ref(rows, weight, eps=eps)
    assert isinstance(normed, Tensor)
    return normed
