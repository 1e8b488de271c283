"""state_update with heads, several steps, slots to write to, and results given; and its functional form."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mamba_aot import selective_state_step, selective_state_update
from mamba_aot.reference import selective_state_step_ref, selective_state_update_ref
from mamba_aot.testing import assert_matches_reference, make_state_update_inputs, results_of

BRAIN = {"dtype": torch.bfloat16}
COMPLEX = {"is_complex": True}
HEADS = {"heads": 4}
STEPS = {"steps": 3}
TARGETS = {"slots": 7, "targets": True}
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


def test_targets_leave_the_sources_as_they_were(device: str) -> None:
    for row in ({}, STEPS, COMPLEX):
        inputs = make_state_update_inputs(3, 24, slots=8, targets=True, device=device, **row)
        source, target = (inputs[n].tolist() for n in ("state_batch_indices", "dst_state_batch_indices"))
        before = inputs["state"].clone()
        out, state = run(inputs)
        for slot in range(8):
            assert torch.equal(state[slot], before[slot]) == (slot not in target)
        in_place, moved = run(inputs | {"dst_state_batch_indices": None})
        assert torch.equal(out, in_place)
        assert torch.equal(state[target], moved[source])


def test_a_target_of_padding_is_not_written(device: str) -> None:
    inputs = make_state_update_inputs(3, 24, slots=8, targets=True, device=device)
    inputs["dst_state_batch_indices"][1] = -1
    assert_steps_match(inputs)
    out, state = run(inputs)
    assert out[1].any()
    written = (state != inputs["state"]).flatten(1).any(1).sum()
    assert written == 2


@pytest.mark.parametrize("steps", [None, 2])
def test_padding_does_not_matter(steps: int | None, device: str) -> None:
    for pad in (-1, -7, 5):
        inputs = make_state_update_inputs(4, 24, slots=6, steps=steps, decay_gate=True, device=device)
        inputs["state_batch_indices"] = torch.tensor([2, pad, 0, pad], dtype=torch.int32, device=device)
        inputs["pad_slot_id"] = pad
        inputs = with_intermediate(inputs)
        out, state = run(inputs)
        kept = inputs["intermediate_states"].clone()
        for name in ("x", "dt", "B", "C", "z", "decay_gate"):
            inputs[name] = inputs[name].clone()
            inputs[name][1], inputs[name][3] = torch.nan, torch.nan
        inputs["state"] = inputs["state"].clone()
        inputs["state"][[1, 3, 4, 5]] = torch.nan
        inputs["intermediate_states"].zero_()
        poisoned, after = run(inputs)
        assert torch.equal(poisoned, out)
        assert not out[[1, 3]].any()
        assert torch.equal(after[[0, 2]], state[[0, 2]])
        assert after[[1, 3, 4, 5]].isnan().all()
        assert torch.equal(inputs["intermediate_states"], kept)
        assert not kept[[1, 3]].any()


@pytest.mark.parametrize("name", ["state_batch_indices", "dst_state_batch_indices"])
def test_slots_beyond_the_state_are_refused(name: str, device: str) -> None:
    inputs = make_state_update_inputs(2, 24, slots=5, targets=True, device=device)
    before = inputs["state"].clone()
    inputs[name][1] = 5
    sentence = rf"selective_state_update: {name} must be slots below 5 .*, got 5 at position 1"
    with pytest.raises(ValueError, match=sentence):
        selective_state_update(**inputs, validate=True)
    assert torch.equal(inputs["state"], before)
    if device == "cpu":
        with pytest.raises(ValueError, match=sentence):
            selective_state_update(**inputs)
        return
    # Without the check that waits for the device, they are padding.
    out = selective_state_update(**inputs)
    inputs[name][1] = -1
    assert torch.equal(out, selective_state_update(**inputs | {"state": before}))


@pytest.mark.parametrize("steps", [None, 3])
@pytest.mark.parametrize("heads", [None, 4])
def test_out_of_any_strides(steps: int | None, heads: int | None, device: str) -> None:
    inputs = make_state_update_inputs(2, 8, steps=steps, heads=heads, device=device)
    wanted, wanted_state = run(inputs)
    wide = torch.full((*wanted.shape, 3), 7.0, device=device)
    out = wide[..., 1]
    state = inputs["state"].clone()
    assert selective_state_update(**inputs | {"state": state}, out=out) is out
    torch.testing.assert_close(out, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state, wanted_state, rtol=1e-5, atol=1e-5)
    assert (wide[..., ::2] == 7).all()


@pytest.mark.parametrize("row", [{}, HEADS, COMPLEX, {"state": 256}, TARGETS], ids=str)
def test_accepted_steps_are_those_the_state_takes(row: dict[str, Any], device: str) -> None:
    inputs = make_state_update_inputs(3, 24, steps=3, device=device, **row)
    inputs["accepted_steps"] = torch.tensor([2, 0, 3], dtype=torch.int32, device=device)
    assert_steps_match(inputs)
    assert_steps_match(dense(inputs))
    assert torch.equal(run(inputs)[0], run(inputs | {"accepted_steps": None})[0])


def test_the_state_stays_when_its_update_is_disabled(device: str) -> None:
    for row in ({}, STEPS, COMPLEX, TARGETS):
        inputs = with_intermediate(make_state_update_inputs(3, 24, device=device, **row))
        out, state = run(inputs)
        last = inputs["intermediate_states"][:, -1].clone()
        inputs["intermediate_states"].zero_()
        same_out, same_state = run(inputs | {"disable_state_update": True})
        assert torch.equal(same_out, out)
        assert torch.equal(same_state, inputs["state"])
        slots = inputs.get("dst_state_batch_indices")
        assert torch.equal(last, state if slots is None else state[slots.long()])
        assert torch.equal(inputs["intermediate_states"][:, -1], last)


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
    before = inputs["state"].clone()
    with pytest.raises(TypeError if "torch.Tensor" in sentence else ValueError) as caught:
        selective_state_update(**inputs)
    assert str(caught.value).startswith("selective_state_update: ")
    assert sentence in str(caught.value)
    assert torch.equal(inputs["state"], before)


def test_results_that_overlap_arguments_are_refused(device: str) -> None:
    inputs = make_state_update_inputs(2, 16, 16, device=device)
    for name, out in (("x", inputs["x"]), ("z", inputs["z"]), ("state", inputs["state"][0, :2].view(2, 16))):
        with pytest.raises(ValueError, match=f"out must not share memory with {name}"):
            selective_state_update(**inputs, out=out)
    with pytest.raises(ValueError, match="intermediate_states must not share memory with state"):
        selective_state_update(**inputs, intermediate_states=inputs["state"].unsqueeze(1))


def test_autograd_notices_what_was_written(device: str) -> None:
    inputs = with_intermediate(make_state_update_inputs(device=device, steps=2))
    for name in ("out", "intermediate_states"):
        inputs["out"] = torch.zeros_like(inputs["x"])
        product = torch.ones((), device=device, requires_grad=True) * inputs[name]
        selective_state_update(**inputs)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            product.sum().backward()


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
