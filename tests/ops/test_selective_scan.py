"""selective_scan against float64: every size, memory order, dtype and option, forward and every gradient."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from mamba_aot import selective_scan_fn
from mamba_aot.reference import selective_scan_ref
from mamba_aot.testing import assert_matches_reference, make_scan_inputs, place, results_of

scan: Callable[..., Any] = functools.partial(selective_scan_fn, return_last_state=True)
scan_ref: Callable[..., Any] = functools.partial(selective_scan_ref, return_last_state=True)

HALF = {"dtype": torch.float16}
BRAIN = {"dtype": torch.bfloat16}
COMPLEX = {"is_complex": True}
EVERYTHING = {"decay_gate": True, "initial_state": True, "discretization": "zoh", "groups": 2}
NOTHING = {"D": False, "z": False, "delta_bias": False, "delta_softplus": False}

# The base row, then rows that change one thing, then rows where two changes meet in one kernel.
ROWS: dict[str, dict[str, Any]] = {
    "base": {},
    "one step": {"length": 1},
    "one chunk": {"length": 64},
    "two chunks and a step": {"length": 129},
    "long": {"length": 1000, "dim": 3},
    "one sequence": {"batch": 1},
    "1200 sequences": {"batch": 1200, "length": 5, "dim": 2, "state": 5},
    "one channel": {"dim": 1},
    "24 channels": {"dim": 24},
    "1000 channels": {"dim": 1000, "length": 20, "state": 4},
    "state 1": {"state": 1},
    "state 3": {"state": 3},
    "state 24": {"state": 24},
    "state 128": {"state": 128, "dim": 4},
    "state 256": {"state": 256, "dim": 4},
    "channel-last": {"layout": "channel"},
    "sliced": {"layout": "sliced"},
    "strided": {"layout": "strided"},
    "channel-last, one step": {"layout": "channel", "length": 1},
    "channel-last, 1000 channels": {"layout": "channel", "dim": 1000, "length": 20, "state": 4},
    "no D": {"D": False},
    "no z": {"z": False},
    "no delta_bias": {"delta_bias": False},
    "no softplus": {"delta_softplus": False},
    "no options": NOTHING,
    "gate": {"decay_gate": True},
    "initial state": {"initial_state": True},
    "zoh": {"discretization": "zoh"},
    "1 group": {"groups": 1},
    "2 groups": {"groups": 2},
    "a group per channel": {"groups": 8},
    "everything": EVERYTHING,
    "everything, long": {**EVERYTHING, "length": 1000, "dim": 4},
    "everything, channel-last": {**EVERYTHING, "layout": "channel"},
    "everything, strided": {**EVERYTHING, "layout": "strided", "length": 130},
    "complex": COMPLEX,
    "complex, one step": {**COMPLEX, "length": 1},
    "complex, long": {**COMPLEX, "length": 1000, "dim": 3},
    "complex, state 3": {**COMPLEX, "state": 3},
    "complex, state 128": {**COMPLEX, "state": 128, "dim": 4},
    "complex, no options": {**COMPLEX, **NOTHING},
    "complex, gate": {**COMPLEX, "decay_gate": True},
    "complex, initial state": {**COMPLEX, "initial_state": True},
    "complex, zoh": {**COMPLEX, "discretization": "zoh"},
    "complex, channel-last": {**COMPLEX, "layout": "channel"},
    "complex, sliced": {**COMPLEX, "layout": "sliced"},
    "complex, everything": {**COMPLEX, **EVERYTHING, "length": 129},
    "complex, everything, channel-last": {**COMPLEX, **EVERYTHING, "layout": "channel"},
    "interleaved": {**COMPLEX, "interleaved": True},
    "interleaved, everything": {**COMPLEX, **EVERYTHING, "interleaved": True, "layout": "sliced"},
    "float16": HALF,
    "float16, everything": {**HALF, **EVERYTHING},
    "float16, channel-last": {**HALF, "layout": "channel"},
    "float16, weights too": {**HALF, "weight_dtype": torch.float16},
    "float16, complex": {**HALF, **COMPLEX},
    "float16, complex, one step": {**HALF, **COMPLEX, "length": 1},
    "float16, complex, long, initial state": {**HALF, **COMPLEX, "length": 1000, "initial_state": True},
    "float16, complex, 40 channels, channel-last": {**HALF, **COMPLEX, "dim": 40, "layout": "channel"},
    "float16, complex, 1000 channels": {**HALF, **COMPLEX, "dim": 1000, "length": 20, "state": 5},
    "float16, complex, state 3": {**HALF, **COMPLEX, "state": 3, "length": 129},
    "float16, complex, state 24, 2 groups": {**HALF, **COMPLEX, "state": 24, "groups": 2, "length": 130},
    "float16, complex, state 128": {**HALF, **COMPLEX, "state": 128, "dim": 4},
    "float16, complex, no options": {**HALF, **COMPLEX, **NOTHING, "length": 128},
    "float16, complex, zoh": {**HALF, **COMPLEX, "discretization": "zoh"},
    "float16, complex, sliced": {**HALF, **COMPLEX, "layout": "sliced"},
    "float16, complex, no states": {**HALF, **COMPLEX, "state": 0},
    "bfloat16": BRAIN,
    "bfloat16, long": {**BRAIN, "length": 1000, "dim": 3},
    "bfloat16, everything": {**BRAIN, **EVERYTHING},
    "bfloat16, channel-last": {**BRAIN, "layout": "channel"},
    "bfloat16, strided": {**BRAIN, "layout": "strided"},
    "bfloat16, weights too": {**BRAIN, "weight_dtype": torch.bfloat16, "decay_gate": True},
    "bfloat16, complex": {**BRAIN, **COMPLEX},
    "bfloat16, complex, 2 groups, strided": {**BRAIN, **COMPLEX, "groups": 2, "layout": "strided"},
    "bfloat16, complex, everything": {**BRAIN, **COMPLEX, **EVERYTHING, "layout": "channel"},
    "bfloat16, interleaved": {**BRAIN, **COMPLEX, "interleaved": True, "weight_dtype": torch.bfloat16},
    "constant B": {"constant": "B"},
    "constant C": {"constant": "C"},
    "constant B and C": {"constant": "BC"},
    "constant B, groups, long": {"constant": "B", "groups": 2, "length": 1000, "dim": 4},
    "constant B and C, everything": {**EVERYTHING, "constant": "BC"},
    "constant C, channel-last": {"constant": "C", "layout": "channel", "dim": 24},
    "constant B, complex": {**COMPLEX, "constant": "B"},
    "constant C, complex": {**COMPLEX, "constant": "C", "length": 129},
    "constant B and C, complex, everything": {**COMPLEX, **EVERYTHING, "constant": "BC"},
    "constant B, bfloat16": {**BRAIN, "constant": "B", "weight_dtype": torch.bfloat16},
    "constant B and C, no states": {"constant": "BC", "state": 0},
    "constant B and C, no steps": {"constant": "BC", "length": 0},
    "2 heads": {"heads": 2},
    "1 head": {"heads": 1, "length": 64},
    "2 heads, channel-last": {"heads": 2, "layout": "channel"},
    "3 heads of 9": {"heads": 3, "dim": 27, "layout": "strided"},
    "4 heads of 32": {"heads": 4, "dim": 128, "length": 70, "state": 4},
    "2 heads, complex, everything": {**COMPLEX, **EVERYTHING, "heads": 2},
    "2 heads, bfloat16": {**BRAIN, "heads": 2},
    "2 heads, no options": {**NOTHING, "heads": 2},
    "no sequences": {"batch": 0},
    "no channels": {"dim": 0},
    "no states": {"state": 0},
    "no steps": {"length": 0, "initial_state": True},
    "no steps, complex": {**COMPLEX, "length": 0, "initial_state": True},
    "no steps, no state": {"length": 0},
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_matches_float64(row: dict[str, Any], device: str) -> None:
    assert_matches_reference(scan, scan_ref, make_scan_inputs(**row, device=device))


@pytest.mark.gpu
@pytest.mark.parametrize("length", [4112, 4480])
@pytest.mark.parametrize("layout", ["seq", "channel"])
@pytest.mark.parametrize("kind", [{}, {**HALF, **COMPLEX}], ids=["real", "complex"])
def test_time_in_spans_of_several_launches(length: int, layout: str, kind: dict[str, Any]) -> None:
    """A launch of the backward takes 4096 steps, in spans where channels are few; the rest is one or two."""
    inputs = make_scan_inputs(2, 12, length, 3, layout=layout, initial_state=True, **kind, device="cuda")
    assert_matches_reference(scan, scan_ref, inputs)


@pytest.mark.gpu
@pytest.mark.parametrize("length", [1024, 1100, 2624])
@pytest.mark.parametrize("state", [5, 24])
@pytest.mark.parametrize("layout", ["seq", "channel"])
@pytest.mark.parametrize("initial_state", [False, True], ids=["from zero", "from a state"])
@pytest.mark.parametrize("kind", [{}, {**HALF, **COMPLEX}], ids=["real", "complex"])
def test_forward_in_spans(
    length: int, state: int, layout: str, initial_state: bool, kind: dict[str, Any]
) -> None:
    """Where channels are few, it splits time from 1024 steps on, into eight spans, six or seven."""
    options = {"layout": layout, "initial_state": initial_state, "groups": 2, **kind}
    inputs = make_scan_inputs(2, 24, length, state, **options, device="cuda")
    assert_matches_reference(scan, scan_ref, inputs)


@pytest.mark.parametrize("b_dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("c_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_b_and_c_keep_their_own_dtypes(b_dtype: torch.dtype, c_dtype: torch.dtype, device: str) -> None:
    inputs = make_scan_inputs(dtype=torch.bfloat16, device=device)
    inputs |= {"B": inputs["B"].to(b_dtype), "C": inputs["C"].to(c_dtype)}
    assert_matches_reference(scan, scan_ref, inputs)


@pytest.mark.parametrize("name", ["A", "B", "C", "D", "delta_bias", "decay_gate"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_each_weight_keeps_its_own_dtype(name: str, dtype: torch.dtype, device: str) -> None:
    inputs = make_scan_inputs(dtype=torch.float16, decay_gate=True, device=device)
    assert_matches_reference(scan, scan_ref, inputs | {name: inputs[name].to(dtype)})


@pytest.mark.parametrize("delta_dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("z_dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_each_sequence_keeps_its_own_dtype(
    dtype: torch.dtype, delta_dtype: torch.dtype, z_dtype: torch.dtype, device: str
) -> None:
    options = {"dtype": dtype, "delta_dtype": delta_dtype, "z_dtype": z_dtype, "layout": "channel"}
    assert_matches_reference(scan, scan_ref, make_scan_inputs(**options, device=device))


def test_a_bias_per_channel_beside_a_delta_per_head(device: str) -> None:
    inputs = make_scan_inputs(heads=2, device=device)
    inputs["delta_bias"] = inputs["delta_bias"].repeat_interleave(4)
    assert_matches_reference(scan, scan_ref, inputs)


def test_a_constant_is_the_same_at_every_step(device: str) -> None:
    for is_complex in (False, True):
        inputs = make_scan_inputs(constant="BC", is_complex=is_complex, device=device)
        along_time = {n: inputs[n][None, :, :, None].expand(2, -1, -1, 63) for n in ("B", "C")}
        got, wanted = scan(**inputs), scan(**inputs | along_time)
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-8, 1e-4, 1e-2, 0.3])
def test_zoh_where_a_vanishes(size: float, is_complex: bool, device: str) -> None:
    inputs = make_scan_inputs(is_complex=is_complex, discretization="zoh", device=device)
    inputs["A"] = inputs["A"] / inputs["A"].abs().clamp(min=1e-6) * size
    assert_matches_reference(scan, scan_ref, inputs)


def test_softplus_of_large_and_small_steps(device: str) -> None:
    inputs = make_scan_inputs(length=129, delta_bias=False, device=device)
    # Past 20 softplus is the identity; far below, exp.
    inputs["delta"] = torch.linspace(-30, 30, inputs["delta"].numel(), device=device).view_as(inputs["delta"])
    assert_matches_reference(scan, scan_ref, inputs)


@pytest.mark.parametrize("layout", ["channel", "sliced", "strided"])
@pytest.mark.parametrize("name", ["u", "delta", "z", "B", "C", "decay_gate"])
def test_each_sequence_has_its_own_memory_order(name: str, layout: str, device: str) -> None:
    inputs = make_scan_inputs(**EVERYTHING, length=70, device=device)
    assert_matches_reference(scan, scan_ref, inputs | {name: place(inputs[name], layout)})
    others = make_scan_inputs(**EVERYTHING, length=70, layout=layout, device=device)
    assert_matches_reference(scan, scan_ref, others | {name: inputs[name]})


@pytest.mark.parametrize("layout", ["seq", "channel"])
def test_gradients_arrive_in_any_memory_order(layout: str, device: str) -> None:
    def transposed(function: Callable[..., Any], inputs: dict[str, Any]) -> torch.Tensor:
        return function(**inputs)[0].transpose(1, 2)

    def summed(function: Callable[..., Any], inputs: dict[str, Any]) -> torch.Tensor:
        return function(**inputs)[0].sum() + function(**inputs)[1].sum()

    inputs = make_scan_inputs(**EVERYTHING, length=70, layout=layout, device=device)
    for form in (transposed, summed):
        assert_matches_reference(
            lambda form=form, **inputs: form(scan, inputs),
            lambda form=form, **inputs: form(scan_ref, inputs),
            inputs,
        )


def test_without_last_state(device: str) -> None:
    inputs = make_scan_inputs(**EVERYTHING, device=device)
    assert_matches_reference(selective_scan_fn, selective_scan_ref, inputs)
    out = selective_scan_fn(**inputs)
    assert isinstance(out, torch.Tensor)
    assert torch.equal(out, scan(**inputs)[0])


def test_loss_on_the_last_state_alone(device: str) -> None:
    def last_state(**inputs: Any) -> torch.Tensor:
        return scan(**inputs)[1]

    def last_state_ref(**inputs: Any) -> torch.Tensor:
        return scan_ref(**inputs)[1]

    for is_complex in (False, True):
        inputs = make_scan_inputs(is_complex=is_complex, **EVERYTHING, length=129, device=device)
        assert_matches_reference(last_state, last_state_ref, inputs)


@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("discretization", ["euler", "zoh"])
def test_gradcheck(is_complex: bool, discretization: str) -> None:
    inputs = make_scan_inputs(
        1, 2, 66, 2, dtype=torch.float64, is_complex=is_complex, decay_gate=True, initial_state=True, groups=2
    )
    inputs["discretization"] = discretization
    names = [name for name, value in inputs.items() if isinstance(value, torch.Tensor)]

    def call(*tensors: torch.Tensor) -> Any:
        return scan(**inputs | dict(zip(names, tensors, strict=True)))

    leaves = [inputs[name].requires_grad_() for name in names]
    assert torch.autograd.gradcheck(call, leaves, fast_mode=True)


def test_float64_equals_the_reference() -> None:
    inputs = make_scan_inputs(dtype=torch.float64, is_complex=True, **EVERYTHING)
    got, wanted = results_of(scan, inputs), results_of(scan_ref, inputs)
    torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    "need", ["u", "delta", "A", "B", "C", "D", "z", "delta_bias", "decay_gate", "initial_state"]
)
def test_gradient_of_one_input_alone(need: str, device: str) -> None:
    inputs = make_scan_inputs(**EVERYTHING, device=device)
    together = results_of(scan, inputs)[f"grad {need}"]

    def call(**alone: Any) -> Any:
        return scan(**inputs | alone)

    assert torch.equal(results_of(call, {need: inputs[need]})[f"grad {need}"], together)


def test_second_derivative_is_refused(device: str) -> None:
    inputs = make_scan_inputs(device=device)
    u = inputs["u"].requires_grad_()
    (du,) = torch.autograd.grad(scan(**inputs)[0].square().sum(), u, create_graph=True)
    with pytest.raises(RuntimeError, match="is taken once and in reverse"):
        du.sum().backward()


# mamba_ssm tests/ops/test_selective_scan.py: (rtol, atol) of the outputs, multiples for gradients.
PEER_TOLERANCE = {torch.float32: (6e-4, 2e-3), torch.float16: (3e-3, 5e-3), torch.bfloat16: (3e-2, 5e-2)}


@pytest.mark.parametrize("length", [128, 1024, 4096])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dtype", PEER_TOLERANCE, ids=str)
def test_meets_the_tolerances_of_mamba_ssm(length: int, groups: int, dtype: torch.dtype, device: str) -> None:
    if device == "cpu" and length == 4096 and (groups == 1 or dtype != torch.float32):
        pytest.skip("one reference of this length is enough on a CPU")
    rtol, atol = PEER_TOLERANCE[dtype]
    rtol_weight, atol_weight = max(1e-3, rtol), max(1e-3, atol)
    inputs = make_scan_inputs(2, 4, length, 8, dtype=dtype, groups=groups, device=device)
    torch.manual_seed(0)
    inputs["A"] = -0.5 * torch.rand(4, 8).to(device)
    inputs["delta"] = (0.5 * torch.rand(2, 4, length)).to(inputs["u"])
    inputs["delta_bias"] = 0.5 * torch.rand(4).to(device)
    got, wanted = results_of(scan, inputs), results_of(scan_ref, inputs)
    tolerance = {
        "out 0": (rtol, atol),
        "out 1": (rtol, atol),
        "grad u": (2 * rtol, 2 * atol),
        "grad delta": (5 * rtol, 10 * atol),
        "grad A": (rtol_weight, 5 * atol_weight),
        "grad B": (rtol, atol),
        "grad C": (rtol, atol),
        "grad D": (rtol_weight, atol_weight),
        "grad z": (rtol_weight, atol_weight),
        "grad delta_bias": (rtol_weight, atol_weight),
    }
    assert got.keys() == tolerance.keys()
    for name, (rtol, atol) in tolerance.items():
        torch.testing.assert_close(
            got[name], wanted[name], rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}"
        )
