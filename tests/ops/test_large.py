"""Tensors of more than 2^31 elements: what lies past 32-bit offsets must be computed like everything else."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mamba_aot import causal_conv1d_fn, causal_conv1d_update, selective_scan_fn, selective_state_update
from mamba_aot.reference import causal_conv1d_ref, selective_scan_ref
from mamba_aot.testing import assert_close_to_fp64

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]

CHANNELS, LENGTH = 2**20 + 64, 2048
each_layout = pytest.mark.parametrize("channel_last", [False, True], ids=["seq", "channel"])


def sequence(channel_last: bool) -> Tensor:
    shape = (1, LENGTH, CHANNELS) if channel_last else (1, CHANNELS, LENGTH)
    values = torch.randn(shape, dtype=torch.bfloat16, device="cuda")
    return values.transpose(1, 2) if channel_last else values


def assert_last_channels_match(
    function: Callable[..., Any], reference: Callable[..., Any], inputs: dict[str, Any], per_channel: set[str]
) -> None:
    leaves = {
        n: t.requires_grad_(n in per_channel) if isinstance(t, Tensor) else t for n, t in inputs.items()
    }
    out = function(**leaves)
    out.backward(out.detach())
    got: dict[str, Any] = {"out": out.detach()} | {f"grad {n}": leaves[n].grad for n in per_channel}

    def last(name: str, value: Any) -> Any:
        if name not in per_channel:
            return value
        return value[:, -8:].detach() if value.dim() == 3 else value[-8:].detach()

    def wanted(in_fp64: bool) -> dict[str, Any]:
        part = {name: last(name, value) for name, value in inputs.items()}
        if in_fp64:
            part = {n: t.double() if isinstance(t, Tensor) else t for n, t in part.items()}
        part = {
            n: t.detach().requires_grad_(n in per_channel) if isinstance(t, Tensor) else t
            for n, t in part.items()
        }
        out_part = reference(**part)
        out_part.backward(got["out"][:, -8:].to(out_part.dtype))
        return {"out": out_part.detach()} | {f"grad {n}": part[n].grad for n in per_channel}

    eager, truth = wanted(False), wanted(True)
    for name in eager:
        assert_close_to_fp64(
            last("u" if got[name].dim() == 3 else "D", got[name]), eager[name], truth[name], name
        )


@each_layout
def test_scan(channel_last: bool) -> None:
    inputs = {
        "u": sequence(channel_last),
        "delta": sequence(channel_last).abs_().mul_(0.1),
        "A": -torch.rand(CHANNELS, 2, device="cuda") - 0.1,
        "B": torch.randn(1, 2, LENGTH, device="cuda"),
        "C": torch.randn(1, 2, LENGTH, device="cuda"),
        "D": torch.randn(CHANNELS, device="cuda"),
    }
    assert_last_channels_match(selective_scan_fn, selective_scan_ref, inputs, {"u", "delta", "A", "D"})


@each_layout
def test_conv(channel_last: bool) -> None:
    inputs = {
        "x": sequence(channel_last),
        "weight": torch.randn(CHANNELS, 4, device="cuda"),
        "bias": torch.randn(CHANNELS, device="cuda"),
        "activation": "silu",
    }
    assert_last_channels_match(causal_conv1d_fn, causal_conv1d_ref, inputs, {"x", "weight", "bias"})


def test_updates_of_far_slots() -> None:
    slots, dim = 2**17 + 2, 1024
    last = torch.tensor([slots - 1, slots - 2], dtype=torch.int32, device="cuda")
    states = torch.zeros(slots, dim, 16, dtype=torch.bfloat16, device="cuda")
    x = torch.randn(2, dim, dtype=torch.bfloat16, device="cuda")
    weights = torch.randn(2, 16, device="cuda")
    A = -torch.rand(dim, 16, device="cuda")
    out = selective_state_update(states, x, x.abs(), A, weights, weights, state_batch_indices=last)
    near = torch.zeros(2, dim, 16, dtype=torch.bfloat16, device="cuda")
    assert torch.equal(out, selective_state_update(near, x, x.abs(), A, weights, weights))
    assert torch.equal(states[-2:].flip(0), near)
    assert not states[:2].any()

    states.zero_()
    taps = torch.randn(dim, 4, device="cuda")
    out = causal_conv1d_update(x, states, taps, conv_state_indices=last)
    near.zero_()
    assert torch.equal(out, causal_conv1d_update(x, near, taps))
    assert torch.equal(states[-2:].flip(0), near)
