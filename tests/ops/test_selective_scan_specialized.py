"""The forward kernel with warps of two kinds: sixteen-bit sequences, 5 to 16 states, many steps (sm_90).

Its sizes are those of a whole GPU, so that these tests need one.
"""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from two_kinds import BRAIN, NOTHING, in_longer_rows, kernels_of, segment_of

from mamba_aot import selective_scan_fn
from mamba_aot.reference import selective_scan_ref
from mamba_aot.testing import assert_matches_reference, make_scan_inputs, results_of

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("needs_sm_90")]

scan: Callable[..., Any] = functools.partial(selective_scan_fn, return_last_state=True)
scan_ref: Callable[..., Any] = functools.partial(selective_scan_ref, return_last_state=True)

HALF: dict[str, Any] = {"dtype": torch.float16, "weight_dtype": torch.float16}
MIXED: dict[str, Any] = {"dtype": torch.float16, "weight_dtype": torch.bfloat16}

# Of few channels, and of many; with blocks of channels and tiles of steps that are not whole.
ROWS: dict[str, dict[str, Any]] = {
    "few": {"batch": 1, "dim": 2000, "length": 320},
    "few, a tile and a step": {"batch": 1, "dim": 1616, "length": 321, "layout": "channel"},
    "few, channel-last": {"batch": 2, "dim": 1008, "length": 577, "layout": "channel"},
    "few, groups": {"batch": 1, "dim": 2000, "length": 272, "groups": 4},
    "few, groups, channel-last": {"batch": 1, "dim": 2016, "length": 300, "groups": 3, "layout": "channel"},
    "few, half of a tile": {"batch": 1, "dim": 1500, "length": 272, "state": 7},
    "many": {"batch": 4, "dim": 1040, "length": 272},
    "many, channel-last": {"batch": 3, "dim": 1424, "length": 285, "layout": "channel"},
    "many, groups": {"batch": 4, "dim": 1044, "length": 304, "groups": 2},
    "many, groups, channel-last": {"batch": 4, "dim": 1056, "length": 259, "groups": 3, "layout": "channel"},
    "5 states": {"batch": 4, "dim": 1030, "length": 256, "state": 5},
    "9 states, channel-last": {"batch": 4, "dim": 1040, "length": 257, "state": 9, "layout": "channel"},
    "no options": {"batch": 4, "dim": 1040, "length": 256, **NOTHING},
    "no options, channel-last": {"batch": 1, "dim": 1552, "length": 400, "layout": "channel", **NOTHING},
    "initial state": {"batch": 4, "dim": 1040, "length": 272, "initial_state": True},
    "initial state, few": {"batch": 1, "dim": 1552, "length": 272, "initial_state": True, "state": 12},
    "no D": {"batch": 4, "dim": 1040, "length": 272, "D": False},
    "no z": {"batch": 1, "dim": 1552, "length": 256, "z": False, "layout": "channel"},
    "no softplus": {"batch": 1, "dim": 1552, "length": 256, "delta_softplus": False},
}


@pytest.mark.parametrize("dtype", [BRAIN, HALF, MIXED], ids=["bfloat16", "float16", "bfloat16 weights"])
@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_matches_float64(row: dict[str, Any], dtype: dict[str, Any]) -> None:
    inputs = make_scan_inputs(**row, **dtype, device="cuda")
    # Of few channels it needs pairs of bfloat16.
    pairs = inputs["B"].dtype == torch.bfloat16
    found = "specialized_fwd" in kernels_of(lambda: scan(**inputs))
    assert found == (pairs or row["batch"] * row["dim"] > 4000)
    assert_matches_reference(scan, scan_ref, inputs)


@pytest.mark.parametrize(
    "row",
    [
        {"dtype": torch.float32},
        {"weight_dtype": torch.float16, "dim": 1000},
        {"state": 4},
        {"state": 17},
        {"length": 255},
        {"length": 272, "batch": 1, "dim": 64},
        {"layout": "strided"},
        {"decay_gate": True},
        {"constant": "B"},
        {"heads": 2},
        {"cu_seqlens": [100, 172], "dim": 2000},
    ],
    ids=str,
)
def test_others_take_another_kernel(row: dict[str, Any]) -> None:
    inputs = make_scan_inputs(**{"batch": 2, "dim": 1024, "length": 272, **BRAIN, **row}, device="cuda")
    assert "specialized_fwd" not in kernels_of(lambda: scan(**inputs))


@pytest.mark.parametrize("layout", ["seq", "channel"])
@pytest.mark.parametrize("dim", [1552, 4160])
def test_segments_with_their_state_are_the_whole(layout: str, dim: int) -> None:
    whole = make_scan_inputs(1, dim, 640, **BRAIN, layout=layout, device="cuda")
    out, last = scan(**whole)
    parts, state = [], None
    for begin, end in [(0, 320), (320, 640)]:
        part, state = scan(**{**segment_of(whole, begin, end), "initial_state": state})
        parts.append(part)
    # Tiles begin at the same steps: the same arithmetic.
    torch.testing.assert_close(torch.cat(parts, -1), out, rtol=0, atol=0)
    torch.testing.assert_close(state, last, rtol=0, atol=0)


@pytest.mark.parametrize("dim", [1552, 4160])
def test_neighbours_do_not_matter_and_runs_are_equal(dim: int) -> None:
    inputs = make_scan_inputs(2, dim, 272, **BRAIN, device="cuda")
    first = results_of(scan, inputs)
    again = results_of(scan, inputs)
    for name, value in first.items():
        assert torch.equal(value, again[name]), name
    spoiled = {**inputs, "u": inputs["u"].clone()}
    spoiled["u"][1, 3:] = float("nan")
    out, last = scan(**spoiled)
    kept, kept_last = scan(**inputs)
    for of_all, of_kept in [(out, kept), (last, kept_last)]:
        assert torch.equal(of_all[0], of_kept[0])
        assert torch.equal(of_all[1, :3], of_kept[1, :3])


def test_steps_past_the_end_are_not_read() -> None:
    """A view into a longer row whose rest is NaN: the last tile must not see it."""
    inputs = make_scan_inputs(1, 1552, 320, **BRAIN, device="cuda")
    out, last = scan(**inputs)
    again, again_last = scan(**in_longer_rows(inputs, 384))
    assert torch.equal(out, again)
    assert torch.equal(last, again_last)
