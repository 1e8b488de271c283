"""What an op computes at the size that is timed, held to float64 before any time is reported."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mamba_aot.benchmark import cases
from mamba_aot.benchmark.shapes import Work
from mamba_aot.testing import assert_close_to_fp64, compare_with_reference

# Steps up to which the reference is quick enough. Beyond, the float64 kernels of the CPU stand for it, which
# the tests hold to it.
_REFERENCE_STEPS = 4096
# Longer sequences are checked at this length, beyond which the same programs take more of the same steps and
# float64 on a CPU takes minutes.
_CHECKED_STEPS = 2**17


def check(work: Work, device: torch.device) -> dict[str, float]:
    """Runs the op with all channels, forward and backward, and compares the sampled ones.

    Returns:
        Largest error of "forward" (and "backward", where there is one), each as a share of the largest value.

    Raises:
        AssertionError: A result is further from float64 than the rule of `mamba_aot.testing` allows.
    """
    work = work.no_longer_than(_CHECKED_STEPS)
    op, where = cases.op_of(work), cases.positions(work).to(device)
    truth = op.reference if work.dims.get("L", 1) <= _REFERENCE_STEPS else op.function

    def at_full_size(**leaves: Any) -> tuple[Tensor, ...]:
        large = cases.enlarge(work, leaves, device)
        results = _results(op.function, op.written, large)
        return tuple(result.index_select(1, where).cpu() for result in results)

    def alone(**leaves: Any) -> tuple[Tensor, ...]:
        return _results(truth, op.written, leaves)

    errors: dict[str, float] = {}
    compared = compare_with_reference(at_full_size, alone, cases.sample(work), backward=not op.written)
    for name, found in compared.items():
        assert_close_to_fp64(
            found.out, found.eager, found.truth, f"{work.op} {work.label}: {name}", found.nudged
        )
        direction = "backward" if name.startswith("grad") else "forward"
        largest = found.truth.abs().max().item()
        error = (found.out.to(found.truth.dtype) - found.truth).abs().max().item() / max(largest, 1e-300)
        errors[direction] = max(errors.get(direction, 0.0), error)
    return errors


def _results(function: Callable[..., Any], written: str, inputs: dict[str, Any]) -> tuple[Tensor, ...]:
    """What the function returns, and after it what it wrote."""
    out = function(**inputs)
    outputs = tuple(out) if isinstance(out, tuple | list) else (out,)
    return (*outputs, inputs[written]) if written else outputs
