"""selective_scan on bad input: what must hold, what was got, before anything is computed."""

from typing import Any

import pytest
import torch

from mamba_aot import selective_scan_fn
from mamba_aot.testing import make_scan_inputs

# The base call is batch 2, channels 8, length 63, state 16; each row changes some arguments of it.
SENTENCES: dict[str, tuple[dict[str, Any], str]] = {
    "u rank": ({"u": torch.zeros(2, 8)}, "u must be [batch, channels, length] (3 dimensions), got [2, 8]"),
    "u rank beside seq_idx": (
        {"u": torch.zeros(8, 63), "seq_idx": torch.zeros(63, dtype=torch.int32)},
        "u must be [batch, channels, length] (3 dimensions), got [8, 63]",
    ),
    "u rank beside complex A": (
        {"u": torch.tensor(1.0), "A": torch.zeros(8, 16, dtype=torch.complex64)},
        "u must be [batch, channels, length] (3 dimensions), got []",
    ),
    "u dtype": ({"u": torch.zeros(2, 8, 63, dtype=torch.int32)}, "u must be float32, float16, bfloat16"),
    "u is no tensor": ({"u": 1.0}, "u must be a torch.Tensor, got float"),
    "delta shape": (
        {"delta": torch.zeros(2, 8, 62)},
        "delta must be [batch, channels, length] = [2, 8, 63], got [2, 8, 62]",
    ),
    "delta heads": ({"delta": torch.zeros(2, 3, 63)}, "delta must be [batch, channels, length] = [2, 8, 63]"),
    "delta heads length": (
        {"delta": torch.zeros(2, 4, 62)},
        "delta must be [batch, heads, length] = [2, 4, 63], got [2, 4, 62]",
    ),
    "delta_bias heads": (
        {"delta": torch.zeros(2, 4, 63), "delta_bias": torch.zeros(2)},
        "delta_bias must be [channels] = [8], got [2]",
    ),
    "delta dtype": ({"delta": torch.zeros(2, 8, 63, dtype=torch.int32)}, "delta must be float32, float16"),
    "delta complex": ({"delta": torch.zeros(2, 8, 63, dtype=torch.complex64)}, "got complex64"),
    "A rank": ({"A": torch.zeros(8, 16, 2)}, "A must be [channels, state], got [8, 16, 2]"),
    "A shape": ({"A": torch.zeros(7, 16)}, "A must be [channels, state] = [8, 16], got [7, 16]"),
    "A dtype": ({"A": torch.zeros(8, 16, dtype=torch.int64)}, "A must be float32"),
    "A is no tensor": ({"A": None}, "A must be a torch.Tensor, got NoneType"),
    "B length": (
        {"B": torch.zeros(2, 16, 62)},
        "B must be [batch, state, length] = [2, 16, 63], got [2, 16, 62]",
    ),
    "B state": (
        {"B": torch.zeros(2, 2, 15, 63)},
        "B must be [batch, groups, state, length] = [2, 2, 16, 63], got [2, 2, 15, 63]",
    ),
    "B rank": ({"B": torch.zeros(63)}, "B must be [batch, state, length] or [batch, groups, state"),
    "B constant": ({"B": torch.zeros(8, 15)}, "B must be [channels, state] = [8, 16], got [8, 15]"),
    "B groups": ({"B": torch.zeros(2, 3, 16, 63)}, "groups that divides the 8 channels of u, got 3"),
    "B dtype": ({"B": torch.zeros(2, 16, 63, dtype=torch.int32)}, "B must be float32"),
    "B complex beside a real A": (
        {"B": torch.zeros(2, 16, 63, dtype=torch.complex64)},
        "B must be real because A is real, got torch.complex64",
    ),
    "B real beside a complex A": (
        {"A": torch.zeros(8, 16, dtype=torch.complex64)},
        "with (re, im) pairs along a last dim of 2 * length = 126, got torch.float32 of [2, 1, 16, 63]",
    ),
    "B constant beside a complex A": (
        {"A": torch.zeros(8, 16, dtype=torch.complex64), "B": torch.zeros(8, 16)},
        "B must be complex because A is complex, got torch.float32 of [8, 16]",
    ),
    "C constant": (
        {"A": torch.zeros(8, 16), "C": torch.zeros(8, 16, dtype=torch.complex64)},
        "C must be real because A is real, got torch.complex64",
    ),
    "C shape": (
        {"C": torch.zeros(3, 16, 63)},
        "C must be [batch, state, length] = [2, 16, 63], got [3, 16, 63]",
    ),
    "C groups": ({"C": torch.zeros(2, 2, 16, 63)}, "C must have as many groups as B, which is 1, got 2"),
    "D shape": ({"D": torch.zeros(9)}, "D must be [channels] = [8], got [9]"),
    "D is no tensor": ({"D": 1.0}, "D must be a torch.Tensor or None, got float"),
    "z shape": ({"z": torch.zeros(1, 8, 63)}, "z must be [batch, channels, length] = [2, 8, 63], got [1"),
    "z dtype": ({"z": torch.zeros(2, 8, 63, dtype=torch.int64)}, "z must be float32, float16, bfloat16"),
    "delta_bias shape": ({"delta_bias": torch.zeros(8, 1)}, "delta_bias must be [channels] = [8], got [8"),
    "delta_bias dtype": ({"delta_bias": torch.zeros(8, dtype=torch.int32)}, "delta_bias must be float32"),
    "delta_bias complex": (
        {"delta": torch.zeros(2, 4, 63), "delta_bias": torch.zeros(4, dtype=torch.complex64)},
        "delta_bias must be float32, float16, bfloat16 or float64, got complex64",
    ),
    "decay_gate shape": (
        {"decay_gate": torch.ones(2, 8, 63)},
        "decay_gate must be [batch, state, length] = [2, 16, 63], got [2, 8, 63]",
    ),
    "initial_state shape": (
        {"initial_state": torch.zeros(2, 8, 15)},
        "initial_state must be [batch, channels, state] = [2, 8, 16], got [2, 8, 15]",
    ),
    "initial_state dtype": (
        {"initial_state": torch.zeros(2, 8, 16).half()},
        "initial_state must be float32 (the state's dtype), got float16",
    ),
    "discretization": ({"discretization": "tustin"}, 'must be "euler" or "zoh", got \'tustin\''),
}


@pytest.mark.parametrize(("change", "sentence"), SENTENCES.values(), ids=SENTENCES)
def test_sentence(change: dict[str, Any], sentence: str, device: str) -> None:
    inputs = make_scan_inputs(device=device)
    inputs |= {name: v.to(device) if isinstance(v, torch.Tensor) else v for name, v in change.items()}
    with pytest.raises(TypeError if "torch.Tensor" in sentence else ValueError) as caught:
        selective_scan_fn(**inputs)
    assert str(caught.value).startswith("selective_scan_fn: ")
    assert sentence in str(caught.value)


def test_initial_state_beside_a_complex_a(device: str) -> None:
    inputs = make_scan_inputs(is_complex=True, device=device)
    inputs["initial_state"] = torch.zeros(2, 8, 16, device=device)
    with pytest.raises(ValueError, match="initial_state must be complex"):
        selective_scan_fn(**inputs)


@pytest.mark.parametrize("name", ["delta", "z"])
def test_what_is_wider_than_the_arithmetic(name: str) -> None:
    inputs = make_scan_inputs(dtype=torch.bfloat16)
    inputs[name] = inputs[name].double()
    sentence = (
        f"{name} must not be wider than the arithmetic, which is float32 for u of bfloat16, got float64"
    )
    with pytest.raises(ValueError, match=f"selective_scan_fn: {sentence}"):
        selective_scan_fn(**inputs)


@pytest.mark.gpu
def test_mixed_devices_and_float64_on_a_gpu() -> None:
    inputs = make_scan_inputs(device="cuda")
    with pytest.raises(ValueError, match="A must be on cuda:0 like u, got cpu"):
        selective_scan_fn(**inputs | {"A": inputs["A"].cpu()})
    with pytest.raises(ValueError, match="u must be float32, float16 or bfloat16 on cuda:0, got float64"):
        selective_scan_fn(**make_scan_inputs(device="cuda", dtype=torch.float64))
