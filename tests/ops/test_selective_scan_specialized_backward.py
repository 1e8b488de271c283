"""The backward kernel with warps of two kinds: sixteen-bit sequences, 5 to 16 states, many steps (sm_90)."""

from typing import Any

import pytest
import torch
from torch import Tensor
from two_kinds import BRAIN, NOTHING, SEQUENCES, in_longer_rows, kernels_of, segment_of

from mamba_aot import selective_scan_fn
from mamba_aot.reference import selective_scan_ref
from mamba_aot.testing import assert_matches_reference, make_scan_inputs, results_of

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("needs_sm_90")]

HALF: dict[str, Any] = {"dtype": torch.float16}

# Blocks of channels and chunks of steps that are not whole, several launches, spans, and what may be missing.
ROWS: dict[str, dict[str, Any]] = {
    "a block and a chunk": {"dim": 33, "length": 336},
    "one channel": {"dim": 1, "length": 256},
    "half a chunk": {"dim": 32, "length": 288},
    "a chunk alone": {"dim": 40, "length": 64},
    "a chunk and a step": {"dim": 48, "length": 65, "layout": "channel"},
    "half of a tile": {"dim": 48, "length": 260, "layout": "channel"},
    "channel-last": {"dim": 80, "length": 321, "layout": "channel"},
    "long": {"batch": 1, "dim": 40, "length": 4096},
    "long, channel-last": {"batch": 1, "dim": 48, "length": 3001, "layout": "channel"},
    "many launches": {"batch": 1, "dim": 8, "length": 20000},
    "whole rounds": {"batch": 4, "dim": 2112, "length": 256},
    "whole rounds, channel-last": {"batch": 4, "dim": 2112, "length": 257, "layout": "channel"},
    "spans in two pieces": {"batch": 1, "dim": 2112, "length": 1700},
    "groups": {"dim": 100, "length": 272, "groups": 5},
    "groups, channel-last": {"dim": 144, "length": 300, "groups": 2, "layout": "channel"},
    "5 states": {"dim": 40, "length": 272, "state": 5},
    "7 states": {"dim": 40, "length": 272, "state": 7},
    "8 states, channel-last": {"dim": 48, "length": 270, "state": 8, "layout": "channel"},
    "9 states": {"dim": 40, "length": 272, "state": 9},
    "no options": {"dim": 64, "length": 272, **NOTHING},
    "no options, channel-last": {"dim": 64, "length": 272, "layout": "channel", **NOTHING},
    "initial state": {"dim": 40, "length": 336, "initial_state": True},
    "initial state, long": {"batch": 1, "dim": 40, "length": 4096, "initial_state": True, "state": 11},
    "no D": {"dim": 40, "length": 272, "D": False},
    "no z": {"dim": 48, "length": 272, "z": False, "layout": "channel"},
    "no bias": {"dim": 40, "length": 272, "delta_bias": False},
    "no softplus": {"dim": 40, "length": 272, "delta_softplus": False},
}


class SameLayout(torch.autograd.Function):
    """The identity, whose incoming gradient gets the strides of its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.strides = x.stride()
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return gradient.new_empty_strided(gradient.shape, ctx.strides).copy_(gradient)


def scan(**inputs: Any) -> tuple[Tensor, Tensor]:
    out, last = selective_scan_fn(**inputs, return_last_state=True)
    return SameLayout.apply(out), last  # pyright: ignore[reportReturnType]


def scan_ref(**inputs: Any) -> Any:
    return selective_scan_ref(**inputs, return_last_state=True)


@pytest.mark.parametrize("dtype", [BRAIN, HALF], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_matches_float64(row: dict[str, Any], dtype: dict[str, Any]) -> None:
    inputs = make_scan_inputs(**{"batch": 2, **row, **dtype}, device="cuda")
    assert "specialized_bwd" in kernels_of(lambda: results_of(scan, inputs))
    assert_matches_reference(scan, scan_ref, inputs)


@pytest.mark.parametrize(
    "row",
    [
        {"dtype": torch.float32, "weight_dtype": torch.float32},
        {"state": 4},
        {"state": 17},
        {"length": 48},
        {"dim": 60, "layout": "channel"},
        {"dim": 48, "groups": 4, "layout": "channel"},
        {"layout": "strided"},
        {"is_complex": True, "weight_dtype": None},
        {"decay_gate": True},
        {"constant": "B"},
        {"heads": 2},
        {"cu_seqlens": [100, 172], "batch": 1},
    ],
    ids=str,
)
def test_others_take_another_kernel(row: dict[str, Any]) -> None:
    inputs = make_scan_inputs(**{"batch": 2, "dim": 64, "length": 272, **BRAIN, **row}, device="cuda")
    assert "specialized_bwd" not in kernels_of(lambda: results_of(scan, inputs))


@pytest.mark.parametrize("layout", ["seq", "channel"])
def test_neighbours_do_not_matter_and_runs_are_equal(layout: str) -> None:
    inputs = make_scan_inputs(3, 48, 336, **BRAIN, layout=layout, device="cuda")
    first = results_of(scan, inputs)
    again = results_of(scan, inputs)
    for name, value in first.items():
        assert torch.equal(value, again[name]), name
    spoiled = {**inputs, "u": inputs["u"].clone()}
    spoiled["u"][1, 3:] = float("nan")
    found = results_of(scan, spoiled)
    for name in SEQUENCES:
        for row in (0, 2):
            assert torch.equal(found[f"grad {name}"][row], first[f"grad {name}"][row]), name


@pytest.mark.parametrize("layout", ["seq", "channel"])
def test_segments_with_their_state_are_the_whole(layout: str) -> None:
    """Programs enough for all of a GPU, so that time is not in spans: the same arithmetic, chunk by chunk."""
    whole = make_scan_inputs(2, 4224, 640, **BRAIN, layout=layout, device="cuda")

    def in_segments(**inputs: Any) -> tuple[Tensor, Tensor]:
        parts, state = [], None
        for begin, end in [(0, 320), (320, 640)]:
            segment = segment_of(inputs, begin, end)
            out, state = selective_scan_fn(**{**segment, "initial_state": state}, return_last_state=True)
            parts.append(SameLayout.apply(out))
        assert state is not None
        return torch.cat(parts, -1), state

    expected = results_of(scan, whole)
    found = results_of(in_segments, whole)
    for name in SEQUENCES:
        assert torch.equal(found[f"grad {name}"], expected[f"grad {name}"]), name


def test_steps_past_the_end_are_not_read() -> None:
    """A view into longer rows whose rest is NaN: the last half of a chunk must not see it."""
    inputs = make_scan_inputs(1, 64, 272, **BRAIN, device="cuda")
    first, again = results_of(scan, inputs), results_of(scan, in_longer_rows(inputs, 384))
    for name, value in first.items():
        assert torch.equal(value, again[name]), name
