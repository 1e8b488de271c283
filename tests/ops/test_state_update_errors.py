"""state_update with heads and steps on bad input: what must hold, what was got, and nothing written."""

from typing import Any

import pytest
import torch
from steps import assert_refused, with_intermediate
from torch import Tensor

from mamba_aot import selective_state_update
from mamba_aot.testing import make_state_update_inputs

BASE: dict[str, Any] = {"batch": 2, "dim": 8, "heads": 4, "steps": 3, "groups": 2}
SENTENCES: dict[str, tuple[dict[str, Any], str]] = {
    "x": ({"x": torch.zeros(2, 3, 2, 4)}, "A must be [heads, dim, state] = [2, 4, 16], got [4, 2, 16]"),
    "dt": ({"dt": torch.zeros(2, 3, 4, 3)}, "dt must be [batch, steps, heads, dim] = [2, 3, 4, 2], got"),
    "A": ({"A": torch.zeros(8, 16)}, "A must be [heads, dim, state], as state has heads, got [8, 16]"),
    "B": ({"B": torch.zeros(2, 16)}, "B must be [batch, steps, state] or [batch, steps, groups, state]"),
    "B steps": (
        {"B": torch.zeros(2, 4, 2, 16)},
        "B must be [batch, steps, groups, state] = [2, 3, 2, 16], got [2, 4, 2, 16]",
    ),
    "B state": ({"B": torch.zeros(2, 3, 15)}, "B must be [batch, steps, state] = [2, 3, 16], got [2, 3, 15]"),
    "groups": ({"B": torch.zeros(2, 3, 3, 16)}, "groups that divides the 4 heads of x, got 3"),
    "groups of C": ({"C": torch.zeros(2, 3, 4, 16)}, "C must have as many groups as B, which is 2, got 4"),
    "D": ({"D": torch.zeros(8)}, "D must be [heads, dim] = [4, 2], got [8]"),
    "dt_bias": ({"dt_bias": torch.zeros(4)}, "dt_bias must be [heads, dim] = [4, 2], got [4]"),
    "gate": ({"decay_gate": torch.ones(2, 16)}, "decay_gate must be [batch, steps, state] = [2, 3, 16]"),
    "targets dtype": (
        {"dst_state_batch_indices": torch.zeros(2)},
        "dst_state_batch_indices must be int32 (one slot per sequence), got float32",
    ),
    "targets shape": (
        {"dst_state_batch_indices": torch.zeros(3, dtype=torch.int32)},
        "dst_state_batch_indices must be [batch] = [2], got [3]",
    ),
    "accepted": (
        {"accepted_steps": torch.zeros(2, dtype=torch.int64)},
        "accepted_steps must be int32 (a number of steps per sequence), got int64",
    ),
    "out shape": ({"out": torch.zeros(2, 4, 2)}, "out must be [batch, steps, heads, dim] = [2, 3, 4, 2]"),
    "out dtype": ({"out": torch.zeros(2, 3, 4, 2).half()}, "out must be float32 like x, got float16"),
    "out strides": ({"out": torch.zeros(2, 3, 4, 1).expand(-1, -1, -1, 2)}, "out is updated in place"),
    "out is no tensor": ({"out": 3}, "out must be a torch.Tensor or None, got int"),
    "intermediate shape": (
        {"intermediate_states": torch.zeros(2, 4, 2, 16)},
        "intermediate_states must be [batch, steps, heads, dim, state] = [2, 3, 4, 2, 16], got",
    ),
    "intermediate dtype": (
        {"intermediate_states": torch.zeros(2, 3, 4, 2, 16).half()},
        "intermediate_states must be float32 like state, got float16",
    ),
    "intermediate complex": (
        {"intermediate_states": torch.zeros(2, 3, 4, 2, 16).to(torch.complex64)},
        "intermediate_states must be real because A is",
    ),
}


@pytest.mark.parametrize(("change", "sentence"), SENTENCES.values(), ids=SENTENCES)
def test_sentence(change: dict[str, Any], sentence: str, device: str) -> None:
    inputs = make_state_update_inputs(**BASE, device=device)
    inputs |= {name: v.to(device) if isinstance(v, Tensor) else v for name, v in change.items()}
    if sentence.startswith("out is updated"):
        inputs["out"] = change["out"][..., :1].to(device).expand(change["out"].shape)
    assert_refused(inputs, sentence)


def test_results_that_overlap_arguments_are_refused(device: str) -> None:
    inputs = make_state_update_inputs(2, 16, 16, device=device)
    for name, out in (("x", inputs["x"]), ("z", inputs["z"]), ("state", inputs["state"][0, :2].view(2, 16))):
        with pytest.raises(ValueError, match=f"out must not share memory with {name}"):
            selective_state_update(**inputs, out=out)
    with pytest.raises(ValueError, match="intermediate_states must not share memory with state"):
        selective_state_update(**inputs, intermediate_states=inputs["state"].unsqueeze(1))


@pytest.mark.parametrize("name", ["x", "dt", "z"])
def test_a_state_that_overlaps_what_is_read_is_refused(name: str, device: str) -> None:
    inputs = make_state_update_inputs(2, 16, 16, device=device)
    with pytest.raises(ValueError, match=f"state must not share memory with {name}"):
        selective_state_update(**inputs | {name: inputs["state"][..., 0]})


def test_autograd_notices_what_was_written(device: str) -> None:
    inputs = with_intermediate(make_state_update_inputs(device=device, steps=2))
    for name in ("out", "intermediate_states"):
        inputs["out"] = torch.zeros_like(inputs["x"])
        product = torch.ones((), device=device, requires_grad=True) * inputs[name]
        selective_state_update(**inputs)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            product.sum().backward()
