"""state_update against float64: the output and the state it writes."""

from typing import Any

import pytest
import torch
from steps import assert_refused, dense

from mamba_aot import selective_state_update
from mamba_aot.reference import selective_state_update_ref
from mamba_aot.testing import assert_matches_reference, make_state_update_inputs, results_of

HALF = {"dtype": torch.float16}
BRAIN = {"dtype": torch.bfloat16}
COMPLEX = {"is_complex": True}
EVERYTHING = {"decay_gate": True, "discretization": "zoh", "groups": 2, "slots": 5}
NOTHING = {"D": False, "z": False, "delta_bias": False, "delta_softplus": False}

# The base row, then rows that change one thing, then rows where two changes meet in one kernel.
ROWS: dict[str, dict[str, Any]] = {
    "base": {},
    "one sequence": {"batch": 1},
    "one channel": {"dim": 1},
    "24 channels": {"dim": 24},
    "1000 channels": {"dim": 1000},
    "state 1": {"state": 1},
    "state 3": {"state": 3},
    "state 24": {"state": 24},
    "state 128": {"state": 128},
    "state 256": {"state": 256},
    "channel-last": {"layout": "channel"},
    "sliced": {"layout": "sliced"},
    "no D": {"D": False},
    "no z": {"z": False},
    "no dt_bias": {"delta_bias": False},
    "no softplus": {"delta_softplus": False},
    "no options": NOTHING,
    "gate": {"decay_gate": True},
    "zoh": {"discretization": "zoh"},
    "1 group": {"groups": 1},
    "a group per channel": {"groups": 8},
    "slots": {"slots": 7},
    "everything": EVERYTHING,
    "complex": COMPLEX,
    "complex, state 3": {**COMPLEX, "state": 3},
    "complex, no options": {**COMPLEX, **NOTHING},
    "complex, everything": {**COMPLEX, **EVERYTHING},
    "complex, bfloat16, everything": {**COMPLEX, **EVERYTHING, **BRAIN},
    "float16": HALF,
    "float16, state too": {**HALF, "state_dtype": torch.float16},
    "bfloat16": BRAIN,
    "bfloat16, weights too": {**BRAIN, "weight_dtype": torch.bfloat16},
    "bfloat16, state too": {**BRAIN, "state_dtype": torch.bfloat16},
    "bfloat16, float16 state, everything": {**BRAIN, **EVERYTHING, "state_dtype": torch.float16},
    "bfloat16, state too, everything": {**BRAIN, **EVERYTHING, "state_dtype": torch.bfloat16},
    "float32, bfloat16 state": {"state_dtype": torch.bfloat16},
    "no sequences": {"batch": 0},
    "no channels": {"dim": 0},
    "no states": {"state": 0},
}


def assert_step_matches(inputs: dict[str, Any]) -> None:
    assert_matches_reference(
        selective_state_update, selective_state_update_ref, inputs, backward=False, written=["state"]
    )


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_matches_float64(row: dict[str, Any], device: str) -> None:
    inputs = make_state_update_inputs(**row, device=device)
    assert_step_matches(inputs)


# As models call it: everything contiguous, for which there is a kernel of its own on a GPU.
MODEL = {"batch": 3, "groups": 1}
MODEL_ROWS: dict[str, dict[str, Any]] = {
    "base": {},
    "1 channel": {"dim": 1},
    "24 channels": {"dim": 24},
    "129 channels": {"dim": 129},
    "1000 channels": {"dim": 1000},
    "slots": {"slots": 7, "dim": 200},
    "no options": NOTHING,
    "float16": HALF,
    "float16, no options": {**HALF, **NOTHING},
    "bfloat16": {**BRAIN, "dim": 129},
    "bfloat16, weights too": {**BRAIN, "weight_dtype": torch.bfloat16},
    "bfloat16, state too": {**BRAIN, "state_dtype": torch.bfloat16},
    "bfloat16, slots": {**BRAIN, "slots": 5},
}


@pytest.mark.parametrize("row", MODEL_ROWS.values(), ids=MODEL_ROWS)
def test_a_step_of_a_model_matches_float64(row: dict[str, Any], device: str) -> None:
    inputs = dense(make_state_update_inputs(**{**MODEL, **row}, device=device))
    assert_step_matches(inputs)
    if inputs["state_batch_indices"] is None:
        return
    inputs["state_batch_indices"][1] = -1
    assert_step_matches(inputs)
    before = inputs["state"].clone()
    out = selective_state_update(**inputs)
    assert not out[1].any()
    live = inputs["state_batch_indices"].tolist()
    for slot in range(before.shape[0]):
        assert torch.equal(inputs["state"][slot], before[slot]) == (slot not in live)


@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-8, 1e-4, 1e-2, 0.3])
def test_zoh_where_a_vanishes(size: float, is_complex: bool, device: str) -> None:
    inputs = make_state_update_inputs(is_complex=is_complex, discretization="zoh", device=device)
    inputs["A"] = inputs["A"] / inputs["A"].abs().clamp(min=1e-6) * size
    assert_step_matches(inputs)


@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
def test_writes_a_state_of_any_strides(is_complex: bool, device: str) -> None:
    inputs = make_state_update_inputs(is_complex=is_complex, device=device)
    wide = torch.full((4, 16, 20), 7.0, dtype=inputs["state"].dtype, device=device)
    view = wide.transpose(1, 2)[1:3, 2:10, :]
    inputs["state"] = view.copy_(inputs["state"])
    assert_step_matches(inputs)
    selective_state_update(**inputs)
    view.fill_(7)
    assert (wide == 7).all()


def test_leaves_padding_and_other_slots_alone(device: str) -> None:
    for is_complex in (False, True):
        inputs = make_state_update_inputs(batch=3, slots=5, is_complex=is_complex, device=device)
        inputs["state_batch_indices"][1] = -1
        before = inputs["state"].clone()
        assert_step_matches(inputs)
        out = selective_state_update(**inputs)
        assert not out[1].any()
        live = inputs["state_batch_indices"].tolist()
        for slot in range(5):
            assert torch.equal(inputs["state"][slot], before[slot]) == (slot not in live)


def test_float64() -> None:
    inputs = make_state_update_inputs(dtype=torch.float64, is_complex=True, **EVERYTHING)
    got = results_of(selective_state_update, inputs, backward=False, written=["state"])
    wanted = results_of(selective_state_update_ref, inputs, backward=False, written=["state"])
    torch.testing.assert_close(got, wanted, rtol=1e-13, atol=1e-13)


def test_is_outside_autograd(device: str) -> None:
    inputs = make_state_update_inputs(device=device)
    inputs["A"].requires_grad_()
    assert not selective_state_update(**inputs).requires_grad
    assert not inputs["state"].requires_grad


# mamba_ssm tests/ops/triton/test_selective_state_update.py: (rtol, atol) of the plain test, output and state.
PEER_TOLERANCE = {torch.float32: (3e-4, 1e-3), torch.float16: (5e-3, 1e-2), torch.bfloat16: (1e-2, 5e-2)}


@pytest.mark.parametrize("z", [False, True], ids=["no z", "z"])
@pytest.mark.parametrize("state", [16, 64])
@pytest.mark.parametrize("dim", [2048, 2064])
@pytest.mark.parametrize("dtype", PEER_TOLERANCE, ids=str)
def test_meets_the_tolerances_of_mamba_ssm(
    dim: int, state: int, z: bool, dtype: torch.dtype, device: str
) -> None:
    rtol, atol = PEER_TOLERANCE[dtype]
    inputs = make_state_update_inputs(2, dim, state, dtype=dtype, state_dtype=dtype, z=z, device=device)
    torch.manual_seed(0)
    inputs["A"] = -torch.rand(dim, state).to(device) - 1
    inputs["dt_bias"] = torch.rand(dim).to(device) - 4
    inputs["dt"] = torch.randn(2, dim).to(inputs["x"])
    got = results_of(selective_state_update, inputs, backward=False, written=["state"])
    wanted = results_of(selective_state_update_ref, inputs, backward=False, written=["state"])
    assert got.keys() == {"out 0", "written state"}
    torch.testing.assert_close(got, wanted, rtol=rtol, atol=atol)


# The base call is batch 2, channels 8, state 16; each row changes some arguments of it.
SENTENCES: dict[str, tuple[dict[str, Any], str]] = {
    "x rank": (
        {"x": torch.zeros(2, 8, 1, 1)},
        "x must be [batch, channels] or [batch, steps, channels], as state has no heads, got [2, 8, 1, 1]",
    ),
    "x is no tensor": ({"x": 0}, "x must be a torch.Tensor, got int"),
    "state with heads": (
        {"state": torch.zeros(2, 4, 2, 16), "A": torch.zeros(4, 2, 16)},
        "x must be [batch, heads, dim] or [batch, steps, heads, dim], as state has heads, got [2, 8]",
    ),
    "state shape": (
        {"state": torch.zeros(2, 8, 15)},
        "state must be [slots, channels, state] = [2, 8, 16], got [2, 8, 15]",
    ),
    "state rank": ({"state": torch.zeros(8, 16)}, "state must be "),
    "state slots": ({"state": torch.zeros(3, 8, 16)}, "one slot per sequence of x, which is 2"),
    "state dtype": ({"state": torch.zeros(2, 8, 16, dtype=torch.int32)}, "state must be float32, float16"),
    "state complex": (
        {"state": torch.zeros(2, 8, 16).to(torch.complex64)},
        "state must be real because A is",
    ),
    "dt shape": ({"dt": torch.zeros(2, 7)}, "dt must be [batch, channels] = [2, 8], got [2, 7]"),
    "dt dtype": ({"dt": torch.zeros(2, 8, dtype=torch.int32)}, "dt must be float32, float16, bfloat16"),
    "A shape": ({"A": torch.zeros(7, 16)}, "A must be [channels, state] = [8, 16], got [7, 16]"),
    "A complex": ({"A": torch.zeros(8, 16).to(torch.complex64)}, "state must be complex because A is"),
    "B shape": ({"B": torch.zeros(2, 15)}, "B must be [batch, state] = [2, 16], got [2, 15]"),
    "B rank": ({"B": torch.zeros(16)}, "B must be [batch, state] or [batch, groups, state], got [16]"),
    "B complex": (
        {"B": torch.zeros(2, 16).to(torch.complex64)},
        "B must be real because A is, got complex64",
    ),
    "C groups": ({"C": torch.zeros(2, 3, 16)}, "groups that divides the 8 channels of x, got 3"),
    "D shape": ({"D": torch.zeros(8, 1)}, "D must be [channels] = [8], got [8, 1]"),
    "z shape": ({"z": torch.zeros(8)}, "z must be [batch, channels] = [2, 8], got [8]"),
    "dt_bias shape": ({"dt_bias": torch.zeros(7)}, "dt_bias must be [channels] = [8], got [7]"),
    "gate shape": ({"decay_gate": torch.ones(2, 8)}, "decay_gate must be [batch, state] = [2, 16]"),
    "indices dtype": (
        {"state_batch_indices": torch.zeros(2, dtype=torch.int64)},
        "state_batch_indices must be int32 (one slot per sequence), got int64",
    ),
    "indices shape": (
        {"state_batch_indices": torch.zeros(3, dtype=torch.int32)},
        "state_batch_indices must be [batch] = [2], got [3]",
    ),
    "discretization": ({"discretization": None}, 'discretization must be "euler" or "zoh", got None'),
}


@pytest.mark.parametrize(("change", "sentence"), SENTENCES.values(), ids=SENTENCES)
def test_sentence(change: dict[str, Any], sentence: str, device: str) -> None:
    inputs = make_state_update_inputs(device=device)
    inputs |= {name: v.to(device) if isinstance(v, torch.Tensor) else v for name, v in change.items()}
    assert_refused(inputs, sentence)


def test_autograd_notices_that_the_state_was_written(device: str) -> None:
    inputs = make_state_update_inputs(device=device)
    scale = torch.ones((), device=device, requires_grad=True)
    product = scale * inputs["state"]
    selective_state_update(**inputs)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


def test_state_that_overlaps_itself_is_refused(device: str) -> None:
    inputs = make_state_update_inputs(device=device)
    one, buffer = inputs["state"][:1], torch.zeros(300, device=device)
    for state in (one.expand(2, -1, -1), buffer.as_strided((2, 8, 16), (128, 15, 1))):
        with pytest.raises(
            ValueError,
            match="selective_state_update: state is updated in place, so its elements must not share",
        ):
            selective_state_update(**inputs | {"state": state})
