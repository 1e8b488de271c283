"""Random numbers that are the same on every device and dtype."""

import math
from typing import Any

import torch
from torch import Tensor


def is_numeric(value: Any) -> bool:
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


class Random:
    """Draws on the CPU in float64, so that a seed means the same numbers on every device and dtype."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, of: torch.dtype = torch.float64) -> Tensor:
        dtype = torch.complex128 if of.is_complex else torch.float64
        return torch.randn(shape, generator=self.generator, dtype=dtype)

    def coarse(self, *shape: int, of: torch.dtype = torch.float64) -> Tensor:
        """Normal numbers in steps of 1/32, which every dtype holds exactly."""
        values = 32 * self.normal(*shape, of=of)
        pairs = torch.view_as_real(values) if of.is_complex else values
        pairs = pairs.round() / 32
        return torch.view_as_complex(pairs) if of.is_complex else pairs

    def nudged(self, value: Any, step: float) -> Any:
        """`value` with every element made larger or smaller by a factor of 1 ± `step`."""
        if not is_numeric(value):
            return value
        signs = 2 * torch.randint(0, 2, value.shape, generator=self.generator, dtype=torch.float64) - 1
        return value * (1 + step * signs.to(value.device))

    def log_uniform(self, low: float, high: float, *shape: int) -> Tensor:
        uniform = torch.rand(shape, generator=self.generator, dtype=torch.float64)
        return torch.exp(math.log(low) + (math.log(high) - math.log(low)) * uniform)
