"""The norms of a model, each alone or fused with the addition to the residual that comes before it."""

import torch
from torch import Tensor, nn

from mamba_aot.ops.rms_norm import layer_norm_fn, rms_norm_fn


class RMSNorm(nn.Module):
    """Divides [..., width] by its root mean square, in float32 or wider, and scales by a weight."""

    def __init__(
        self,
        width: int,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width, device=device, dtype=dtype))

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """[..., width] to [..., width], same dtype; with a residual the norm of their sum."""
        y = rms_norm_fn(x, self.weight, residual=residual, eps=self.eps)
        assert isinstance(y, Tensor)
        return y

    def add(self, x: Tensor, residual: Tensor | None, in_fp32: bool = False) -> tuple[Tensor, Tensor]:
        """The norm of x + residual, and that sum; without a residual the sum is `x`.

        Args:
            x: [..., width].
            residual: Shape of `x`.
            in_fp32: Whether the sum is float32, whatever dtype goes in.
        """
        y = rms_norm_fn(
            x, self.weight, residual=residual, eps=self.eps, prenorm=True, residual_in_fp32=in_fp32
        )
        assert isinstance(y, tuple)
        return y

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps}"


class LayerNorm(nn.Module):
    """Makes [..., width] of mean 0 and variance 1, in float32 or wider; then a weight and a bias."""

    def __init__(
        self,
        width: int,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(width, device=device, dtype=dtype))

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """[..., width] to [..., width], same dtype; with a residual the norm of their sum."""
        y = layer_norm_fn(x, self.weight, self.bias, residual=residual, eps=self.eps)
        assert isinstance(y, Tensor)
        return y

    def add(self, x: Tensor, residual: Tensor | None, in_fp32: bool = False) -> tuple[Tensor, Tensor]:
        """The norm of x + residual, and that sum; as in `RMSNorm.add`."""
        y = layer_norm_fn(
            x, self.weight, self.bias, residual=residual, eps=self.eps, prenorm=True, residual_in_fp32=in_fp32
        )
        assert isinstance(y, tuple)
        return y

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps}"
