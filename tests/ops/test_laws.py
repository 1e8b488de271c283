"""Laws that hold for any right implementation of the ops, whatever their numbers."""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mamba_aot import causal_conv1d_fn, causal_conv1d_update, selective_scan_fn, selective_state_update
from mamba_aot.reference import causal_conv1d_ref, selective_scan_ref
from mamba_aot.testing import (
    LAYOUTS,
    assert_matches_reference,
    make_conv_inputs,
    make_conv_update_inputs,
    make_scan_inputs,
    make_state_update_inputs,
    results_of,
)

FULL: dict[str, Any] = {"decay_gate": True, "initial_state": True, "discretization": "zoh", "groups": 2}
KINDS = pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
SEQUENCES = ("u", "delta", "z", "B", "C", "decay_gate")


def scan(**inputs: Any) -> tuple[Tensor, Tensor]:
    return selective_scan_fn(**inputs, return_last_state=True)  # type: ignore[return-value]


def scan_ref(**inputs: Any) -> tuple[Tensor, Tensor]:
    return selective_scan_ref(**inputs, return_last_state=True)  # type: ignore[return-value]


def conv(**inputs: Any) -> tuple[Tensor, Tensor]:
    return causal_conv1d_fn(**inputs, return_final_states=True)  # type: ignore[return-value]


def conv_ref(**inputs: Any) -> tuple[Tensor, Tensor]:
    return causal_conv1d_ref(**inputs, return_final_states=True)  # type: ignore[return-value]


def make_scan(device: str, is_complex: bool = False, **options: Any) -> dict[str, Any]:
    return make_scan_inputs(**{"length": 130, "is_complex": is_complex, **FULL, **options}, device=device)


def make_conv(device: str, **options: Any) -> dict[str, Any]:
    return make_conv_inputs(**{"length": 130, "initial_states": True, **options}, device=device)


# Forward and backward of both sequence ops, for the laws that concern each.
WHOLE: dict[str, tuple[Callable[..., Any], Callable[..., dict[str, Any]]]] = {
    "scan": (scan, make_scan),
    "complex scan": (scan, lambda device, **options: make_scan(device, True, **options)),
    "bfloat16 scan": (scan, lambda device, **options: make_scan(device, dtype=torch.bfloat16, **options)),
    "conv": (conv, make_conv),
    "bfloat16 conv": (conv, lambda device, **options: make_conv(device, dtype=torch.bfloat16, **options)),
}
UPDATES: tuple[tuple[Callable[..., Any], Callable[[str], dict[str, Any]]], ...] = (
    (selective_state_update, lambda device: make_state_update_inputs(device=device)),
    (causal_conv1d_update, lambda device: make_conv_update_inputs(device=device)),
)
each_op = pytest.mark.parametrize(("op", "make"), WHOLE.values(), ids=WHOLE)
each_layout = pytest.mark.parametrize("layout", LAYOUTS)


def equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@KINDS
@pytest.mark.parametrize("cuts", [(64,), (40, 104), (1, 2, 129)], ids=str)
def test_scan_of_segments_is_the_whole_scan(cuts: tuple[int, ...], is_complex: bool, device: str) -> None:
    def in_segments(*, initial_state: Tensor, **inputs: Any) -> tuple[Tensor, Tensor]:
        outs, state = [], initial_state
        for start, stop in zip((0, *cuts), (*cuts, 130), strict=True):
            part = {name: t[..., start:stop] if name in SEQUENCES else t for name, t in inputs.items()}
            out, state = scan(**part, initial_state=state)
            outs.append(out)
        return torch.cat(outs, dim=2), state

    assert_matches_reference(in_segments, scan_ref, make_scan(device, is_complex))


@pytest.mark.parametrize("cuts", [(64,), (1, 2, 129)], ids=str)
def test_conv_of_segments_is_the_whole_conv(cuts: tuple[int, ...], device: str) -> None:
    def in_segments(*, x: Tensor, initial_states: Tensor, **inputs: Any) -> tuple[Tensor, Tensor]:
        outs, states = [], initial_states
        for start, stop in zip((0, *cuts), (*cuts, 130), strict=True):
            out, states = conv(x=x[..., start:stop], initial_states=states, **inputs)
            outs.append(out)
        return torch.cat(outs, dim=2), states

    assert_matches_reference(in_segments, conv_ref, make_conv(device))


@KINDS
def test_steps_of_the_state_are_the_scan(is_complex: bool, device: str) -> None:
    def in_steps(*, initial_state: Tensor, **inputs: Any) -> tuple[Tensor, Tensor]:
        state, outs = initial_state.clone(), []
        rename = {"u": "x", "delta": "dt", "delta_bias": "dt_bias", "delta_softplus": "dt_softplus"}
        for t in range(inputs["u"].shape[2]):
            step = {rename.get(n, n): v[..., t] if n in SEQUENCES else v for n, v in inputs.items()}
            outs.append(selective_state_update(state, **step))
        return torch.stack(outs, dim=2), state

    assert_matches_reference(in_steps, scan_ref, make_scan(device, is_complex, length=70), backward=False)


@pytest.mark.parametrize("steps", [1, 3])
def test_steps_of_the_conv_are_the_conv(steps: int, device: str) -> None:
    def in_steps(*, x: Tensor, initial_states: Tensor, **inputs: Any) -> tuple[Tensor, Tensor]:
        state = initial_states.clone()
        outs = [causal_conv1d_update(part, state, **inputs) for part in x.split(steps, dim=2)]
        return torch.cat(outs, dim=2), state

    assert_matches_reference(in_steps, conv_ref, make_conv(device, length=31), backward=False)


def test_initial_states_are_the_steps_before(device: str) -> None:
    def of_concatenation(*, x: Tensor, initial_states: Tensor, **inputs: Any) -> tuple[Tensor, Tensor]:
        out, states = conv(x=torch.cat([initial_states, x], dim=2), **inputs)
        return out[..., initial_states.shape[2] :], states

    for layout in LAYOUTS:
        assert_matches_reference(of_concatenation, conv_ref, make_conv(device, layout=layout))


@each_op
@each_layout
def test_the_future_changes_nothing_before_it(op: Callable, make: Callable, layout: str, device: str) -> None:
    inputs = make(device, layout=layout)
    before = op(**inputs)[0].clone()
    now = 77
    for name in (*SEQUENCES, "x"):
        if name in inputs:
            inputs[name][..., now:] = torch.nan
    after = op(**inputs)[0]
    assert torch.equal(after[..., :now], before[..., :now])
    assert after[..., now:].isnan().all()


@each_op
@each_layout
def test_channels_and_sequences_are_separate(op: Callable, make: Callable, layout: str, device: str) -> None:
    inputs = make(device, layout=layout, dim=24, batch=3)
    before = op(**inputs)
    for name in ("u", "x"):
        if name in inputs:
            inputs[name][1], inputs[name][:, 5] = torch.nan, torch.nan
    for left, right in zip(before, op(**inputs), strict=True):
        others = [channel for channel in range(24) if channel != 5]
        assert torch.equal(left[::2, others], right[::2, others])


@each_op
@each_layout
def test_a_sequence_alone_gives_what_it_gives_in_a_batch(
    op: Callable, make: Callable, layout: str, device: str
) -> None:
    """Bit for bit, where the kernel is the same: ALONE says more about GPUs."""
    inputs = make(device, batch=3, layout=layout)
    of_a_batch = (*SEQUENCES, "x", "initial_state", "initial_states")
    alone = {name: t[1:2] if name in of_a_batch and t is not None else t for name, t in inputs.items()}
    for whole, part in zip(op(**inputs), op(**alone), strict=True):
        assert torch.equal(whole[1:2], part)


ALONE = """
import torch
from mamba_aot import linear_recurrence, selective_scan_fn
from mamba_aot.testing import make_scan_inputs

BATCH = ("u", "delta", "B", "C", "z", "initial_state")
for size in (dict(dim=1024, length=4096, state=16), dict(dim=1024, length=300, state=16, is_complex=True)):
    inputs = make_scan_inputs(9, **size, initial_state=True, device="cuda")
    whole = selective_scan_fn(**inputs, return_last_state=True)
    alone = {k: t[4:5] if k in BATCH else t for k, t in inputs.items()}
    parts = selective_scan_fn(**alone, return_last_state=True)
    for left, right in zip(whole, parts):
        assert torch.equal(left[4:5], right), size
a, b = torch.rand(2, 9, 2000, 1000, device="cuda")
assert torch.equal(linear_recurrence(a, b)[4:5], linear_recurrence(a[4:5], b[4:5]))
"""


@pytest.mark.gpu
def test_a_gpu_takes_sequences_one_by_one_if_asked_to() -> None:
    """Sizes at which it otherwise takes other kernels for one than for nine, and splits time for one."""
    environment = {**os.environ, "MAMBA_AOT_BATCH_INVARIANT": "1"}
    done = subprocess.run([sys.executable, "-c", ALONE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@each_op
def test_order_of_sequences_does_not_matter(op: Callable, make: Callable, device: str) -> None:
    inputs = make(device, batch=5)
    order = torch.tensor([3, 0, 4, 1, 2], device=device)
    of_a_batch = (*SEQUENCES, "x", "initial_state", "initial_states")
    shuffled = {name: t[order] if name in of_a_batch and t is not None else t for name, t in inputs.items()}
    for straight, mixed in zip(op(**inputs), op(**shuffled), strict=True):
        assert torch.equal(straight[order], mixed)


@each_op
@each_layout
def test_backward_repeats_itself_bit_for_bit(op: Callable, make: Callable, layout: str, device: str) -> None:
    inputs = make(device, batch=3, dim=40, layout=layout)
    first = results_of(op, inputs)
    for _ in range(3):
        assert equal(results_of(op, inputs), first)


@each_op
def test_number_of_threads_does_not_matter(op: Callable, make: Callable) -> None:
    inputs = make("cpu", batch=3, dim=40)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = results_of(op, inputs)
        for many in (2, 3):
            torch.set_num_threads(many)
            assert equal(results_of(op, inputs), one)
    finally:
        torch.set_num_threads(threads)


@each_op
@each_layout
def test_gradients_are_off_without_changing_the_result(
    op: Callable, make: Callable, layout: str, device: str
) -> None:
    inputs = make(device, layout=layout)
    with_grad = results_of(op, inputs)
    without = results_of(op, inputs, backward=False)
    assert all(torch.equal(without[name], with_grad[name]) for name in without)


@each_op
@each_layout
def test_results_share_no_memory_with_inputs(op: Callable, make: Callable, layout: str, device: str) -> None:
    for length in (0, 1, 130):
        inputs = make(device, layout=layout, length=length)
        held = {
            t.untyped_storage().data_ptr() for t in inputs.values() if isinstance(t, Tensor) and t.numel()
        }
        results = results_of(op, inputs).values()
        assert not held & {t.untyped_storage().data_ptr() for t in results if t.numel()}


def test_inference_mode_changes_nothing(device: str) -> None:
    for op, make in (*WHOLE.values(), *UPDATES):
        wanted = op(**make(device))
        with torch.inference_mode():
            got = op(**make(device))
        pairs = zip(got, wanted, strict=True) if isinstance(got, tuple) else [(got, wanted)]
        assert all(torch.equal(left, right) for left, right in pairs)


def test_updates_share_no_memory_with_inputs(device: str) -> None:
    for update, make in UPDATES:
        inputs = make(device)
        out = update(**inputs)
        held = {t.untyped_storage().data_ptr() for t in inputs.values() if isinstance(t, Tensor)}
        assert out.untyped_storage().data_ptr() not in held


@KINDS
def test_backward_keeps_inputs_and_one_state_per_chunk(is_complex: bool, device: str) -> None:
    inputs = make_scan(device, is_complex, batch=3, dim=8, state=5)
    leaves = {n: t.requires_grad_() if isinstance(t, Tensor) else t for n, t in inputs.items()}
    held = {t.untyped_storage().data_ptr() for t in inputs.values() if isinstance(t, Tensor)}
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        scan(**leaves)
    extra = {
        t.untyped_storage().data_ptr(): t.numel() for t in kept if t.untyped_storage().data_ptr() not in held
    }
    chunks = -(-130 // 64)
    assert list(extra.values()) == [3 * chunks * 5 * (2 if is_complex else 1) * 8]


@pytest.mark.parametrize(("op", "make"), [(selective_scan_fn, make_scan), (causal_conv1d_fn, make_conv)])
@each_layout
def test_memory_order_follows_the_input(op: Callable, make: Callable, layout: str, device: str) -> None:
    inputs = make(device, layout=layout)
    results = results_of(op, inputs)
    sequence = "u" if "u" in inputs else "x"
    for name, like in (("out 0", sequence), *((f"grad {n}", n) for n in ("u", "delta", "z", "x"))):
        if name in results:
            channel_last = inputs[like].stride(1) == 1 and inputs[like].stride(2) != 1
            _, dim, length = results[name].shape
            expected = (dim * length, 1, dim) if channel_last else (dim * length, length, 1)
            assert results[name].stride() == expected, name
