"""Comparisons of results with the truth.

The rule of closeness has no constants to tune. Against the truth, which is the eager function in float64 on
the same values, a result may be off by twice the error that the eager function makes in the result's own
precision, and by a rounding band:

    max|out - truth| ≤ 2 max|eager - truth| + eps(result) max|truth| + max|nudged - truth|

Twice, because two right orders of one sum differ by that much. The band, because eager's error can be small
by luck: one rounding step of the result's dtype where it is largest, and what becomes of the truth when every
input moves up or down by one rounding step of the arithmetic (float32, or float64 for float64 inputs), which
shows how much of the result is cancellation.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mamba_aot.testing._random import Random, is_numeric

# Directions that inputs are nudged in: enough that a sum is not left where it was in all of them by chance.
_NUDGES = 4


@dataclass(frozen=True)
class Closeness:
    """How far a result is from the truth, and what the rule allows it: `eager` and the rest of the band."""

    error: float
    eager: float
    rounding: float
    nudge: float

    @property
    def limit(self) -> float:
        return 2 * self.eager + self.rounding + self.nudge

    @property
    def share(self) -> float:
        """The error as a share of the limit, NaN if the result has a NaN."""
        return self.error / self.limit if self.limit else (math.inf if self.error else 0.0)


def measure_against_fp64(
    out: Tensor, ref_same_precision: Tensor, ref_fp64: Tensor, ref_nudged: Sequence[Tensor] = ()
) -> Closeness:
    """Measures `out` by the rule at the top of this file. Arguments as in `assert_close_to_fp64`."""
    if out.numel() == 0:
        return Closeness(0.0, 0.0, 0.0, 0.0)
    truth = ref_fp64.detach()
    return Closeness(
        error=_largest(out.detach().to(truth.dtype) - truth),
        eager=_largest(ref_same_precision.detach().to(truth.dtype) - truth),
        rounding=torch.finfo(out.dtype).eps * _largest(truth),
        nudge=max((_largest(nudged.detach() - truth) for nudged in ref_nudged), default=0.0),
    )


def assert_close_to_fp64(
    out: Tensor,
    ref_same_precision: Tensor,
    ref_fp64: Tensor,
    name: str,
    ref_nudged: Sequence[Tensor] = (),
) -> None:
    """Holds `out` to the rule at the top of this file.

    Args:
        out: The result under test.
        ref_same_precision: What an independent eager implementation gives in the same dtypes.
        ref_fp64: The truth: the same computation on the same values, widened to float64.
        name: What the message calls the result.
        ref_nudged: The truth for inputs nudged in different directions; the largest change counts.

    Raises:
        AssertionError: Shape or dtype differ from the reference's, or the error is over the limit.
    """
    got, wanted = (tuple(out.shape), out.dtype), (tuple(ref_same_precision.shape), ref_same_precision.dtype)
    if got != wanted:
        raise AssertionError(f"{name}: shape and dtype must be {wanted}, got {got}")
    found = measure_against_fp64(out, ref_same_precision, ref_fp64, ref_nudged)
    if found.error <= found.limit:
        return
    wide, truth = out.detach().to(ref_fp64.dtype), ref_fp64.detach()
    errors = (wide - truth).abs()
    worst = int(torch.where(errors.isnan(), math.inf, errors).argmax())
    index = tuple(int(i) for i in torch.unravel_index(torch.tensor(worst), out.shape))
    over = int((~(errors <= found.limit)).sum())
    raise AssertionError(
        f"{name}: error against float64 must be at most 2 x eager's + rounding + nudge = "
        f"2 x {found.eager:.3g} + {found.rounding:.3g} + {found.nudge:.3g} = {found.limit:.3g}, "
        f"got {errors[index].item():.3g} at {index}: "
        f"{wide[index].item():.8g} instead of {truth[index].item():.8g}; {over} of {out.numel()} elements "
        f"are over, dtype {out.dtype}"
    )


def assert_matches_reference(
    function: Callable[..., Any],
    reference: Callable[..., Any],
    inputs: Mapping[str, Any],
    *,
    backward: bool = True,
    written: Sequence[str] = (),
    seed: int = 0,
) -> None:
    """Holds every result, and every gradient of a random weighting of them, to the rule above.

    Args:
        function: The function under test, returning a tensor or a tuple of tensors.
        reference: The eager function with the same arguments, as in `mamba_aot.reference`.
        inputs: Keyword arguments, which stay as they are.
        backward: Whether every floating or complex tensor gets a gradient, and the gradients are compared.
        written: Names of arguments the functions write into; what is written is compared as well.
        seed: Of the weighting.
    """
    for name, compared in compare_with_reference(
        function, reference, inputs, backward=backward, written=written, seed=seed
    ).items():
        assert_close_to_fp64(compared.out, compared.eager, compared.truth, name, compared.nudged)


class Compared(NamedTuple):
    """One result: of the function under test, of the eager one, in float64, and that with nudged inputs."""

    out: Tensor
    eager: Tensor
    truth: Tensor
    nudged: list[Tensor]


def compare_with_reference(
    function: Callable[..., Any],
    reference: Callable[..., Any],
    inputs: Mapping[str, Any],
    *,
    backward: bool = True,
    written: Sequence[str] = (),
    seed: int = 0,
) -> dict[str, Compared]:
    """What `assert_matches_reference` holds to the rule, by the names of `results_of`."""
    got = results_of(function, inputs, backward=backward, written=written, seed=seed)
    eager = results_of(reference, inputs, backward=backward, written=written, seed=seed)
    wide = {name: _widened(value) for name, value in inputs.items()}
    truth = results_of(reference, wide, backward=backward, written=written, seed=seed)
    random, step = Random(seed), torch.finfo(_arithmetic(inputs)).eps
    nudged = []
    for _ in range(_NUDGES):
        moved = {name: random.nudged(value, step) for name, value in wide.items()}
        nudged.append(results_of(reference, moved, backward=backward, written=written, seed=seed))
    if got.keys() != eager.keys():
        raise AssertionError(f"the results must be {list(eager)}, got {list(got)}")
    return {
        name: Compared(out, eager[name], truth[name], [results[name] for results in nudged])
        for name, out in got.items()
    }


def results_of(
    function: Callable[..., Any],
    inputs: Mapping[str, Any],
    *,
    backward: bool = True,
    written: Sequence[str] = (),
    seed: int = 0,
) -> dict[str, Tensor]:
    """Calls `function(**inputs)` and names what comes out: "out 0", "grad u", "written state".

    Arguments as in `assert_matches_reference`.
    """
    leaves = {name: _leaf(value, backward) for name, value in inputs.items()}
    outputs = function(**leaves)
    outputs = outputs if isinstance(outputs, Sequence) else (outputs,)
    results = {f"out {i}": out for i, out in enumerate(outputs)}
    results |= {f"written {name}": leaves[name] for name in written}
    if backward:
        random = Random(seed)
        weights = [random.coarse(*out.shape, of=out.dtype).to(out) for out in outputs]
        paired = [(out, weight) for out, weight in zip(outputs, weights, strict=True) if out.requires_grad]
        wanted = {name: leaf for name, leaf in leaves.items() if is_numeric(leaf)}
        grads = torch.autograd.grad(
            [out for out, _ in paired],
            list(wanted.values()),
            [weight for _, weight in paired],
            materialize_grads=True,
        )
        results |= {f"grad {name}": grad for name, grad in zip(wanted, grads, strict=True)}
    return results


def _leaf(value: Any, backward: bool) -> Any:
    if not is_numeric(value):
        return value
    if backward:
        return value.detach().requires_grad_()
    # A copy with the same strides: the function may write into it.
    copy = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)
    return copy.copy_(value.detach())


def _widened(value: Any) -> Any:
    if not is_numeric(value):
        return value
    return value.detach().to(torch.complex128 if value.is_complex() else torch.float64)


def _arithmetic(inputs: Mapping[str, Any]) -> torch.dtype:
    wide = any(is_numeric(v) and v.dtype in (torch.float64, torch.complex128) for v in inputs.values())
    return torch.float64 if wide else torch.float32


def _largest(tensor: Tensor) -> float:
    return tensor.abs().max().item()
