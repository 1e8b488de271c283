"""Training steps of a published block that read its weights: their gradients are those of its modules."""

import copy

import pytest
import torch
from torch import Tensor
from torch.nn.modules.module import register_module_forward_hook

from mamba_aot import Mamba1
from mamba_aot.testing.closeness import assert_close_to_fp64

ops = torch.ops.mamba_aot
WIDTH = 32
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
PRECISIONS = {
    "float32": (torch.float32, None),
    "bfloat16": (torch.bfloat16, None),
    "autocast": (torch.float32, torch.bfloat16),
    "autocast to float16": (torch.float32, torch.float16),
}


def results(block: Mamba1, x: Tensor, dout: Tensor, cast: torch.dtype | None = None) -> list[Tensor]:
    with torch.autocast(x.device.type, dtype=cast, enabled=cast is not None):
        out = block(x)
    return [out, *torch.autograd.grad(out, [x, *block.parameters()], dout.to(out.dtype))]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("length", [1, 130])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_gradients_are_as_close_as_those_of_the_modules(
    precision: str, length: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dtype, cast = PRECISIONS[precision]
    torch.manual_seed(0)
    block = Mamba1(WIDTH, device=device).to(dtype)
    x = torch.randn(3, length, WIDTH).to(device, dtype).requires_grad_()
    dout = torch.randn(x.shape).to(x)
    mixed = results(block, x, dout, cast)
    monkeypatch.setattr(Mamba1, "_mixes", lambda self, *_: False)
    by_modules = results(block, x, dout, cast)
    wide = x.detach().double().cpu().requires_grad_()
    truth = results(copy.deepcopy(block).cpu().double(), wide, dout.double().cpu())
    names = ["out", "x", *(name for name, _ in block.named_parameters())]
    for name, got, same, true in zip(names, mixed, by_modules, truth, strict=True):
        assert got.dtype == same.dtype
        assert_close_to_fp64(got.cpu(), same.cpu(), true, name)


@pytest.mark.parametrize("name", ["x_proj", "dt_proj", "conv1d"])
@pytest.mark.parametrize(
    "register",
    [
        "register_forward_hook",
        "register_forward_pre_hook",
        "register_full_backward_hook",
        "register_full_backward_pre_hook",
    ],
)
def test_hooks_are_called_in_training(register: str, name: str) -> None:
    block, calls = Mamba1(WIDTH), []
    getattr(getattr(block, name), register)(lambda *_: calls.append(name))
    block(torch.randn(2, 5, WIDTH)).sum().backward()
    assert calls == [name]


def test_global_hooks_see_every_module() -> None:
    block, seen = Mamba1(WIDTH), []
    handle = register_module_forward_hook(lambda module, *_: seen.append(module))
    try:
        block(torch.randn(2, 5, WIDTH)).sum().backward()
    finally:
        handle.remove()
    assert {block.in_proj, block.conv1d, block.x_proj, block.dt_proj, block.out_proj} <= set(seen)


def test_a_second_gradient_is_refused() -> None:
    block, x = Mamba1(WIDTH), torch.randn(2, 5, WIDTH, requires_grad=True)
    (first,) = torch.autograd.grad(block(x).square().sum(), x, create_graph=True)
    for leaf in (x, block.in_proj.weight, block.conv1d.weight):
        with pytest.raises(RuntimeError, match="gradient of Mamba1 is taken once"):
            torch.autograd.grad(first.sum(), leaf, retain_graph=True)
    with pytest.raises(RuntimeError, match="gradient of Mamba1 is taken once"):
        first.sum().backward()


def scan_arguments(device: str) -> list[Tensor | None]:
    torch.manual_seed(0)
    u, delta, z, dout = (torch.randn(2, 20, 6, device=device).transpose(1, 2) for _ in range(4))
    A = -torch.rand(6, 5, device=device)
    B, C = torch.randn(2, 2, 1, 5, 20, device=device)
    inputs = (u, delta, A, B, C, None, z, None)
    states = ops.selective_scan_fwd(*inputs, None, None, None, None, True, False, True)[2]
    return [dout, None, *inputs, None, None, None, states]


@pytest.mark.parametrize("device", DEVICES)
def test_gradients_go_where_they_are_wanted(device: str) -> None:
    arguments = scan_arguments(device)
    room = torch.full((2, 20, 18), 7.0, device=device)
    left, ddelta, dz = room.transpose(1, 2).chunk(3, dim=1)
    du, expected_ddelta, *expected, expected_dz, dbias, dgate, dstate = ops.selective_scan_bwd(
        *arguments, True, False, False
    )
    others = ops.selective_scan_bwd_into(*arguments, True, False, ddelta, dz)
    torch.testing.assert_close(others, (du, *expected, dbias, dgate, dstate), rtol=0, atol=0)
    torch.testing.assert_close(ddelta, expected_ddelta, rtol=0, atol=0)
    torch.testing.assert_close(dz, expected_dz, rtol=0, atol=0)
    assert (left == 7).all()
    conv = (arguments[0], arguments[2], torch.randn(6, 4, device=device), None, None, None, True)
    expected = ops.causal_conv1d_bwd(*conv)
    others = ops.causal_conv1d_bwd_into(*conv, left)
    torch.testing.assert_close(others, expected[1:], rtol=0, atol=0)
    torch.testing.assert_close(left, expected[0], rtol=0, atol=0)


@pytest.mark.parametrize("device", DEVICES)
def test_a_place_that_does_not_fit_is_a_sentence(device: str) -> None:
    arguments = scan_arguments(device)
    z = arguments[8]
    assert z is not None
    kept, fits = z.clone(), torch.full_like(z, 7)
    for ddelta, dz, sentence in (
        (
            fits,
            torch.empty(2, 6, 21, device=device),
            r"dz must be \[batch, channels, length\] = \[2, 6, 20\]",
        ),
        (torch.empty(2, 6, 20, device=device).half(), fits, "ddelta must be float32 like delta, got float16"),
        (fits, torch.empty(2, 6, 1, device=device).expand(2, 6, 20), "dz is updated in place"),
        (fits, z, "dz must not share memory"),
    ):
        with pytest.raises((ValueError, RuntimeError), match=sentence):
            ops.selective_scan_bwd_into(*arguments, True, False, ddelta, dz)
    torch.testing.assert_close(z, kept, rtol=0, atol=0)
    assert (fits == 7).all()
