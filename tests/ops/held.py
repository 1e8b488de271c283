"""How a case of cases.py is held to float64."""

import cases
import torch

from mamba_aot.testing import assert_close_to_fp64

DOUBLE = (torch.float64, torch.complex128)


def hold(case: cases.Case, device: str) -> None:
    for name, compared in case.compare(device).items():
        if case.dtype in DOUBLE:
            # The rule needs a truth that is wider than what it judges; a wrong formula shows without.
            step = max(1e-11, 4 * torch.finfo(compared.out.dtype).eps)
            size = compared.truth.abs().amax().item() if compared.truth.numel() else 0.0
            torch.testing.assert_close(compared.out, compared.eager, rtol=0, atol=step * max(1.0, size))
        else:
            assert_close_to_fp64(compared.out, compared.eager, compared.truth, name, compared.nudged)
