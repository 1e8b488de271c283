"""Calls of the scan, forward and backward, and steps of models, for compute-sanitizer.

    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck python benchmarks/gpu_sanitizer.py

The smallest shapes that take each of its kernels: whole tiles and parts of them, spans, several blocks of
states, complex states, packed sequences, constants, gates; steps of one row, of a few and of many; without
torch's cache of memory, so that each tensor has its bounds.
"""

from typing import Any

import torch

from mamba_aot import MambaLM, MambaLMConfig, SSMConfig, selective_scan_fn
from mamba_aot.testing import make_scan_inputs

COMPLEX = {"is_complex": True, "dtype": torch.bfloat16}
GATED = {"decay_gate": True, "discretization": "zoh"}
CALLS: list[dict[str, Any]] = [
    {"cu_seqlens": [700, 1, 63, 0, 400], "dim": 40, "dtype": torch.bfloat16, "initial_state": True},
    {"seq_idx": [[700, -1, 63, 400]], "dim": 40},
    {"constant": "B", "length": 129, "groups": 2, "initial_state": True},
    {**COMPLEX, "constant": "BC", "length": 64, "initial_state": True},
    {**GATED, "length": 130, "initial_state": True},
]
for layout in ("seq", "channel"):
    for initial_state in (False, True):
        options = {**COMPLEX, "layout": layout, "initial_state": initial_state}
        CALLS.append({**options, "length": 130, "dim": 40})
        CALLS.append({**options, "length": 1100, "dim": 24, "state": 24, "groups": 2})
        CALLS.append({**options, **GATED, "length": 130, "dim": 40})
        CALLS.append({**options, **GATED, "length": 1100, "dim": 24, "state": 24, "groups": 2})
    CALLS.append({**COMPLEX, "layout": layout, "length": 63, "dim": 3, "state": 3, "initial_state": True})
    packed = {"layout": layout, "cu_seqlens": [70, 1, 63, 0, 40], "dim": 12, "initial_state": True}
    CALLS.append({**COMPLEX, **packed})
    # Of few channels, and of many, by warps of two kinds.
    brain = {"dtype": torch.bfloat16, "weight_dtype": torch.bfloat16, "layout": layout, "batch": 1}
    CALLS.append({**brain, "length": 272, "dim": 1424, "state": 9})
    CALLS.append({**brain, "length": 288, "dim": 2128, "initial_state": True})
    half = {"dtype": torch.float16, "weight_dtype": torch.float16, "layout": layout}
    CALLS.append({**half, "length": 129, "dim": 24})
# Rows, d_model and dtype of the scans' states: whole blocks of channels and parts of them.
STEPS: list[tuple[int, int, torch.dtype | None]] = [
    *((rows, 272, None) for rows in (1, 5, 42, 70)),
    (42, 272, torch.bfloat16),
    (17, 1024, None),
]


def call(options: dict[str, Any]) -> None:
    """One forward and one backward."""
    inputs = make_scan_inputs(**options, device="cuda")
    tensors = {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}
    leaves = {
        name: value.requires_grad_()
        for name, value in tensors.items()
        if value.is_floating_point() or value.is_complex()
    }
    out, last_state = selective_scan_fn(**{**inputs, **leaves}, return_last_state=True)
    results = [out, last_state] if options.get("initial_state") else [out]
    torch.autograd.grad(results, [*leaves.values()], [torch.ones_like(result) for result in results])


def step(rows: int, width: int, ssm_dtype: torch.dtype | None) -> None:
    """Two steps of a model, a layer's state and its last norm with them."""
    config = MambaLMConfig(2, 300, SSMConfig(d_model=width), layers="m")
    model = MambaLM(config, device="cuda", dtype=torch.bfloat16).eval()
    ids = torch.zeros(rows, dtype=torch.int64, device="cuda")
    state = model.allocate_state(rows, ssm_dtype=ssm_dtype)
    for _ in range(2):
        model.step(ids, state)


if __name__ == "__main__":
    for options in CALLS:
        call(options)
    for given in STEPS:
        step(*given)
    torch.cuda.synchronize()
    print(f"{2 * len(CALLS)} calls, {2 * len(STEPS)} steps")
