"""What the tests of state_update share: forms of its arguments, and one call of it."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mamba_aot import selective_state_update
from mamba_aot.reference import selective_state_update_ref
from mamba_aot.testing import assert_matches_reference

BRAIN = {"dtype": torch.bfloat16}
COMPLEX = {"is_complex": True}
HEADS = {"heads": 4}
STEPS = {"steps": 3}
TARGETS = {"slots": 7, "targets": True}


def assert_steps_match(inputs: dict[str, Any]) -> None:
    written = [name for name in ("state", "intermediate_states") if name in inputs]
    assert_matches_reference(
        selective_state_update, selective_state_update_ref, inputs, backward=False, written=written
    )


def dense(inputs: dict[str, Any]) -> dict[str, Any]:
    """Every argument contiguous, as callers have them: kernels for rows of states want that."""
    return {name: t.contiguous() if isinstance(t, Tensor) else t for name, t in inputs.items()}


def with_intermediate(inputs: dict[str, Any]) -> dict[str, Any]:
    batch, state = inputs["x"].shape[0], inputs["state"]
    steps = inputs["x"].shape[1] if inputs["x"].dim() == state.dim() else 1
    return inputs | {"intermediate_states": state.new_zeros(batch, steps, *state.shape[1:])}


def run(inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    state = inputs["state"].clone()
    return selective_state_update(**inputs | {"state": state}), state


def assert_refused(inputs: dict[str, Any], sentence: str) -> None:
    """The inputs raise an error that says `sentence`, and the state is as it was."""
    before = inputs["state"].clone()
    with pytest.raises(TypeError if "torch.Tensor" in sentence else ValueError) as caught:
        selective_state_update(**inputs)
    assert str(caught.value).startswith("selective_state_update: ")
    assert sentence in str(caught.value)
    assert torch.equal(inputs["state"], before)
