"""state_update with heads, groups, several steps and tied arguments, in any strides."""

from typing import Any

import pytest
import torch
from steps import BRAIN, COMPLEX, HEADS, STEPS, TARGETS, assert_steps_match, dense, run, with_intermediate
from torch import Tensor

from mamba_aot import selective_state_update
from mamba_aot.reference import selective_state_update_ref
from mamba_aot.testing import assert_matches_reference, make_state_update_inputs, results_of

EVERYTHING = {**HEADS, **STEPS, **TARGETS, "groups": 2, "decay_gate": True, "discretization": "zoh"}


ROWS: dict[str, dict[str, Any]] = {
    "heads": HEADS,
    "heads, one channel each": {"heads": 8},
    "one head": {"heads": 1},
    "heads of 64": {"heads": 2, "dim": 128, "state": 128, "groups": 2},
    "heads of 24": {"heads": 3, "dim": 72},
    "heads, 2 groups": {**HEADS, "groups": 2},
    "heads, a group each": {**HEADS, "groups": 4},
    "heads, slots": {**HEADS, "slots": 5},
    "heads, sliced": {**HEADS, "layout": "sliced"},
    "heads, complex": {**HEADS, **COMPLEX},
    "heads, bfloat16, state too": {**HEADS, **BRAIN, "state_dtype": torch.bfloat16},
    "1 step": {"steps": 1},
    "steps": STEPS,
    "steps, 1000 channels": {**STEPS, "dim": 1000},
    "steps, 1 channel": {**STEPS, "dim": 1},
    "steps, 24 channels": {**STEPS, "dim": 24},
    "steps, state 1": {**STEPS, "state": 1},
    "steps, state 3": {**STEPS, "state": 3},
    "steps, state 24": {**STEPS, "state": 24},
    "steps, state 128": {**STEPS, "state": 128},
    "steps, state 256": {**STEPS, "state": 256},
    "steps, state 48, sliced": {**STEPS, "state": 48, "layout": "sliced"},
    "steps, channel-last": {**STEPS, "layout": "channel"},
    "steps, 2 groups": {**STEPS, "groups": 2},
    "steps, complex": {**STEPS, **COMPLEX},
    "steps, complex, state 24": {**STEPS, **COMPLEX, "state": 24},
    "steps, float16": {**STEPS, "dtype": torch.float16},
    "steps, bfloat16, weights too": {**STEPS, **BRAIN, "weight_dtype": torch.bfloat16},
    "steps, bfloat16, state too": {**STEPS, **BRAIN, "state_dtype": torch.bfloat16},
    "steps, float32, float16 state": {**STEPS, "state_dtype": torch.float16, "state": 32},
    "no steps": {"steps": 0},
    "steps, no states": {**STEPS, "state": 0},
    "targets": TARGETS,
    "targets, bfloat16 state": {**TARGETS, "state_dtype": torch.bfloat16},
    "everything": EVERYTHING,
    "everything, state 64": {**EVERYTHING, "state": 64},
    "everything, complex": {**EVERYTHING, **COMPLEX},
    "everything, bfloat16": {**EVERYTHING, **BRAIN},
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_matches_float64(row: dict[str, Any], device: str) -> None:
    inputs = make_state_update_inputs(**row, device=device)
    assert_steps_match(inputs)
    assert_steps_match(with_intermediate(dense(inputs)))


# One step, all contiguous: the rows of test_state_update.py are views of sequences.
DENSE: dict[str, dict[str, Any]] = {
    "base": {},
    "1000 channels": {"dim": 1000},
    "one channel": {"dim": 1},
    "state 1": {"state": 1},
    "state 24": {"state": 24},
    "state 48": {"state": 48},
    "state 128": {"state": 128, "dim": 24},
    "state 256": {"state": 256},
    "zoh, gate": {"decay_gate": True, "discretization": "zoh"},
    "state 64, zoh, gate": {"decay_gate": True, "discretization": "zoh", "state": 64},
    "groups, slots": {"groups": 2, "slots": 5},
    "no options": {"D": False, "z": False, "delta_bias": False, "delta_softplus": False},
    "float16": {"dtype": torch.float16, "weight_dtype": torch.float16},
    "float16, state too": {"dtype": torch.float16, "state_dtype": torch.float16, "state": 128},
    "bfloat16": BRAIN,
    "bfloat16, state too": {**BRAIN, "state_dtype": torch.bfloat16},
    "bfloat16, float16 state": {**BRAIN, "state_dtype": torch.float16},
    "complex": {**COMPLEX, "decay_gate": True, "discretization": "zoh"},
}


@pytest.mark.parametrize("row", DENSE.values(), ids=DENSE)
def test_matches_float64_when_contiguous(row: dict[str, Any], device: str) -> None:
    inputs = dense(make_state_update_inputs(**row, device=device))
    assert_steps_match(inputs)
    assert_steps_match(with_intermediate(inputs))


@pytest.mark.parametrize("state", [16, 128])
@pytest.mark.parametrize("groups", [1, 2])
def test_tied_forms_are_read_in_place(state: int, groups: int, device: str) -> None:
    inputs = dense(make_state_update_inputs(3, 64, state, heads=4, groups=groups, device=device))
    for name, kept in (("A", 1), ("D", 1), ("dt_bias", 1), ("dt", 2)):
        tied = inputs[name][(slice(None),) * kept + (0,) * (inputs[name].dim() - kept)]
        view = tied[(...,) + (None,) * (inputs[name].dim() - kept)].expand(inputs[name].shape)
        inputs[name] = view
    copied = dense(inputs)
    for got, wanted in zip(run(inputs), run(copied), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    # The harness copies with strides, which a tied tensor has not room for.
    wanted = selective_state_update_ref(**copied | {"state": copied["state"].clone()})
    torch.testing.assert_close(run(inputs)[0], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("row", [{}, COMPLEX, {"groups": 2}, {**STEPS, "groups": 4}], ids=str)
def test_heads_are_channels(row: dict[str, Any], device: str) -> None:
    flat, headed = (
        make_state_update_inputs(3, 24, decay_gate=True, device=device, heads=heads, **row)
        for heads in (None, 4)
    )
    (out, state), (headed_out, headed_state) = run(flat), run(headed)
    assert torch.equal(headed_out.flatten(-2), out)
    assert torch.equal(headed_state.flatten(1, 2), state)


@pytest.mark.parametrize("row", [{}, COMPLEX, {"heads": 2, "groups": 2}, {"state": 128}], ids=str)
def test_steps_of_one_call_are_single_calls(row: dict[str, Any], device: str) -> None:
    inputs = make_state_update_inputs(3, 24, steps=4, decay_gate=True, device=device, **row)
    inputs = with_intermediate(dense(inputs))
    out, state = run(inputs)

    def one_by_one(*, intermediate_states: Tensor, state: Tensor, **rest: Any) -> Tensor:
        outs = []
        for t in range(4):
            sequences = {n: rest[n][:, t] for n in ("x", "dt", "B", "C", "z", "decay_gate")}
            outs.append(selective_state_update(state, **rest | sequences))
            intermediate_states[:, t] = state
        return torch.stack(outs, dim=1)

    assert_matches_reference(
        one_by_one,
        selective_state_update_ref,
        inputs,
        backward=False,
        written=["state", "intermediate_states"],
    )
    single = {n: t.clone() if n in ("state", "intermediate_states") else t for n, t in inputs.items()}
    torch.testing.assert_close(out, one_by_one(**single), rtol=3e-5, atol=3e-5)
    torch.testing.assert_close(state, single["state"], rtol=3e-5, atol=3e-5)
    assert torch.equal(inputs["intermediate_states"][:, -1], state)


def test_states_of_any_strides(device: str) -> None:
    for row in ({}, HEADS, STEPS, {**STEPS, **COMPLEX}):
        inputs = with_intermediate(make_state_update_inputs(3, 24, device=device, **row))
        dense = run(inputs)
        kept = inputs["intermediate_states"].clone()
        for name in ("state", "intermediate_states"):
            axes = range(inputs[name].dim() - 1, -1, -1)
            turned = inputs[name].permute(*axes).contiguous().permute(*axes)
            inputs[name] = turned
        state = inputs["state"].clone(memory_format=torch.preserve_format)
        out = selective_state_update(**inputs | {"state": state})
        torch.testing.assert_close(out, dense[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(state, dense[1], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(inputs["intermediate_states"], kept, rtol=1e-5, atol=1e-5)


def test_float64() -> None:
    for row in (EVERYTHING, {**EVERYTHING, **COMPLEX}):
        inputs = with_intermediate(make_state_update_inputs(dtype=torch.float64, **row))
        written = ["state", "intermediate_states"]
        got = results_of(selective_state_update, inputs, backward=False, written=written)
        wanted = results_of(selective_state_update_ref, inputs, backward=False, written=written)
        torch.testing.assert_close(got, wanted, rtol=1e-13, atol=1e-13)


# mamba_ssm tests/ops/triton/test_selective_state_update.py: (rtol, atol) of the tests with heads, with
# indices and with both.
FP32, HALF = (3e-4, 1e-3), (5e-3, 3e-2)
PEER = {
    "heads": (FP32, HALF, (1e-2, 1e-1)),
    "indices": (FP32, (5e-3, 1e-2), (6e-2, 6e-2)),
    "heads and indices": (FP32, HALF, (1e-1, 1e-1)),
}


PEER_FORMS = [("indices", 1, False)]
PEER_FORMS += [
    (form, groups, tied)
    for form in ("heads", "heads and indices")
    for groups in (1, 2, 4)
    for tied in (False, True)
]


@pytest.mark.parametrize(("form", "groups", "tied"), PEER_FORMS, ids=str)
@pytest.mark.parametrize("state", [16, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_meets_the_tolerances_of_mamba_ssm(
    form: str, state: int, groups: int, tied: bool, dtype: torch.dtype, device: str
) -> None:
    dim, head_dim, batch = 2048, 64, 2 if form == "heads" else 16
    rtol, atol = PEER[form][(torch.float32, torch.float16, torch.bfloat16).index(dtype)]
    heads = dim // head_dim if "heads" in form else None
    inputs = make_state_update_inputs(
        batch,
        dim,
        state,
        heads=heads,
        groups=groups if heads else None,
        slots=160 if "indices" in form else None,
        dtype=dtype,
        state_dtype=dtype,
        device=device,
    )
    torch.manual_seed(0)
    inputs["A"] = -torch.rand(inputs["A"].shape).to(device) - 1
    inputs["dt_bias"] = torch.rand(inputs["dt_bias"].shape).to(device) - 4
    inputs["dt"] = torch.randn(inputs["x"].shape).to(inputs["x"])
    if tied:
        inputs["A"] = inputs["A"][:, :1, :1].expand(inputs["A"].shape)
        inputs["dt_bias"] = inputs["dt_bias"][:, :1].expand(-1, head_dim)
        inputs["dt"] = inputs["dt"][..., :1].expand(inputs["dt"].shape)
    wanted_state = inputs["state"].clone()
    wanted = selective_state_update_ref(**inputs | {"state": wanted_state})
    out, got_state = run(inputs)
    torch.testing.assert_close(out, wanted, rtol=rtol, atol=atol)
    torch.testing.assert_close(got_state, wanted_state, rtol=rtol, atol=atol)
