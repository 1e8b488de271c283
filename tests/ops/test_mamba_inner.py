"""mamba_inner_fn against float64, with every gradient; what it keeps for the backward; its errors."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mamba_aot import mamba_inner_fn
from mamba_aot.reference import mamba_inner_ref
from mamba_aot.testing import assert_matches_reference, make_mamba_inner_inputs, results_of

# Dynamo warns about itself, differently in every version of torch.
pytestmark = pytest.mark.filterwarnings("default")

COMPLEX = {"is_complex": True}
HALF = {"dtype": torch.float16}
BRAIN = {"dtype": torch.bfloat16}
CONSTANT = {"constant_B": True, "constant_C": True}
EVERYTHING = {"biases": True, "norms": True}
NOTHING = {"conv_bias": False, "out_bias": False, "D": False, "delta_bias": False, "delta_softplus": False}

# The base row, then rows that change one thing, then rows where changes meet.
ROWS: dict[str, dict[str, Any]] = {
    "base": {},
    "one step": {"length": 1},
    "130 steps": {"length": 130},
    "one sequence": {"batch": 1},
    "one channel": {"dim": 1},
    "state 1": {"state": 1},
    "state 24": {"state": 24},
    "rank 1": {"rank": 1},
    "width 2": {"width": 2},
    "width 9": {"width": 9},
    "channel-last": {"layout": "channel"},
    "sliced": {"layout": "sliced"},
    "strided": {"layout": "strided"},
    "no options": NOTHING,
    "biases": {"biases": True},
    "norms": {"norms": True},
    "everything": EVERYTHING,
    "everything, channel-last": {**EVERYTHING, "layout": "channel"},
    "constant B": {"constant_B": True},
    "constant C": {"constant_C": True},
    "constant B and C": CONSTANT,
    "constant B, everything": {**EVERYTHING, "constant_B": True},
    "complex": COMPLEX,
    "complex, everything": {**COMPLEX, **EVERYTHING},
    "complex, constant C": {**COMPLEX, "constant_C": True},
    "complex, constant B and C": {**COMPLEX, **CONSTANT, "norms": True},
    "complex, channel-last": {**COMPLEX, "layout": "channel"},
    "float16": HALF,
    "float16, everything": {**HALF, **EVERYTHING},
    "float16, weights too": {**HALF, "weight_dtype": torch.float16},
    "bfloat16": BRAIN,
    "bfloat16, everything, channel-last": {**BRAIN, **EVERYTHING, "layout": "channel"},
    "bfloat16, constant B, weights too": {**BRAIN, "constant_B": True, "weight_dtype": torch.bfloat16},
    "bfloat16, complex, everything": {**BRAIN, **COMPLEX, **EVERYTHING},
    "no sequences": {"batch": 0},
    "no steps": {"length": 0},
}
each_level = pytest.mark.parametrize("level", [0, 1])


@each_level
@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_matches_float64(row: dict[str, Any], level: int, device: str) -> None:
    inputs = make_mamba_inner_inputs(**row, checkpoint_lvl=level, device=device)
    assert_matches_reference(mamba_inner_fn, mamba_inner_ref, inputs)


@pytest.mark.parametrize("row", [EVERYTHING, {**COMPLEX, "constant_B": True, "norms": True}], ids=str)
@each_level
def test_gradcheck(row: dict[str, Any], level: int) -> None:
    inputs = make_mamba_inner_inputs(
        1, 2, 5, 2, rank=2, d_model=3, dtype=torch.float64, checkpoint_lvl=level, **row
    )
    names = [name for name, value in inputs.items() if isinstance(value, Tensor)]

    def call(*tensors: Tensor) -> Tensor:
        return mamba_inner_fn(**inputs | dict(zip(names, tensors, strict=True)))

    assert torch.autograd.gradcheck(call, [inputs[name].requires_grad_() for name in names], fast_mode=True)


@pytest.mark.parametrize("row", [{}, EVERYTHING, {**COMPLEX, **CONSTANT}], ids=["base", "all", "constant"])
def test_both_levels_are_bit_equal(row: dict[str, Any], device: str) -> None:
    inputs = make_mamba_inner_inputs(**row, length=70, device=device)
    kept = results_of(mamba_inner_fn, inputs | {"checkpoint_lvl": 0})
    again = results_of(mamba_inner_fn, inputs)
    assert kept.keys() == again.keys()
    assert all(torch.equal(kept[name], again[name]) for name in kept)


@each_level
def test_keeps_what_it_should(level: int, device: str) -> None:
    inputs = make_mamba_inner_inputs(dim=16, length=70, checkpoint_lvl=level, device=device)
    leaves = {n: t.requires_grad_() if isinstance(t, Tensor) else t for n, t in inputs.items()}
    held = {t.untyped_storage().data_ptr() for t in inputs.values() if isinstance(t, Tensor)}
    kept: dict[int, int] = {}

    def keep(t: Tensor) -> Tensor:
        if t.untyped_storage().data_ptr() not in held:
            kept[t.untyped_storage().data_ptr()] = t.numel()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        mamba_inner_fn(**leaves)
    size = 2 * 16 * 70
    # The result of the scan, for the projection out; at level 0 the convolved sequence and delta as well.
    assert sum(1 for numel in kept.values() if numel == size) == (1 if level else 3)


@pytest.mark.parametrize(
    "need", ["xz", "x_proj_weight", "A", "dt_rms_weight", "out_proj_bias", "C_proj_bias"]
)
def test_gradient_of_one_input_alone(need: str, device: str) -> None:
    inputs = make_mamba_inner_inputs(**EVERYTHING, device=device)
    together = results_of(mamba_inner_fn, inputs)[f"grad {need}"]
    alone = results_of(lambda **one: mamba_inner_fn(**inputs | one), {need: inputs[need]})[f"grad {need}"]
    assert torch.equal(alone, together)


def test_backward_can_be_repeated(device: str) -> None:
    inputs = make_mamba_inner_inputs(device=device)
    inputs["xz"].requires_grad_()
    loss = mamba_inner_fn(**inputs).square().sum()
    first, second = (torch.autograd.grad(loss, inputs["xz"], retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_inside_a_checkpoint(device: str) -> None:
    inputs = make_mamba_inner_inputs(device=device)
    wanted = results_of(mamba_inner_fn, inputs)
    for reentrant in (False, True):

        def recomputed(reentrant: bool = reentrant, **inputs: Any) -> Any:
            names, values = zip(*inputs.items(), strict=True)
            return torch.utils.checkpoint.checkpoint(
                lambda *values: mamba_inner_fn(**dict(zip(names, values, strict=True))),
                *values,
                use_reentrant=reentrant,
            )

        leaves = {n: t.detach().requires_grad_() if isinstance(t, Tensor) else t for n, t in inputs.items()}
        recomputed(**leaves).backward(torch.ones_like(wanted["out 0"]))
        plain = {n: t.detach().requires_grad_() if isinstance(t, Tensor) else t for n, t in inputs.items()}
        mamba_inner_fn(**plain).backward(torch.ones_like(wanted["out 0"]))
        assert all(
            torch.equal(leaves[name].grad, plain[name].grad)
            for name, value in inputs.items()
            if isinstance(value, Tensor)
        )


@each_level
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_is_the_low_precision_call(dtype: torch.dtype, level: int, device: str) -> None:
    inputs = make_mamba_inner_inputs(**EVERYTHING, checkpoint_lvl=level, device=device)
    low = ("xz", "x_proj_weight", "delta_proj_weight", "out_proj_weight")

    def under_autocast(**inputs: Any) -> Tensor:
        with torch.autocast(device, dtype=dtype):
            return mamba_inner_fn(**inputs)

    def by_hand(**inputs: Any) -> Tensor:
        return mamba_inner_fn(**inputs | {name: inputs[name].to(dtype) for name in low})

    got, wanted = results_of(under_autocast, inputs), results_of(by_hand, inputs)
    assert got["out 0"].dtype == dtype
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)


def test_without_gradients_nothing_changes(device: str) -> None:
    inputs = make_mamba_inner_inputs(**EVERYTHING, device=device)
    with_grad, without = (results_of(mamba_inner_fn, inputs, backward=b)["out 0"] for b in (True, False))
    assert torch.equal(with_grad, without)


def test_compiles_as_one_graph(device: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(mamba_inner_fn, fullgraph=True, dynamic=True, backend="aot_eager")
    for length in (33, 70):
        inputs = make_mamba_inner_inputs(length=length, **EVERYTHING, device=device)
        torch.testing.assert_close(results_of(compiled, inputs), results_of(mamba_inner_fn, inputs))


@pytest.mark.parametrize("layout", ["seq", "channel"])
def test_as_transformers_calls_it(layout: str, device: str) -> None:
    # By position up to D, then by name; a float32 bias beside a bfloat16 projection.
    inputs = make_mamba_inner_inputs(dtype=torch.bfloat16, layout=layout, device=device)
    names = ("delta_bias", "delta_softplus")
    positional = [value for name, value in inputs.items() if name not in names][:11]
    out = mamba_inner_fn(*positional, **{name: inputs[name] for name in names})
    assert inputs["out_proj_bias"].dtype == torch.float32
    assert out.dtype == torch.bfloat16
    assert out.is_contiguous()
    assert torch.equal(out, mamba_inner_fn(**inputs))


# Base call: batch 2, 8 channels, 33 steps, state 4, rank 3, d_model 6; each row changes some arguments.
SENTENCES: dict[str, tuple[dict[str, Any], str]] = {
    "no tensor": ({"xz": 1}, "xz must be a torch.Tensor, got int"),
    "level": ({"checkpoint_lvl": 2}, "checkpoint_lvl must be 0 or 1, got 2"),
    "odd channels": ({"xz": torch.zeros(2, 15, 33)}, "xz must be [batch, 2 * channels, length]"),
    "A": ({"A": torch.zeros(7, 4)}, "A must be [channels, state] = [8, 4], got [7, 4]"),
    "conv": ({"conv1d_weight": torch.zeros(8, 4)}, "conv1d_weight must be [channels, 1, width]"),
    "x_proj": (
        {"x_proj_weight": torch.zeros(10, 8)},
        "x_proj_weight must be [rank + numbers of B and C, channels] = [11, 8], got [10, 8]",
    ),
    "delta_proj": ({"delta_proj_weight": torch.zeros(8)}, "delta_proj_weight must be [channels, rank], got"),
    "out_proj": ({"out_proj_weight": torch.zeros(6, 9)}, "out_proj_weight must be [d_model, channels] ="),
    "out bias": ({"out_proj_bias": torch.zeros(5)}, "out_proj_bias must be [d_model] = [6], got [5]"),
    "out bias dtype": (
        {"out_proj_bias": torch.zeros(6, dtype=torch.int32)},
        "out_proj_bias must be real and floating, got torch.int32",
    ),
    "B bias dtype": (
        {"B_proj_bias": torch.zeros(4, dtype=torch.complex64)},
        "B_proj_bias must be real and floating, got torch.complex64",
    ),
    "device": ({"out_proj_weight": torch.zeros(6, 8, device="meta")}, "must be on cpu like xz, got meta"),
    "norm of delta": ({"dt_rms_weight": torch.zeros(3)}, "dt_rms_weight must be [channels] = [8], got [3]"),
    "norm of B": ({"b_rms_weight": torch.zeros(8)}, "b_rms_weight must be [state] = [4], got [8]"),
    "dtype": (
        {"x_proj_weight": torch.zeros(11, 8).bfloat16()},
        "x_proj_weight must have the dtype of xz, torch.float32, got torch.bfloat16",
    ),
    "complex B": (
        {"B": torch.zeros(8, 4, dtype=torch.complex64), "x_proj_weight": torch.zeros(7, 8)},
        "B must be real because A is, got torch.complex64",
    ),
    "bias of a given C": (
        {"C": torch.zeros(8, 4), "C_proj_bias": torch.zeros(4), "x_proj_weight": torch.zeros(7, 8)},
        "C_proj_bias must be None because C is given",
    ),
    "D": ({"D": torch.zeros(3)}, "D must be [channels] = [8], got [3]"),
}


@pytest.mark.parametrize(("change", "sentence"), SENTENCES.values(), ids=SENTENCES)
def test_sentence(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(TypeError if "torch.Tensor" in sentence else ValueError) as caught:
        mamba_inner_fn(**make_mamba_inner_inputs() | change)
    assert sentence in str(caught.value)
