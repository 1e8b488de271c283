"""selective_state_step, the functional form of state_update: values, gradients, errors."""

from typing import Any

import pytest
import torch
from steps import BRAIN, COMPLEX, HEADS, STEPS, run
from torch import Tensor

from mamba_aot import selective_state_step
from mamba_aot.reference import selective_state_step_ref
from mamba_aot.testing import assert_matches_reference, make_state_update_inputs


def functional(inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in inputs.items() if name != "state_batch_indices"}


STEP_ROWS: dict[str, dict[str, Any]] = {
    "base": {},
    "heads": {**HEADS, "groups": 2},
    "steps": STEPS,
    "complex": COMPLEX,
    "bfloat16": BRAIN,
    "everything": {**HEADS, **STEPS, "groups": 2, "decay_gate": True, "discretization": "zoh"},
    "nothing": {"D": False, "z": False, "delta_bias": False, "delta_softplus": False},
    "no sequences": {"batch": 0},
}


@pytest.mark.parametrize("row", STEP_ROWS.values(), ids=STEP_ROWS)
def test_functional_form_matches_float64(row: dict[str, Any], device: str) -> None:
    inputs = functional(make_state_update_inputs(**row, device=device))
    assert_matches_reference(
        selective_state_step,
        selective_state_step_ref,
        {name: value for name, value in inputs.items() if value is not None},
    )


@pytest.mark.parametrize("row", [{}, HEADS, STEPS, COMPLEX, {"state_dtype": torch.float16}], ids=str)
def test_functional_form_is_the_form_in_place(row: dict[str, Any], device: str) -> None:
    inputs = make_state_update_inputs(3, 24, decay_gate=True, device=device, **row)
    before = inputs["state"].clone()
    step_out, step_state = selective_state_step(**functional(inputs))
    assert torch.equal(inputs["state"], before)
    out, state = run(inputs)
    assert step_state.dtype == state.dtype
    torch.testing.assert_close(step_out, out, rtol=1e-4, atol=1e-4)
    tolerance = 2e-3 if state.dtype == torch.float16 else 1e-4
    torch.testing.assert_close(step_state, state, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("row", [{}, {**HEADS, **STEPS}, COMPLEX], ids=str)
def test_gradients_of_the_functional_form(row: dict[str, Any]) -> None:
    inputs = make_state_update_inputs(
        2, 4, 3, dtype=torch.float64, decay_gate=True, discretization="zoh", **row
    )
    inputs = functional(inputs)
    leaves = {n: t.detach().clone().requires_grad_() for n, t in inputs.items() if isinstance(t, Tensor)}
    rest = {n: v for n, v in inputs.items() if n not in leaves}

    def call(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return selective_state_step(**dict(zip(leaves, tensors, strict=True)), **rest)

    assert torch.autograd.gradcheck(call, tuple(leaves.values()), fast_mode=True)


STEP_SENTENCES: dict[str, tuple[dict[str, Any], str]] = {
    "state": ({"state": torch.zeros(3, 8, 16)}, "state must be [batch, channels, state] = [2, 8, 16], got"),
    "state dtype": (
        {"state": torch.zeros(2, 8, 16).int()},
        "state must be of a floating dtype, got torch.int32",
    ),
    "state rank": ({"state": torch.zeros(8, 16)}, "state must be [slots, channels, state] or"),
    "x": ({"x": torch.zeros(2, 7)}, "x must be [batch, channels] = [2, 8], got [2, 7]"),
    "B": ({"B": torch.zeros(2, 15)}, "B must be [batch, state] = [2, 16], got [2, 15]"),
    "groups": ({"C": torch.zeros(2, 3, 16)}, "groups that divides the 8 channels of x, got 3"),
    "gate": ({"decay_gate": torch.zeros(2, 8)}, "decay_gate must be [batch, state] = [2, 16], got [2, 8]"),
    "complex": ({"A": torch.zeros(8, 16).to(torch.complex64)}, "state must be complex because A is"),
    "z is no tensor": ({"z": 1}, "z must be a torch.Tensor or None, got int"),
}


@pytest.mark.parametrize(("change", "sentence"), STEP_SENTENCES.values(), ids=STEP_SENTENCES)
def test_sentence_of_the_functional_form(change: dict[str, Any], sentence: str) -> None:
    inputs = functional(make_state_update_inputs()) | change
    with pytest.raises(TypeError if "torch.Tensor" in sentence else ValueError) as caught:
        selective_state_step(**inputs)
    assert str(caught.value).startswith("selective_state_step: ")
    assert sentence in str(caught.value)
