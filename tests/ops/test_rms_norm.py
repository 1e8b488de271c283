"""The norms against float64: residual and sum, gate, groups; every gradient; their laws."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mamba_aot import layer_norm_fn, layernorm_fn, rms_norm_fn, rmsnorm_fn
from mamba_aot.reference import layer_norm_ref, layernorm_ref, rms_norm_ref, rmsnorm_ref
from mamba_aot.testing import LAYOUTS, assert_matches_reference, make_norm_inputs, results_of

# Dynamo warns about itself, differently in every version of torch.
pytestmark = pytest.mark.filterwarnings("default")

FUNCTIONS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "rms_norm_fn": (rms_norm_fn, rms_norm_ref),
    "layer_norm_fn": (layer_norm_fn, layer_norm_ref),
    "rmsnorm_fn": (rmsnorm_fn, rmsnorm_ref),
    "layernorm_fn": (layernorm_fn, layernorm_ref),
}
HALF = {"dtype": torch.float16}
BRAIN = {"dtype": torch.bfloat16}
ADD: dict[str, Any] = {"residual": True, "prenorm": True}
WIDE = {**ADD, "residual_dtype": torch.float32}
FIRST: dict[str, Any] = {"z": True, "norm_before_gate": False}
LAST: dict[str, Any] = {"z": True}

# The base row, then rows that change one thing, then rows where changes meet in one kernel.
ROWS: dict[str, dict[str, Any]] = {
    "base": {},
    "one row": {"batch": 1, "rows": 1},
    "700 rows": {"rows": 350, "channels": 16},
    "one channel": {"channels": 1},
    "1000 channels": {"channels": 1000, "rows": 9},
    "1024 channels": {"channels": 1024, "rows": 9},
    "4096 channels": {"channels": 4096, "rows": 3},
    "5120 channels": {"channels": 5120, "rows": 3},
    "16384 channels": {"channels": 16384, "rows": 2},
    "20000 channels, one row": {"channels": 20000, "rows": 1, "batch": 1},
    "no bias": {"bias": False},
    "large eps": {"eps": 0.5},
    "transposed": {"layout": "seq"},
    "sliced": {"layout": "sliced"},
    "strided": {"layout": "strided"},
    "float16": HALF,
    "float16, float32 weights": {**HALF, "weight_dtype": torch.float32},
    "float16, bfloat16 weights": {**HALF, "weight_dtype": torch.bfloat16},
    "bfloat16": {**BRAIN, "channels": 1024, "rows": 9},
    "bfloat16, float64 weights": {**BRAIN, "weight_dtype": torch.float64},
    "no rows": {"rows": 0},
    "no batch": {"batch": 0},
    "no channels": {"channels": 0},
}
ADDED: dict[str, dict[str, Any]] = {
    "prenorm alone": {"prenorm": True},
    "prenorm alone, bfloat16, wide sum": {**BRAIN, "prenorm": True, "residual_in_fp32": True},
    "residual alone": {"residual": True},
    "residual": ADD,
    "residual, 700 rows": {**ADD, "rows": 350, "channels": 16},
    "residual, 4096 channels": {**ADD, "channels": 4096, "rows": 3},
    "residual, 5120 channels": {**ADD, "channels": 5120, "rows": 3},
    "residual, transposed": {**ADD, "layout": "seq"},
    "residual, transposed, 1000 channels": {**ADD, "layout": "seq", "channels": 1000, "rows": 9},
    "residual, bfloat16": {**ADD, **BRAIN},
    "residual, bfloat16, wide sum": {**ADD, **BRAIN, "residual_in_fp32": True},
    "residual, float16, wide": {**WIDE, **HALF, "channels": 1024, "rows": 9},
    "residual, bfloat16, wide": {**WIDE, **BRAIN, "residual_in_fp32": True},
    "residual, bfloat16, wide, 5120 channels": {**WIDE, **BRAIN, "channels": 5120, "rows": 3, "bias": False},
    "residual, float32, narrow": {**ADD, "residual_dtype": torch.bfloat16},
    "residual, float32, narrow, wide sum": {**ADD, "residual_dtype": torch.float16, "residual_in_fp32": True},
    "residual, no rows": {**ADD, "rows": 0},
    "residual, no channels": {**ADD, "channels": 0},
}
GATED: dict[str, dict[str, Any]] = {
    "gate last": LAST,
    "gate first": FIRST,
    "gate last, no bias": {**LAST, "bias": False},
    "gate first, no bias": {**FIRST, "bias": False},
    "gate last, 5120 channels": {**LAST, "channels": 5120, "rows": 3},
    "gate first, 5120 channels": {**FIRST, "channels": 5120, "rows": 3},
    "gate first, 1000 channels": {**FIRST, "channels": 1000, "rows": 9},
    "gate last, bfloat16": {**LAST, **BRAIN},
    "gate first, float16": {**FIRST, **HALF},
    "gate first, bfloat16, 1024 channels": {**FIRST, **BRAIN, "channels": 1024, "rows": 9},
    "gate first, strided": {**FIRST, "layout": "strided"},
    "groups": {"group_size": 8},
    "groups of one": {"group_size": 1},
    "groups, gate last": {**LAST, "group_size": 12},
    "groups, gate first": {**FIRST, "group_size": 8},
    "groups of 512, gate first": {**FIRST, "group_size": 512, "channels": 4096, "rows": 3},
    "groups of 300, gate last": {**LAST, "group_size": 300, "channels": 900, "rows": 9},
    "groups, gate first, bfloat16": {**FIRST, **BRAIN, "group_size": 64, "channels": 256, "rows": 9},
    "gate, no rows": {**LAST, "rows": 0},
    "groups, no channels": {**FIRST, "channels": 0, "group_size": 8},
}


def both(name: str, row: dict[str, Any], device: str) -> None:
    function, reference = FUNCTIONS[name]
    assert_matches_reference(function, reference, make_norm_inputs(**row, device=device))


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_matches_float64(name: str, row: dict[str, Any], device: str) -> None:
    both(name, row, device)


@pytest.mark.parametrize("row", ADDED.values(), ids=ADDED)
@pytest.mark.parametrize("name", ["rms_norm_fn", "layer_norm_fn"])
def test_with_a_residual_matches_float64(name: str, row: dict[str, Any], device: str) -> None:
    both(name, row, device)


@pytest.mark.parametrize("row", GATED.values(), ids=GATED)
@pytest.mark.parametrize("name", ["rmsnorm_fn", "layernorm_fn"])
def test_with_a_gate_matches_float64(name: str, row: dict[str, Any], device: str) -> None:
    both(name, row, device)


@pytest.mark.parametrize("shape", [(24,), (7, 24), (2, 3, 5, 24), (1, 2, 3, 1, 24), (0, 2, 3, 24)], ids=str)
def test_any_number_of_dimensions(shape: tuple[int, ...], device: str) -> None:
    inputs = make_norm_inputs(channels=24, residual=True, prenorm=True, device=device)
    for name in ("x", "residual"):
        inputs[name] = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    inputs["x"] = inputs["x"].transpose(0, -2) if len(shape) > 1 else inputs["x"]
    inputs["residual"] = inputs["residual"].transpose(0, -2) if len(shape) > 1 else inputs["residual"]
    assert_matches_reference(rms_norm_fn, rms_norm_ref, inputs)


def test_is_the_norm_of_torch(device: str) -> None:
    inputs = make_norm_inputs(channels=96, device=device)
    x, weight, bias = inputs["x"], inputs["weight"], inputs["bias"]
    rms, layer = torch.nn.functional.rms_norm, torch.nn.functional.layer_norm
    torch.testing.assert_close(rms_norm_fn(x, weight, eps=1e-5), rms(x, (96,), weight, 1e-5))
    torch.testing.assert_close(layer_norm_fn(x, weight, bias), layer(x, (96,), weight, bias, 1e-6))
    torch.testing.assert_close(layer_norm_fn(x, weight, None, is_rms_norm=True), rms(x, (96,), weight, 1e-6))
    torch.testing.assert_close(layernorm_fn(x, weight, None, is_rms_norm=True), rms(x, (96,), weight, 1e-6))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_large_means_cancel(scale: float, device: str) -> None:
    inputs = make_norm_inputs(channels=1000, rows=5, device=device)
    inputs["x"] = scale * (inputs["x"] + 100)
    assert_matches_reference(layer_norm_fn, layer_norm_ref, inputs)


@pytest.mark.parametrize("shape", [(0,), (3, 0), (2, 3, 0), (2, 2, 3, 0), (0, 8), (0, 0)], ids=str)
def test_nothing_is_normed_to_nothing(device: str, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, device=device, requires_grad=True)
    weight = torch.ones(shape[-1], device=device, requires_grad=True)
    out, total = rms_norm_fn(x, weight, residual=x, prenorm=True)
    (out.sum() + total.sum()).backward()
    assert out.shape == total.shape == shape
    assert x.grad is not None
    assert x.grad.shape == shape
    assert weight.grad is not None
    assert not weight.grad.any()


def test_gates_far_from_zero_are_finite(device: str) -> None:
    for before in (True, False):
        inputs = make_norm_inputs(channels=64, z=True, norm_before_gate=before, device=device)
        inputs["z"] = 200 * inputs["z"]
        results = results_of(rmsnorm_fn, inputs)
        assert all(value.isfinite().all() for value in results.values())


# What the laws below are held on: a function with options that reach all of its operands.
FORMS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "rms": (rms_norm_fn, ADD),
    "rms, mixed": (rms_norm_fn, {**WIDE, **BRAIN}),
    "layer, 5120 channels": (layer_norm_fn, {**ADD, "channels": 5120, "rows": 7}),
    "gate last": (layernorm_fn, {**LAST, "group_size": 12}),
    "gate first": (rmsnorm_fn, {**FIRST, "channels": 1024, "rows": 9}),
}
each_form = pytest.mark.parametrize(("function", "options"), FORMS.values(), ids=FORMS)
each_layout = pytest.mark.parametrize("layout", LAYOUTS)


def equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@each_form
def test_rows_are_separate(function: Callable[..., Any], options: dict[str, Any], device: str) -> None:
    inputs = make_norm_inputs(**options, device=device)
    order = torch.randperm(inputs["x"].shape[1], generator=torch.Generator().manual_seed(0)).to(device)
    mixed = {name: v[:, order] if name in ("x", "residual", "z") else v for name, v in inputs.items()}
    of_rows = results_of(lambda **i: function(**i), inputs, backward=False)
    of_mixed = results_of(lambda **i: function(**i), mixed, backward=False)
    assert equal({name: value[:, order] for name, value in of_rows.items()}, of_mixed)


@each_form
@each_layout
def test_repeats_itself_bit_for_bit(
    function: Callable[..., Any], options: dict[str, Any], layout: str, device: str
) -> None:
    inputs = make_norm_inputs(**options, layout=layout, device=device)
    first = results_of(function, inputs)
    for _ in range(3):
        assert equal(results_of(function, inputs), first)


@each_form
def test_number_of_threads_does_not_matter(function: Callable[..., Any], options: dict[str, Any]) -> None:
    inputs = make_norm_inputs(**{"rows": 200, **options})
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = results_of(function, inputs)
        torch.set_num_threads(3)
        assert equal(results_of(function, inputs), one)
    finally:
        torch.set_num_threads(threads)


@each_form
@each_layout
def test_results_share_no_memory_and_are_contiguous(
    function: Callable[..., Any], options: dict[str, Any], layout: str, device: str
) -> None:
    inputs = make_norm_inputs(**options, layout=layout, device=device)
    held = {t.untyped_storage().data_ptr() for t in inputs.values() if isinstance(t, Tensor)}
    for name, value in results_of(function, inputs).items():
        assert value.untyped_storage().data_ptr() not in held, name
        assert value.is_contiguous(), name


@pytest.mark.parametrize(
    ("options", "kept"),
    [({**WIDE, **BRAIN}, ["sum"]), ({**ADD, **BRAIN}, ["x", "residual"])],
    ids=["exact", "rounded"],
)
def test_an_exact_sum_is_kept_instead_of_what_was_added(
    options: dict[str, Any], kept: list[str], device: str
) -> None:
    inputs = make_norm_inputs(**options, device=device)
    leaves = {n: v.requires_grad_() if isinstance(v, Tensor) else v for n, v in inputs.items()}
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.data_ptr()) or t, lambda t: t):
        _, total = rms_norm_fn(**leaves)
    names = {inputs["x"].data_ptr(): "x", inputs["residual"].data_ptr(): "residual", total.data_ptr(): "sum"}
    assert [names[at] for at in saved if at in names] == kept


def test_sum_without_a_residual_is_a_copy(device: str) -> None:
    inputs = make_norm_inputs(device=device)
    _, total = rms_norm_fn(**inputs, prenorm=True)
    assert torch.equal(total, inputs["x"])
    assert total.data_ptr() != inputs["x"].data_ptr()


@pytest.mark.parametrize("used", [0, 1])
def test_gradient_of_one_result_alone(used: int, device: str) -> None:
    for options in (ADD, {**WIDE, **BRAIN}):
        assert_matches_reference(
            lambda **i: rms_norm_fn(**i)[used],
            lambda **i: rms_norm_ref(**i)[used],
            make_norm_inputs(**options, device=device),
        )


@pytest.mark.parametrize("need", ["x", "weight", "bias", "residual"])
def test_gradient_of_one_input_alone(need: str, device: str) -> None:
    inputs = make_norm_inputs(**ADD, device=device)
    together = results_of(rms_norm_fn, inputs)[f"grad {need}"]
    alone = results_of(lambda **one: rms_norm_fn(**inputs | one), {need: inputs[need]})[f"grad {need}"]
    assert torch.equal(alone, together)


@pytest.mark.parametrize(
    ("function", "options"),
    [
        (rms_norm_fn, ADD),
        (layer_norm_fn, ADD),
        (rmsnorm_fn, {**FIRST, "group_size": 3}),
        (layernorm_fn, {**LAST, "group_size": 3}),
        (layernorm_fn, FIRST),
    ],
    ids=["rms", "layer", "gate first", "gate last, centered", "gate first, centered"],
)
def test_gradcheck(function: Callable[..., Any], options: dict[str, Any]) -> None:
    inputs = make_norm_inputs(1, 3, 6, dtype=torch.float64, layout="seq", **options)
    names = [name for name, value in inputs.items() if isinstance(value, Tensor)]

    def call(*tensors: Tensor) -> Any:
        return function(**inputs | dict(zip(names, tensors, strict=True)))

    assert torch.autograd.gradcheck(call, [inputs[name].requires_grad_() for name in names])


@pytest.mark.parametrize("layout", ["channel", "seq", "strided"])
@pytest.mark.parametrize("centered", [False, True])
def test_opcheck(centered: bool, layout: str, device: str) -> None:
    make = make_norm_inputs
    added = make(**WIDE, **BRAIN, layout=layout, device=device)
    gated = make(**LAST, layout=layout, device=device)
    mixed = make(**LAST, **BRAIN, z_dtype=torch.float32, layout=layout, device=device)
    ops = torch.ops.mamba_aot
    for x, weight, bias, residual, z, size, before, keep in (
        (added["x"], added["weight"], added["bias"], added["residual"], None, 0, None, True),
        (gated["x"], gated["weight"], None, None, gated["z"], 8, False, False),
        (mixed["x"], mixed["weight"], None, None, mixed["z"], 8, True, False),
    ):
        options = (1e-6, size, centered, before)
        tensors = [x, weight, bias, residual, z]
        saved = ops.rms_norm_fwd(*tensors, *options, keep, False)
        dsum = saved[1] if keep else None
        torch.library.opcheck(ops.rms_norm_bwd, (saved[0], dsum, *tensors, *saved[2:], *options))
        if keep:
            of_sum = (None, weight, bias, saved[1], z)
            torch.library.opcheck(ops.rms_norm_bwd, (saved[0], dsum, *of_sum, *saved[2:], *options))
        leaves = [None if t is None else t.detach().requires_grad_() for t in tensors]
        torch.library.opcheck(ops.rms_norm_fwd, (*leaves, *options, keep, False))


@each_form
def test_compiles_as_one_graph(function: Callable[..., Any], options: dict[str, Any], device: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (9, 33):
        inputs = make_norm_inputs(**{**options, "rows": rows}, device=device)
        got, wanted = results_of(compiled, inputs), results_of(function, inputs)
        assert equal(got, wanted)
        assert all(got[name].stride() == wanted[name].stride() for name in wanted)


# Base call: x [2, 63, 24], residual or z like it; each row changes some arguments.
SENTENCES: dict[str, tuple[str, dict[str, Any], str]] = {
    "eps below 0": ("rms_norm_fn", {"eps": -1e-6}, "eps must be a number of at least 0, got -1e-06"),
    "eps that is none": ("rmsnorm_fn", {"eps": float("nan")}, "eps must be a number of at least 0, got nan"),
    "eps that is no number": ("layer_norm_fn", {"eps": "1"}, "eps must be a number of at least 0, got '1'"),
    "no dimensions": ("rms_norm_fn", {"x": torch.tensor(1.0)}, "x must be [..., channels], got a tensor"),
    "x dtype": (
        "rms_norm_fn",
        {"x": torch.zeros(2, 63, 24, dtype=torch.int32)},
        "x must be float32, float16",
    ),
    "x is no tensor": ("layer_norm_fn", {"x": [1.0]}, "x must be a torch.Tensor, got list"),
    "weight shape": (
        "rms_norm_fn",
        {"weight": torch.zeros(23)},
        "weight must be [channels] = [24], got [23]",
    ),
    "weight dtype": ("rmsnorm_fn", {"weight": torch.zeros(24).int()}, "weight must be float32, float16"),
    "bias shape": (
        "layer_norm_fn",
        {"bias": torch.zeros(1, 24)},
        "bias must be [channels] = [24], got [1, 24]",
    ),
    "residual shape": (
        "layer_norm_fn",
        {"residual": torch.zeros(2, 1, 24)},
        "residual must have the shape of x, [2, 63, 24], got [2, 1, 24]",
    ),
    "residual dtype": (
        "rms_norm_fn",
        {"residual": torch.zeros(2, 63, 24).long()},
        "residual must be float32",
    ),
    "z shape": ("layernorm_fn", {"z": torch.zeros(24)}, "z must have the shape of x, [2, 63, 24], got [24]"),
    "z dtype": ("rmsnorm_fn", {"z": torch.zeros(2, 63, 24).int()}, "z must be float32, float16, bfloat16"),
    "group size": ("rmsnorm_fn", {"group_size": 7}, "group_size must divide the 24 channels of x, got 7"),
    "no group size": ("layernorm_fn", {"group_size": 0}, "group_size must be at least 1 or None, got 0"),
    "x1": ("rms_norm_fn", {"x1": torch.zeros(1)}, "x1 must be None, a second branch is not supported"),
    "weight1": ("rms_norm_fn", {"weight1": torch.zeros(1)}, "weight1 must be None, a second branch"),
    "bias1": ("layer_norm_fn", {"bias1": torch.zeros(1)}, "bias1 must be None, a second branch"),
    "dropout": ("rms_norm_fn", {"dropout_p": 0.1}, "dropout_p must be 0.0, dropout is not supported"),
    "dropout mask": ("layer_norm_fn", {"return_dropout_mask": True}, "return_dropout_mask must be False"),
    "rowscale": ("layer_norm_fn", {"rowscale": torch.zeros(2, 63)}, "rowscale must be None, scaled rows"),
}


@pytest.mark.parametrize(("name", "change", "sentence"), SENTENCES.values(), ids=SENTENCES)
def test_sentence(name: str, change: dict[str, Any], sentence: str, device: str) -> None:
    inputs = make_norm_inputs(device=device)
    inputs |= {key: v.to(device) if isinstance(v, Tensor) else v for key, v in change.items()}
    with pytest.raises(TypeError if "torch.Tensor" in sentence else ValueError) as caught:
        FUNCTIONS[name][0](**inputs)
    assert str(caught.value).startswith(f"{name}: ")
    assert sentence in str(caught.value)


def test_a_residual_wider_than_the_arithmetic_is_refused() -> None:
    inputs = make_norm_inputs(residual=True, residual_dtype=torch.float64)
    with pytest.raises(ValueError, match="rms_norm_fn: residual must not be wider than the arithmetic"):
        rms_norm_fn(**inputs)
