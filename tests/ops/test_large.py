"""Tensors of more than 2^31 elements: what lies past 32-bit offsets must be computed like everything else."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_aot import causal_conv1d_fn, causal_conv1d_update, selective_scan_fn, selective_state_update
from mamba_aot.reference import causal_conv1d_ref, selective_scan_ref
from mamba_aot.testing import assert_matches_reference, make_conv_inputs, make_scan_inputs

pytestmark = pytest.mark.gpu

CHANNELS, LENGTH = 2**20 + 64, 2048
each_layout = pytest.mark.parametrize("channel_last", [False, True], ids=["seq", "channel"])


def last_of_many(tensor: Tensor, channel_last: bool) -> Tensor:
    """`tensor` as the last channels of a large one that is zero before them, and adds nothing to any sum."""
    before = CHANNELS - tensor.shape[-2 if tensor.dim() > 1 else 0]
    if channel_last and tensor.dim() == 3:
        return F.pad(tensor.transpose(1, 2), (before, 0)).transpose(1, 2)
    return F.pad(tensor, (0, 0, before, 0) if tensor.dim() > 1 else (before, 0))


@each_layout
def test_scan(channel_last: bool) -> None:
    def at_the_end(**inputs: Any) -> Tensor:
        per_channel = ("u", "delta", "A", "D", "delta_bias")
        large: dict[str, Any] = {
            n: last_of_many(t, channel_last) if n in per_channel else t for n, t in inputs.items()
        }
        out = selective_scan_fn(**large)
        assert isinstance(out, Tensor)
        assert out.numel() > 2**31
        return out[:, -8:]

    inputs = make_scan_inputs(1, 8, LENGTH, 2, dtype=torch.bfloat16, z=False, device="cuda")
    assert_matches_reference(
        at_the_end, selective_scan_ref, {n: t for n, t in inputs.items() if t is not None}
    )


def test_scan_of_many_states() -> None:
    """Channels times states pass 2^31: so do offsets in one saved state, and in the sums of A's gradient."""
    # What tests before this one left in torch's cache is not free for the driver.
    torch.cuda.empty_cache()
    if torch.cuda.mem_get_info()[0] < 120 * 2**30:
        pytest.skip("takes 100 GiB of GPU memory")

    def at_the_end(**inputs: Any) -> Tensor:
        per_channel = ("u", "delta", "A", "D", "delta_bias")
        large = {n: last_of_many(t, False) if n in per_channel else t for n, t in inputs.items()}
        assert large["A"].numel() > 2**31
        out = selective_scan_fn(**large)
        assert isinstance(out, Tensor)
        return out[:, -8:]

    inputs = make_scan_inputs(1, 8, 4, 2049, dtype=torch.bfloat16, z=False, device="cuda")
    assert_matches_reference(
        at_the_end, selective_scan_ref, {n: t for n, t in inputs.items() if t is not None}
    )


@each_layout
def test_conv(channel_last: bool) -> None:
    def at_the_end(**inputs: Any) -> Tensor:
        large: dict[str, Any] = {
            n: last_of_many(t, channel_last) if isinstance(t, Tensor) else t for n, t in inputs.items()
        }
        out = causal_conv1d_fn(**large)
        assert isinstance(out, Tensor)
        assert out.numel() > 2**31
        return out[:, -8:]

    inputs = make_conv_inputs(1, 8, LENGTH, dtype=torch.bfloat16, device="cuda")
    assert_matches_reference(at_the_end, causal_conv1d_ref, inputs)


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
