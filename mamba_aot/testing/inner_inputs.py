"""Arguments for `mamba_inner_fn`, drawn from a seed."""

from typing import Any

import torch

from mamba_aot.testing._random import Random
from mamba_aot.testing.inputs import make_scan_inputs, place


def make_mamba_inner_inputs(
    batch: int = 2,
    dim: int = 8,
    length: int = 33,
    state: int = 4,
    *,
    rank: int = 3,
    d_model: int = 6,
    width: int = 4,
    dtype: torch.dtype = torch.float32,
    weight_dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    seed: int = 0,
    layout: str = "seq",
    is_complex: bool = False,
    constant_B: bool = False,
    constant_C: bool = False,
    conv_bias: bool = True,
    out_bias: bool = True,
    D: bool = True,
    delta_bias: bool = True,
    delta_softplus: bool = True,
    biases: bool = False,
    norms: bool = False,
    checkpoint_lvl: int = 1,
) -> dict[str, Any]:
    """Arguments of `mamba_inner_fn`: projections that keep the size of what goes in, A as a scan has it.

    Args:
        weight_dtype: Of everything but `xz` and the projections, when None as in `make_scan_inputs`.
        layout: Memory of `xz`, as in `make_scan_inputs`.
        constant_B: Whether B, as `constant_C` C, is given, [dim, state].
        biases: Whether projected B and C have a bias.
        norms: Whether delta and projected B and C are normed.
    """
    scan = make_scan_inputs(
        batch,
        dim,
        length,
        state,
        dtype=dtype,
        weight_dtype=weight_dtype,
        device=device,
        seed=seed,
        is_complex=is_complex,
        delta_softplus=delta_softplus,
    )
    A, bias = scan["A"], scan["delta_bias"]
    random = Random(seed + 1)
    numbers = state * (2 if is_complex else 1)
    # Without softplus a step size may be negative, and then a state grows: slowly, if it is small.
    step = 1.0 if delta_softplus else 1e-3
    projected = [numbers for constant in (constant_B, constant_C) if not constant]

    def projection(rows: int, columns: int) -> torch.Tensor:
        values = random.normal(rows, columns) / max(1, columns) ** 0.5
        return values.to(dtype).to(device)

    def vector(size: int, center: float = 0.0) -> torch.Tensor:
        return (center + 0.5 * random.normal(size)).to(bias.dtype).to(device)

    def constant() -> torch.Tensor:
        return random.normal(dim, state, of=A.dtype).to(A.dtype).to(device)

    return {
        "xz": place(random.normal(batch, 2 * dim, length).to(dtype).to(device), layout),
        "conv1d_weight": random.normal(dim, 1, width).to(bias.dtype).to(device),
        "conv1d_bias": vector(dim) if conv_bias else None,
        "x_proj_weight": projection(rank + sum(projected), dim),
        "delta_proj_weight": step * projection(dim, rank),
        "out_proj_weight": projection(d_model, dim),
        "out_proj_bias": vector(d_model) if out_bias else None,
        "A": A,
        "B": constant() if constant_B else None,
        "C": constant() if constant_C else None,
        "D": scan["D"] if D else None,
        "delta_bias": bias if delta_bias else None,
        "B_proj_bias": vector(numbers) if biases and not constant_B else None,
        "C_proj_bias": vector(numbers) if biases and not constant_C else None,
        "delta_softplus": delta_softplus,
        "checkpoint_lvl": checkpoint_lvl,
        "b_rms_weight": vector(numbers, 1.0) if norms and not constant_B else None,
        "c_rms_weight": vector(numbers, 1.0) if norms and not constant_C else None,
        "dt_rms_weight": step * vector(dim, 1.0) if norms else None,
    }
