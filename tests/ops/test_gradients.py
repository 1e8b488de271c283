"""Gradients as torch.func takes them, and those that no op has: each an error, never a constant."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

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


def test_a_second_gradient_is_refused_where_it_is_all_that_is_asked_for(case: tuple) -> None:
    """`inputs` of autograd are reached by the way that leads to them alone."""
    call, function, _, inputs, mapped = case
    for name in mapped:
        leaves = {key: value.clone().requires_grad_() for key, value in inputs.items()}
        loss = call(function, leaves).pow(2).sum()
        (gradient,) = torch.autograd.grad(loss, leaves[name], create_graph=True)
        with pytest.raises(RuntimeError, match=REFUSAL):
            torch.autograd.grad(loss + gradient.pow(2).sum(), leaves[name], retain_graph=True)
        with pytest.raises(RuntimeError, match=REFUSAL):
            torch.autograd.grad(gradient.pow(2).sum(), leaves[name])

    def loss_by_first(x: Tensor) -> Tensor:
        return call(function, inputs | {mapped[0]: x}).pow(2).sum()

    x = inputs[mapped[0]]
    with pytest.raises(RuntimeError, match=REFUSAL):
        torch.autograd.functional.hvp(loss_by_first, x, torch.ones_like(x))


def test_a_gradient_with_a_graph_is_the_gradient(case: tuple) -> None:
    call, function, _, inputs, _ = case
    leaves = {name: value.clone().requires_grad_() for name, value in inputs.items()}
    loss = loss_of(call, function)(leaves)
    plain = torch.autograd.grad(loss, list(leaves.values()), retain_graph=True)
    followed = torch.autograd.grad(loss, list(leaves.values()), create_graph=True)
    assert all(torch.equal(one, other) for one, other in zip(plain, followed, strict=True))


def test_a_gradient_with_a_graph_through_a_checkpoint_is_the_gradient(case: tuple) -> None:
    """What was saved is made again for the one who reads it first, and for nobody after."""
    call, function, _, inputs, mapped = case
    gradients = []
    for kept in (True, False):
        x = inputs[mapped[0]].clone().requires_grad_()

        def part(x: Tensor) -> Tensor:
            return call(function, inputs | {mapped[0]: x * 1.5})

        out = part(x) if kept else checkpoint(part, x, use_reentrant=False)
        gradients += torch.autograd.grad(out.pow(2).sum(), x, create_graph=not kept)
    assert torch.equal(*gradients)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_grad_under_autocast(case: tuple, dtype: torch.dtype) -> None:
    """The same as autograd's, in the dtypes of the inputs."""
    call, function, _, inputs, _ = case
    inputs = {name: value.float() for name, value in inputs.items()}
    with torch.autocast("cpu", dtype=dtype):
        got = torch.func.grad(loss_of(call, function))(inputs)
        leaves = {name: value.clone().requires_grad_() for name, value in inputs.items()}
        loss = loss_of(call, function)(leaves)
    wanted = torch.autograd.grad(loss, list(leaves.values()))
    for name, gradient in zip(leaves, wanted, strict=True):
        assert got[name].dtype == torch.float32
        torch.testing.assert_close(got[name], gradient, msg=lambda m, n=name: f"{n}: {m}")


def test_no_slices_at_all(case: tuple) -> None:
    call, function, _, inputs, mapped = case
    for names in (mapped[:1], list(inputs)):
        rows = {
            name: value.new_zeros(0, *value.shape) if name in names else value
            for name, value in inputs.items()
        }
        dims = {name: 0 if name in names else None for name in inputs}
        out = torch.vmap(lambda inputs: call(function, inputs), (dims,))(rows)
        one = call(function, inputs)
        results = zip(out, one, strict=True) if isinstance(out, tuple) else [(out, one)]
        assert all(got.shape == (0, *wanted.shape) for got, wanted in results)


# Of torch itself, when forward mode is used for the first time.
@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_forward_mode_is_refused(case: tuple) -> None:
    call, function, _, inputs, mapped = case
    x = inputs[mapped[0]]
    with pytest.raises(RuntimeError, match=REFUSAL):
        torch.func.jvp(lambda x: call(function, inputs | {mapped[0]: x}), (x,), (x,))
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match=REFUSAL):
        call(function, inputs | {mapped[0]: forward_ad.make_dual(x, x)})
