"""The ops under torch.vmap and torch.autocast: as a loop over slices, and with the dtypes that they say."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import mamba_aot
from mamba_aot.testing import (
    make_conv_inputs,
    make_conv_update_inputs,
    make_linear_recurrence_inputs,
    make_norm_inputs,
    make_scan_inputs,
    make_state_update_inputs,
)

Call = Callable[..., Any]


def scan(**inputs: Any) -> Any:
    return mamba_aot.selective_scan_fn(**inputs, return_last_state=True)


def conv(**inputs: Any) -> Any:
    return mamba_aot.causal_conv1d_fn(**inputs, return_final_states=True)


def recurrence(**inputs: Any) -> Any:
    return mamba_aot.linear_recurrence(**inputs, return_last_state=True)


def norm(**inputs: Any) -> Any:
    return mamba_aot.rms_norm_fn(**inputs, prenorm=True)


def constant(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """B and C that are the same for all steps."""
    weight = torch.randn(8, 16, dtype=dtype, generator=torch.Generator().manual_seed(0))
    return {"B": weight, "C": weight / 2}


def per_head(inputs: dict[str, Any]) -> dict[str, Any]:
    return inputs | {"delta": inputs["delta"][:, ::4], "delta_bias": inputs["delta_bias"][::4]}


ROWS = {"seq_idx": torch.tensor([[0] * 20 + [1] * 43, [0] * 5 + [1] * 50 + [-1] * 8], dtype=torch.int32)}
ENDS = {"cu_seqlens": torch.tensor([0, 20, 20, 63], dtype=torch.int32)}
SCAN: dict[str, Any] = {"decay_gate": True, "initial_state": True, "discretization": "zoh"}
CALLS: dict[str, tuple[Call, Callable[[int], dict[str, Any]], list[str]]] = {
    "scan, sequences": (scan, lambda seed: make_scan_inputs(seed=seed, **SCAN), ["u", "delta", "B", "z"]),
    "scan, weights": (scan, lambda seed: make_scan_inputs(seed=seed, **SCAN), ["u", "A", "D", "delta_bias"]),
    "scan, complex": (
        scan,
        lambda seed: make_scan_inputs(seed=seed, is_complex=True, groups=2, **SCAN),
        ["u", "C", "decay_gate", "initial_state"],
    ),
    "scan, weights of all steps": (
        scan,
        lambda seed: make_scan_inputs(seed=seed, **SCAN) | constant(),
        ["u"],
    ),
    "scan, complex weights of all steps": (
        scan,
        lambda seed: make_scan_inputs(seed=seed, is_complex=True, **SCAN) | constant(torch.complex64),
        ["u", "delta"],
    ),
    "scan, a delta per head": (
        scan,
        lambda seed: per_head(make_scan_inputs(seed=seed, **SCAN)),
        ["u", "z"],
    ),
    "scan, packed rows": (scan, lambda seed: make_scan_inputs(seed=seed, **SCAN) | ROWS, ["u", "z"]),
    "scan, packed in one row": (
        scan,
        lambda seed: make_scan_inputs(1, seed=seed, decay_gate=True) | ENDS,
        ["u"],
    ),
    "conv, sequences": (
        conv,
        lambda seed: make_conv_inputs(seed=seed, initial_states=True),
        ["x", "initial_states"],
    ),
    "conv, weights": (conv, lambda seed: make_conv_inputs(seed=seed), ["weight", "bias"]),
    "recurrence": (
        recurrence,
        lambda seed: make_linear_recurrence_inputs(seed=seed),
        ["a", "b", "initial_state"],
    ),
    "norm, rows": (norm, lambda seed: make_norm_inputs(seed=seed, residual=True), ["x", "residual"]),
    "norm, weights": (norm, lambda seed: make_norm_inputs(seed=seed, residual=True), ["weight"]),
}
each_call = pytest.mark.parametrize(("function", "make", "mapped"), CALLS.values(), ids=CALLS)


def slices(make: Callable[[int], dict[str, Any]], mapped: list[str], count: int) -> list[dict[str, Any]]:
    """Inputs that differ in the arguments `mapped` only."""
    first = make(0)
    return [
        first | {name: make(seed)[name] for name in mapped if first[name] is not None}
        for seed in range(count)
    ]


def stacked(inputs: list[dict[str, Any]], mapped: list[str], dim: int) -> dict[str, Any]:
    return {
        name: torch.stack([each[name] for each in inputs], dim)
        for name in mapped
        if inputs[0][name] is not None
    }


@each_call
def test_vmap_is_a_loop(function: Call, make: Any, mapped: list[str]) -> None:
    inputs = slices(make, mapped, 3)
    for dim in (0, 1):
        values = stacked(inputs, mapped, dim)

        def call(mapped_values: dict[str, Tensor], inputs: list[dict[str, Any]] = inputs) -> Any:
            return function(**inputs[0] | mapped_values)

        got = torch.vmap(call, in_dims=(dict.fromkeys(values, dim),))(values)
        wanted = [function(**each) for each in inputs]
        for index, result in enumerate(got):
            torch.testing.assert_close(result, torch.stack([each[index] for each in wanted]))


@each_call
def test_gradients_of_a_vmap_are_those_of_a_loop(function: Call, make: Any, mapped: list[str]) -> None:
    inputs = slices(make, mapped, 3)
    values = stacked(inputs, mapped, 0)
    leaves = {name: value.clone().requires_grad_() for name, value in values.items()}

    def loss(mapped_values: dict[str, Tensor]) -> Tensor:
        return sum(result.abs().pow(2).sum() for result in function(**inputs[0] | mapped_values))  # type: ignore[return-value]

    torch.vmap(loss)(leaves).sum().backward()
    for index in range(3):
        alone = {name: value[index].clone().requires_grad_() for name, value in values.items()}
        loss(alone).backward()
        for name, leaf in alone.items():
            assert leaf.grad is not None
            gradient = leaves[name].grad
            assert gradient is not None
            torch.testing.assert_close(gradient[index], leaf.grad, rtol=1e-4, atol=1e-5)


UPDATES: dict[str, tuple[Call, Callable[[int], dict[str, Any]], list[str]]] = {
    "state update": (
        mamba_aot.selective_state_update,
        lambda seed: make_state_update_inputs(seed=seed, slots=5),
        ["state", "x"],
    ),
    "conv update": (
        mamba_aot.causal_conv1d_update,
        lambda seed: make_conv_update_inputs(seed=seed),
        ["conv_state", "x", "weight"],
    ),
}


@pytest.mark.parametrize(("function", "make", "mapped"), UPDATES.values(), ids=UPDATES)
def test_vmap_of_an_update_writes_every_slice(function: Call, make: Any, mapped: list[str]) -> None:
    inputs = slices(make, mapped, 3)
    values = stacked(inputs, mapped, 0)
    got = torch.vmap(lambda mapped_values: function(**inputs[0] | mapped_values))(values)
    torch.testing.assert_close(got, torch.stack([function(**each) for each in inputs]))
    torch.testing.assert_close(values[mapped[0]], torch.stack([each[mapped[0]] for each in inputs]))


def test_vmap_of_an_update_needs_a_state_for_every_slice() -> None:
    inputs = make_state_update_inputs()
    x = inputs.pop("x")
    with pytest.raises(
        ValueError, match=r"state is written in place, so under torch\.vmap it must be mapped over"
    ):
        torch.vmap(lambda each: mamba_aot.selective_state_update(x=each, **inputs))(torch.stack([x, x]))


# Which float32 arguments become bfloat16.
AUTOCAST: dict[str, tuple[Call, Callable[[], dict[str, Any]], list[str]]] = {
    "scan": (scan, lambda: make_scan_inputs(decay_gate=True, initial_state=True), ["u", "delta", "z"]),
    "conv": (
        lambda **inputs: (mamba_aot.causal_conv1d_fn(**inputs),),
        lambda: make_conv_inputs(initial_states=True),
        ["x", "initial_states"],
    ),
    "state update": (
        lambda **inputs: (mamba_aot.selective_state_update(**inputs), inputs["state"]),
        make_state_update_inputs,
        ["x", "dt", "z"],
    ),
    "norm": (norm, lambda: make_norm_inputs(residual=True), []),
    "recurrence": (recurrence, make_linear_recurrence_inputs, []),
}


@pytest.mark.parametrize(("function", "make", "cast"), AUTOCAST.values(), ids=AUTOCAST)
def test_autocast_casts_sequences_and_keeps_weights(function: Call, make: Any, cast: list[str]) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = function(**make())
    wanted = function(**make() | {name: make()[name].bfloat16() for name in cast})
    assert got[0].dtype == (torch.bfloat16 if cast else torch.float32)
    for left, right in zip(got, wanted, strict=True):
        assert left.dtype == right.dtype
        assert torch.equal(left, right)


def test_autocast_gives_an_update_the_dtype_of_its_state() -> None:
    half = make_conv_update_inputs(dtype=torch.bfloat16)
    wanted = mamba_aot.causal_conv1d_update(**half | {"conv_state": half["conv_state"].clone()})
    with torch.autocast("cpu", dtype=torch.float16):
        got = mamba_aot.causal_conv1d_update(**half | {"x": half["x"].float()})
    assert torch.equal(got, wanted)


def test_autocast_gives_a_recurrence_one_dtype() -> None:
    inputs = make_linear_recurrence_inputs()
    a = inputs["a"].bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = mamba_aot.linear_recurrence(**inputs | {"a": a})
    assert torch.equal(got, mamba_aot.linear_recurrence(**inputs | {"a": a.float()}))


@pytest.mark.parametrize(
    "dtypes", [*itertools.permutations((torch.float32, torch.float16, torch.bfloat16), 2)]
)
def test_autocast_gives_a_recurrence_one_dtype_with_a_backward_to_come(
    dtypes: tuple[torch.dtype, torch.dtype],
) -> None:
    a, b = (torch.rand(2, 4, 70).to(dtype).requires_grad_() for dtype in dtypes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        h = mamba_aot.linear_recurrence(a, b)
    assert isinstance(h, Tensor)
    wanted = mamba_aot.linear_recurrence(a.float(), b.float())
    assert isinstance(wanted, Tensor)
    assert h.dtype == torch.float32
    assert torch.equal(h, wanted)
    got = torch.autograd.grad(h.pow(2).sum(), (a, b))
    for gradient, other, dtype in zip(
        got, torch.autograd.grad(wanted.pow(2).sum(), (a, b)), dtypes, strict=True
    ):
        assert gradient.dtype == dtype
        assert torch.equal(gradient, other)


def test_autocast_leaves_float64_alone() -> None:
    inputs = make_scan_inputs(dtype=torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert scan(**inputs)[0].dtype == torch.float64


def test_gradients_through_autocast_have_the_dtypes_of_the_inputs() -> None:
    inputs = make_scan_inputs()
    leaves = {n: v.requires_grad_() for n, v in inputs.items() if isinstance(v, Tensor)}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, _ = scan(**inputs)
    y.float().sum().backward()
    for name, leaf in leaves.items():
        assert leaf.grad is not None, name
        assert leaf.grad.dtype == torch.float32, name
