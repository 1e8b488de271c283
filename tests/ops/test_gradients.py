"""Gradients as torch.func takes them, and those that no op has: each an error, never a constant."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

import mamba_aot
from mamba_aot import reference
from mamba_aot.testing import (
    make_conv_inputs,
    make_linear_recurrence_inputs,
    make_norm_inputs,
    make_scan_inputs,
)

Call = Callable[..., Any]


def scan(function: Call, inputs: dict[str, Tensor]) -> Tensor:
    return function(**inputs, delta_softplus=True, discretization="zoh")


def conv(function: Call, inputs: dict[str, Tensor]) -> Tensor:
    return function(**inputs, activation="silu")


def plain(function: Call, inputs: dict[str, Tensor]) -> Tensor:
    return function(**inputs)


def tensors(inputs: dict[str, Any]) -> dict[str, Tensor]:
    return {name: value.double() for name, value in inputs.items() if isinstance(value, Tensor)}


# How it is called, its function, the reference, its inputs, and those that are mapped over.
OPS: dict[str, tuple[Call, Call, Call, dict[str, Tensor], list[str]]] = {
    "scan": (
        scan,
        mamba_aot.selective_scan_fn,
        reference.selective_scan_ref,
        tensors(make_scan_inputs(length=9, decay_gate=True, initial_state=True)),
        ["u", "delta", "B"],
    ),
    "conv": (
        conv,
        mamba_aot.causal_conv1d_fn,
        reference.causal_conv1d_ref,
        tensors(make_conv_inputs(length=9, initial_states=True)),
        ["x"],
    ),
    "recurrence": (
        plain,
        mamba_aot.linear_recurrence,
        reference.linear_recurrence_ref,
        tensors(make_linear_recurrence_inputs()),
        ["a", "b"],
    ),
    "norm": (
        plain,
        mamba_aot.rms_norm_fn,
        reference.rms_norm_ref,
        tensors(make_norm_inputs(residual=True)),
        ["x", "residual"],
    ),
}


@pytest.fixture(params=OPS)
def case(request: pytest.FixtureRequest) -> tuple[Call, Call, Call, dict[str, Tensor], list[str]]:
    return OPS[request.param]


def loss_of(call: Call, function: Call) -> Call:
    return lambda inputs: call(function, inputs).pow(2).sum()


def assert_close(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    for name, gradient in wanted.items():
        torch.testing.assert_close(
            got[name], gradient, rtol=1e-8, atol=1e-8, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_grad(case: tuple) -> None:
    call, function, ref, inputs, _ = case
    got = torch.func.grad(loss_of(call, function))(inputs)
    assert_close(got, torch.func.grad(loss_of(call, ref))(inputs))


def stacked(inputs: dict[str, Tensor], mapped: list[str]) -> tuple[dict[str, Tensor], dict[str, int | None]]:
    rows = {
        name: torch.stack([value, value / 2, value * 0.3]) if name in mapped else value
        for name, value in inputs.items()
    }
    return rows, {name: 0 if name in mapped else None for name in inputs}


def test_a_gradient_for_each_sample(case: tuple) -> None:
    call, function, ref, inputs, mapped = case
    rows, dims = stacked(inputs, mapped)
    got = torch.vmap(torch.func.grad(loss_of(call, function)), (dims,))(rows)
    assert_close(got, torch.vmap(torch.func.grad(loss_of(call, ref)), (dims,))(rows))


def test_the_gradient_of_all_samples(case: tuple) -> None:
    call, function, ref, inputs, mapped = case
    rows, dims = stacked(inputs, mapped)

    def total(f: Call) -> Call:
        return lambda rows: torch.vmap(loss_of(call, f), (dims,))(rows).sum()

    assert_close(torch.func.grad(total(function))(rows), torch.func.grad(total(ref))(rows))


def test_a_block_has_gradients_for_each_sample() -> None:
    torch.manual_seed(0)
    for block in (mamba_aot.Mamba(d_model=16, d_state=4), mamba_aot.Mamba1(16, 4)):
        parameters = dict(block.named_parameters())
        samples = torch.randn(3, 1, 12, 16)

        def loss(parameters: dict[str, Tensor], x: Tensor, block: torch.nn.Module = block) -> Tensor:
            return torch.func.functional_call(block, parameters, (x,)).pow(2).sum()

        got = torch.vmap(torch.func.grad(loss), (None, 0))(parameters, samples)
        for i, sample in enumerate(samples):
            wanted = torch.autograd.grad(block(sample).pow(2).sum(), list(parameters.values()))
            for name, gradient in zip(parameters, wanted, strict=True):
                torch.testing.assert_close(got[name][i], gradient, rtol=1e-4, atol=1e-5)


REFUSAL = "is taken once and in reverse, but a gradient of it"


def test_a_second_gradient_is_refused(case: tuple) -> None:
    """Also where what comes into the first one is constant, as the ones of a sum are."""
    call, function, _, inputs, mapped = case
    leaves = {name: value.clone().requires_grad_() for name, value in inputs.items()}
    x = leaves[mapped[0]]
    (gradient,) = torch.autograd.grad(call(function, leaves).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=REFUSAL):
        (gradient.pow(2).sum() + x.sum()).backward()
    with pytest.raises(RuntimeError, match=REFUSAL):
        torch.func.grad(lambda i: torch.func.grad(loss_of(call, function))(i)[mapped[0]].sum())(inputs)


# Of torch itself, when forward mode is used for the first time.
@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_forward_mode_is_refused(case: tuple) -> None:
    call, function, _, inputs, mapped = case
    x = inputs[mapped[0]]
    with pytest.raises(RuntimeError, match=REFUSAL):
        torch.func.jvp(lambda x: call(function, inputs | {mapped[0]: x}), (x,), (x,))
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match=REFUSAL):
        call(function, inputs | {mapped[0]: forward_ad.make_dual(x, x)})
