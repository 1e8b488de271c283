"""mamba1_sequence against float64 and against the ops that it is made of; laws, states, errors, and a block
that takes it where nothing needs a gradient.
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_aot import Mamba1, MambaState, causal_conv1d_fn, selective_scan_fn
from mamba_aot.ops.mamba1_sequence import mamba1_sequence
from mamba_aot.reference import mamba1_sequence_ref
from mamba_aot.testing import assert_matches_reference, results_of

# Dynamo warns about itself, differently in every version of torch.
pytestmark = pytest.mark.filterwarnings("default")

WRITTEN = ("conv_state", "ssm_state")
OP = "mamba_aot::mamba1_sequence"


def make_inputs(
    batch: int = 2,
    length: int = 70,
    inner: int = 48,
    rank: int = 3,
    state: int = 16,
    taps: int = 4,
    kept: int | None = 3,
    *,
    dtype: torch.dtype = torch.bfloat16,
    weights: torch.dtype | None = None,
    bias: bool = True,
    half_states: bool = False,
    device: str = "cpu",
) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def normal(*shape: int, scale: float = 1.0, of: torch.dtype = dtype) -> Tensor:
        return (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(of).to(device)

    inputs: dict[str, Any] = {
        "xz": normal(batch, length, 2 * inner),
        "conv_weight": normal(inner, taps, scale=0.5, of=weights or dtype),
        "conv_bias": normal(inner, of=weights or dtype) if bias else None,
        "x_proj": normal(rank + 2 * state, inner, scale=inner**-0.5),
        "dt_proj": normal(inner, rank, scale=max(rank, 1) ** -0.5),
        "dt_bias": normal(inner, of=weights or dtype) - 2 if bias else None,
        "A": -torch.exp(normal(inner, state, of=wide)),
        "D": normal(inner, of=wide),
    }
    if kept is not None:
        inputs["conv_state"] = normal(batch, inner, kept)
        inputs["ssm_state"] = normal(batch, inner, state, of=dtype if half_states else wide)
    return inputs


def one_by_one(inputs: dict[str, Any]) -> Tensor:
    """The same by the public ops and torch's products."""
    A, rank = inputs["A"], inputs["dt_proj"].shape[1]
    x, z = inputs["xz"].transpose(1, 2).chunk(2, dim=1)
    conv_state, ssm_state = inputs.get("conv_state"), inputs.get("ssm_state")
    before = (
        None
        if conv_state is None
        else conv_state[..., conv_state.shape[2] - inputs["conv_weight"].shape[1] + 1 :]
    )
    u, last_steps = causal_conv1d_fn(
        x,
        inputs["conv_weight"],
        inputs["conv_bias"],
        initial_states=None if before is None else before.clone(),
        return_final_states=True,
        activation="silu",
    )
    low, B, C = F.linear(u.transpose(1, 2), inputs["x_proj"]).split([rank, A.shape[1], A.shape[1]], dim=-1)
    y, last_state = selective_scan_fn(
        u,
        F.linear(low, inputs["dt_proj"]).transpose(1, 2),
        A,
        B.transpose(1, 2),
        C.transpose(1, 2),
        inputs["D"],
        z,
        inputs["dt_bias"],
        True,
        True,
        initial_state=None if ssm_state is None else ssm_state.float(),
    )
    if before is not None and ssm_state is not None:
        before.copy_(last_steps)
        ssm_state.copy_(last_state)
    return y.transpose(1, 2)


ROWS: dict[str, dict[str, Any]] = {
    "base": {},
    "no states": {"kept": None},
    "one step": {"length": 1},
    "two steps, fewer than taps": {"length": 2},
    "129 steps of 24 channels": {"length": 129, "inner": 24},
    "1000 steps": {"length": 1000, "batch": 1},
    "130m": {"batch": 1, "length": 300, "inner": 1536, "rank": 48},
    "float16": {"dtype": torch.float16},
    "float32": {"dtype": torch.float32},
    "weights of float32": {"weights": torch.float32},
    "no bias": {"bias": False},
    "4 steps kept": {"kept": 4},
    "1 tap": {"taps": 1, "kept": 0},
    "7 taps, 9 steps kept, 5 new": {"taps": 7, "kept": 9, "length": 5},
    "3 states": {"state": 3},
    "128 states": {"state": 128},
    "half states": {"half_states": True},
    "no rank": {"rank": 0},
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_matches_float64(row: dict[str, Any], device: str) -> None:
    inputs = make_inputs(**row, device=device)
    written = WRITTEN if "ssm_state" in inputs else ()
    assert_matches_reference(mamba1_sequence, mamba1_sequence_ref, inputs, backward=False, written=written)


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_is_what_its_ops_are(row: dict[str, Any], device: str) -> None:
    inputs, others = (make_inputs(**row, device=device) for _ in range(2))
    assert torch.equal(mamba1_sequence(**inputs), one_by_one(others))
    assert all(torch.equal(inputs[name], others[name]) for name in WRITTEN if name in inputs)


@pytest.mark.parametrize("row", [{"batch": 0}, {"length": 0}], ids=["no rows", "no steps"])
def test_nothing_changes_no_state(row: dict[str, Any], device: str) -> None:
    inputs = make_inputs(**row, device=device)
    before = [inputs[name].clone() for name in WRITTEN]
    assert mamba1_sequence(**inputs).shape == (*inputs["xz"].shape[:2], 48)
    assert all(torch.equal(inputs[name], was) for name, was in zip(WRITTEN, before, strict=True))


@pytest.mark.parametrize("length", [1, 2, 33])
def test_segments_are_the_whole(length: int, device: str) -> None:
    """In float32, where nothing that is handed on is rounded."""
    inputs, others = (make_inputs(dtype=torch.float32, device=device) for _ in range(2))
    whole = mamba1_sequence(**inputs)
    pieces = others.pop("xz").split(length, dim=1)
    parts = torch.cat([mamba1_sequence(piece, **others) for piece in pieces], dim=1)
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-4)
    for name in WRITTEN:
        torch.testing.assert_close(others[name], inputs[name], rtol=1e-4, atol=1e-4)


def test_two_runs_are_equal(device: str) -> None:
    inputs = make_inputs(length=600, device=device)
    first, second = (results_of(mamba1_sequence, inputs, backward=False, written=WRITTEN) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_states_lie_as_they_like(device: str) -> None:
    inputs, others = (make_inputs(kept=4, device=device) for _ in range(2))
    for name in WRITTEN:
        others[name] = others[name].mT.contiguous().mT
    assert torch.equal(mamba1_sequence(**inputs), mamba1_sequence(**others))
    assert all(torch.equal(inputs[name], others[name]) for name in WRITTEN)


@pytest.mark.parametrize("row", [{}, {"kept": None}], ids=["states", "no states"])
def test_opcheck(row: dict[str, Any], device: str) -> None:
    inputs = {"conv_state": None, "ssm_state": None, **make_inputs(**row, device=device)}
    values = [*(t for name, t in inputs.items() if name not in WRITTEN), *(inputs[name] for name in WRITTEN)]
    op = torch.ops.mamba_aot.mamba1_sequence.default
    torch.library.opcheck(op, tuple(values), test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"xz": torch.zeros(2, 70, 95, dtype=torch.bfloat16)}, r"mamba1_sequence: xz must be \[batch, len"),
        ({"x_proj": torch.zeros(35, 48)}, "mamba1_sequence: x_proj must be bfloat16"),
        ({"dt_proj": torch.zeros(47, 3, dtype=torch.bfloat16)}, r"dt_proj must be \[channels, rank\]"),
        ({"conv_weight": torch.zeros(48, 0)}, "conv_weight must have at least 1 tap"),
        (
            {"conv_state": torch.zeros(2, 48, 2, dtype=torch.bfloat16)},
            "conv_state must be .* taps - 1 or more",
        ),
        ({"conv_state": torch.zeros(2, 48, 3)}, "conv_state must be bfloat16"),
        (
            {"ssm_state": torch.zeros(2, 48, 16, dtype=torch.float16)},
            r"ssm_state must be float32 \(the arith",
        ),
        ({"ssm_state": None}, "must be given together, or neither; got only conv_state"),
        ({"D": torch.zeros(47)}, r"D must be \[channels\]"),
        ({"conv_bias": torch.zeros(47)}, r"bias must be \[channels\]"),
    ],
    ids=["xz", "x_proj", "dt_proj", "taps", "steps", "conv_state", "ssm_state", "one state", "D", "bias"],
)
def test_errors(changed: dict[str, Any], sentence: str) -> None:
    inputs = make_inputs() | changed
    before = {name: inputs[name].clone() for name in WRITTEN if inputs[name] is not None}
    with pytest.raises(ValueError, match=sentence):
        mamba1_sequence(**inputs)
    assert all(torch.equal(inputs[name], was) for name, was in before.items())


def test_what_is_no_tensor_is_a_type_error() -> None:
    with pytest.raises(TypeError, match=r"mamba1_sequence: D must be a torch\.Tensor, got int"):
        mamba1_sequence(**make_inputs() | {"D": 1})


def ops_of(block: Mamba1, x: Tensor, state: MambaState | None = None) -> set[str]:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        block(x, state=state)
    return {event.key for event in profile.key_averages() if event.key.startswith("mamba_aot::")}


@pytest.mark.parametrize("precision", ["bfloat16", "float32", "autocast"])
@pytest.mark.parametrize("length", [2, 130])
def test_a_block_without_gradients_is_what_its_modules_are(
    length: int, precision: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    torch.manual_seed(0)
    block = Mamba1(32, device=device).to(dtype)
    x = torch.randn(3, length, 32, device=device, dtype=dtype)
    kept = torch.bfloat16 if precision != "float32" else torch.float32
    states = [block.allocate_state(3, dtype=kept) for _ in range(2)]
    cast = torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "autocast")
    with torch.no_grad(), cast:
        assert ops_of(block, x) == {OP}
        fused = [block(x), *(block(piece, state=states[0]) for piece in x.split(50, dim=1))]
        monkeypatch.setattr(Mamba1, "_mixes", lambda *_: False)
        assert OP not in ops_of(block, x)
        plain = [block(x), *(block(piece, state=states[1]) for piece in x.split(50, dim=1))]
    assert all(torch.equal(left, right) for left, right in zip(fused, plain, strict=True))
    assert torch.equal(states[0].conv, states[1].conv)
    assert torch.equal(states[0].ssm, states[1].ssm)


def test_a_block_refuses_tangents_without_gradients() -> None:
    """The op would drop them."""
    block, x = Mamba1(32).requires_grad_(False), torch.randn(2, 9, 32)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        with pytest.raises(RuntimeError, match="taken once and in reverse"):
            block(dual)


def test_a_block_that_is_trained_or_hooked_goes_by_its_modules() -> None:
    block, x = Mamba1(32), torch.randn(2, 9, 32)
    assert OP not in ops_of(block, x)
    with torch.no_grad():
        assert ops_of(block, x, block.allocate_state(2)) == {OP}
        # Kept in another dtype than the convolution's, and states that the op has no arithmetic for.
        assert OP not in ops_of(block, x, block.allocate_state(2, dtype=torch.bfloat16))
        assert OP not in ops_of(block, x, block.allocate_state(2, ssm_dtype=torch.float16))
        handle = block.x_proj.register_forward_hook(lambda *_: None)
        assert OP not in ops_of(block, x)
        handle.remove()
        assert ops_of(block, x) == {OP}
    assert OP not in ops_of(block, x, block.allocate_state(2))
    block.requires_grad_(False)
    assert ops_of(block, x) == {OP}
    assert OP not in ops_of(block, x.requires_grad_())
