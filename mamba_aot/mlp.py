"""The gated MLP, for models that put one between their sequence layers."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class MLPConfig:
    """What a `GatedMLP` is made of.

    Attributes:
        d_hidden: Hidden channels; None for 8 / 3 of d_model, rounded up to a multiple of 128.
        bias: Whether the two projections have a bias.
    """

    d_hidden: int | None = None
    bias: bool = False

    def __post_init__(self) -> None:
        if self.d_hidden is not None and (not isinstance(self.d_hidden, int) or self.d_hidden < 1):
            raise ValueError(f"MLPConfig: d_hidden must be an integer of at least 1, got {self.d_hidden!r}")


class GatedMLP(nn.Module):
    """fc2(y silu(gate)), with y and gate the halves of fc1(x).

    Args:
        d_model: Width of what goes in and out.
        config: Hidden channels and options.
        device: Where the parameters live.
        dtype: Dtype of the parameters.

    Source: names of `mamba_ssm.modules.mlp.GatedMLP`; Shazeer, "GLU Variants Improve Transformer",
    arXiv 2002.05202.
    """

    def __init__(
        self,
        d_model: int,
        config: MLPConfig,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        hidden = config.d_hidden or -(-8 * d_model // (3 * 128)) * 128
        self.fc1 = nn.Linear(d_model, 2 * hidden, bias=config.bias, device=device, dtype=dtype)
        self.fc2 = nn.Linear(hidden, d_model, bias=config.bias, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-normal weights, zero biases."""
        for projection in (self.fc1, self.fc2):
            nn.init.xavier_normal_(projection.weight)
            if projection.bias is not None:
                nn.init.zeros_(projection.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., d_model] to [..., d_model]."""
        y, gate = self.fc1(x).chunk(2, dim=-1)
        return self.fc2(y * F.silu(gate))
