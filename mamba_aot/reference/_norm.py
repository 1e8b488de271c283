"""The norms, with a residual or a gate."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_aot.reference._common import wide


def layer_norm_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    eps: float = 1e-6,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    is_rms_norm: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Adds the residual, then norms rows. Shapes and source: `mamba_aot.layer_norm_fn`."""
    total = wide(x, x.dtype)
    if residual is not None:
        total = total + wide(residual, x.dtype)
    out = _norm(total, wide(weight, x.dtype), bias, eps, x.shape[-1], is_rms_norm).to(x.dtype)
    sum_dtype = total.dtype if residual_in_fp32 else x.dtype if residual is None else residual.dtype
    return (out, total.to(sum_dtype, copy=True)) if prenorm else out


def rms_norm_ref(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None, **options: Any
) -> Tensor | tuple[Tensor, Tensor]:
    """`layer_norm_ref` without the mean. Arguments and source: `mamba_aot.rms_norm_fn`."""
    return layer_norm_ref(x, weight, bias, residual, is_rms_norm=True, **options)


def layernorm_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None = None,
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
    is_rms_norm: bool = False,
) -> Tensor:
    """Norms groups of channels, before or after the gate. Source: `mamba_aot.layernorm_fn`."""
    u = wide(x, x.dtype)
    gate = None if z is None else F.silu(wide(z, x.dtype))
    if gate is not None and not norm_before_gate:
        u = u * gate
    size = x.shape[-1] if group_size is None else group_size
    y = _norm(u, wide(weight, x.dtype), bias, eps, size, is_rms_norm)
    if gate is not None and norm_before_gate:
        y = y * gate
    return y.to(x.dtype)


def rmsnorm_ref(
    x: Tensor, weight: Tensor, bias: Tensor | None, z: Tensor | None = None, **options: Any
) -> Tensor:
    """`layernorm_ref` without the mean. Arguments and source: `mamba_aot.rmsnorm_fn`."""
    return layernorm_ref(x, weight, bias, z, is_rms_norm=True, **options)


def _norm(
    u: Tensor, weight: Tensor, bias: Tensor | None, eps: float, group_size: int, is_rms_norm: bool
) -> Tensor:
    rows = u.unflatten(-1, (-1, group_size)) if group_size else u
    if not is_rms_norm:
        rows = rows - rows.mean(-1, keepdim=True)
    normed = (rows * torch.rsqrt(rows.square().mean(-1, keepdim=True) + eps)).reshape(u.shape)
    y = normed * weight
    return y if bias is None else y + bias.to(y.dtype)
