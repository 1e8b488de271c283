"""What a published block does between its outer projections, as one step for autograd.

Its backward writes the gradients of both halves of xz where they belong, and adds what comes back through
x_proj while that is multiplied: neither a concatenation nor an addition.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_aot.ops._gradients import once

_ops = torch.ops.mamba_aot


def mix(
    xz: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    x_proj: Tensor,
    dt_proj: Tensor,
    dt_bias: Tensor | None,
    A: Tensor,
    D: Tensor,
) -> Tensor:
    """Convolution with SiLU, projection to Δ, B and C, selective scan with gate, for a backward to come.

    Args:
        xz: Sequence and gate side by side, [B, L, 2 D], contiguous.
        conv_weight: Taps, [D, W].
        conv_bias: [D].
        x_proj: [R + 2 N, D], dtype of `xz`.
        dt_proj: [D, R], dtype of `xz`.
        dt_bias: [D].
        A: Diagonal state matrix, [D, N], real.
        D: Skip weight, [D].

    Returns:
        [B, L, D], dtype of `xz`. It is differentiable once, and not by torch.func.

    Source: Gu & Dao, "Mamba", arXiv 2312.00752, section 3.4.
    """
    result = _Mixing.apply(xz, conv_weight, conv_bias, x_proj, dt_proj, dt_bias, A, D)
    assert isinstance(result, Tensor)
    return result


class _Mixing(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        xz: Tensor,
        conv_weight: Tensor,
        conv_bias: Tensor | None,
        x_proj: Tensor,
        dt_proj: Tensor,
        dt_bias: Tensor | None,
        A: Tensor,
        D: Tensor,
    ) -> Tensor:
        # Everything has its dtype and autograd looks away: rules of both, which are Python code, have no say.
        with torch._C._DisableAutocast(), torch._C._AutoDispatchBelowAutograd():
            x, z = _halves(xz)
            u = _ops.causal_conv1d_fwd.default(x, conv_weight, conv_bias, None, None, True)
            low = F.linear(u.transpose(1, 2), x_proj)  # [B, L, R + 2 N]
            delta = F.linear(low[..., : dt_proj.shape[1]], dt_proj).transpose(1, 2)
            B, C = _weights(low, A)
            inputs = (u, delta, A, B, C, D, z, dt_bias)
            options = (None, None, None, None, True, False, True)
            y, _, states = _ops.selective_scan_fwd.default(*inputs, *options)
        ctx.save_for_backward(
            xz, conv_weight, conv_bias, x_proj, dt_proj, dt_bias, A, D, u, low, delta, states
        )
        return y.transpose(1, 2)

    @staticmethod
    @once("Mamba1")
    def backward(ctx, dy: Tensor) -> tuple[Tensor | None, ...]:
        xz, conv_weight, conv_bias, x_proj, dt_proj, dt_bias, A, D, u, low, delta, states = ctx.saved_tensors
        rank = dt_proj.shape[1]
        x, z = _halves(xz)
        B, C = _weights(low, A)
        dxz = torch.empty_like(xz)
        dx, dz = _halves(dxz)
        inputs = (u, delta, A, B, C, D, z, dt_bias)
        # The gradient of delta is over before that of x takes its place.
        ddelta = dx
        du, dA, dB, dC, dD, ddt_bias, _, _ = _ops.selective_scan_bwd_into.default(
            dy.transpose(1, 2), None, *inputs, None, None, None, states, True, False, ddelta, dz
        )
        dlow = torch.empty_like(low)
        dlow_rows, low_rows, ddelta_rows, du_rows = map(_rows, (dlow, low, ddelta.mT, du.mT))
        torch.mm(ddelta_rows, dt_proj, out=dlow_rows[:, :rank])
        ddt_proj = ddelta_rows.T @ low_rows[:, :rank]
        for gradient, part in zip((dB, dC), _weights(dlow, A), strict=True):
            part.copy_(gradient)
        du_rows.addmm_(dlow_rows, x_proj)
        dconv_weight, dconv_bias, _ = _ops.causal_conv1d_bwd_into.default(
            du, x, conv_weight, conv_bias, None, None, True, dx
        )
        return (
            dxz,
            dconv_weight,
            None if conv_bias is None else dconv_bias,
            dlow_rows.T @ _rows(u.mT),
            ddt_proj,
            None if dt_bias is None else ddt_bias,
            dA,
            dD,
        )


def _halves(xz: Tensor) -> tuple[Tensor, Tensor]:
    """x and z as the ops take them, [B, D, L]."""
    x, z = xz.transpose(1, 2).chunk(2, dim=1)
    return x, z


def _weights(low: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
    """B and C as the scan takes them, [B, 1, N, L]."""
    states = A.shape[1]
    B, C = low[..., -2 * states :].transpose(1, 2).unsqueeze(1).split(states, dim=2)
    return B, C


def _rows(sequence: Tensor) -> Tensor:
    """[B, L, width] as [B L, width], which lie like that already."""
    return sequence.view(-1, sequence.shape[-1])
