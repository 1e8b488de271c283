"""causal_conv1d against float64: the sequence form with every gradient, the update form with its state."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from mamba_aot import causal_conv1d_fn, causal_conv1d_update
from mamba_aot.reference import causal_conv1d_ref, causal_conv1d_update_ref
from mamba_aot.testing import assert_matches_reference, make_conv_inputs, make_conv_update_inputs, results_of

conv: Callable[..., Any] = functools.partial(causal_conv1d_fn, return_final_states=True)
conv_ref: Callable[..., Any] = functools.partial(causal_conv1d_ref, return_final_states=True)

HALF = {"dtype": torch.float16}
BRAIN = {"dtype": torch.bfloat16}

# The base row, then rows that change one thing, then rows where two changes meet in one kernel.
ROWS: dict[str, dict[str, Any]] = {
    "base": {},
    "width 2": {"width": 2},
    "width 3": {"width": 3},
    "width 1": {"width": 1, "initial_states": True},
    "width 5": {"width": 5, "length": 129, "dim": 40},
    "width 9, initial states, channel-last": {"width": 9, "initial_states": True, "layout": "channel"},
    "width 9, longer than the sequence": {"width": 9, "length": 3, "initial_states": True},
    "width 64": {"width": 64, "length": 150, "initial_states": True},
    "width 64, bfloat16": {"width": 64, "length": 150, "dtype": torch.bfloat16, "layout": "strided"},
    "one step": {"length": 1},
    "two steps": {"length": 2},
    "129 steps": {"length": 129},
    "1000 steps": {"length": 1000},
    "one channel": {"dim": 1},
    "24 channels": {"dim": 24},
    "1000 channels": {"dim": 1000},
    "channel-last": {"layout": "channel"},
    "sliced": {"layout": "sliced"},
    "strided": {"layout": "strided"},
    "no bias": {"bias": False},
    "no activation": {"activation": None},
    "swish": {"activation": "swish"},
    "no bias, no activation": {"bias": False, "activation": None},
    "initial states": {"initial_states": True},
    "initial states, one step": {"initial_states": True, "length": 1},
    "initial states, channel-last": {"initial_states": True, "layout": "channel"},
    "initial states, channel-last, width 2, one step": {
        "initial_states": True,
        "layout": "channel",
        "length": 1,
        "width": 2,
    },
    "channel-last, 129 steps, 1000 channels": {"layout": "channel", "length": 129, "dim": 1000},
    "float16": HALF,
    "float16, channel-last": {**HALF, "layout": "channel"},
    "float16, initial states": {**HALF, "initial_states": True},
    "float16, float32 weights": {**HALF, "weight_dtype": torch.float32},
    "bfloat16": BRAIN,
    "bfloat16, 1000 steps": {**BRAIN, "length": 1000},
    "bfloat16, channel-last": {**BRAIN, "layout": "channel"},
    "bfloat16, initial states": {**BRAIN, "initial_states": True, "layout": "channel"},
    "bfloat16, float32 weights": {**BRAIN, "weight_dtype": torch.float32},
    "no sequences": {"batch": 0},
    "no channels": {"dim": 0},
    "no steps": {"length": 0},
    "no steps, initial states": {"length": 0, "initial_states": True},
}

UPDATE_ROWS: dict[str, dict[str, Any]] = {
    "base": {},
    "width 2": {"width": 2},
    "width 3": {"width": 3},
    "width 1": {"width": 1, "steps": 2},
    "width 1, keeps more": {"width": 1, "kept": 2, "steps": 3},
    "width 7": {"width": 7, "steps": 3},
    "width 64, slots": {"width": 64, "slots": 4, "steps": 2},
    "one sequence": {"batch": 1},
    "one channel": {"dim": 1},
    "1000 channels": {"dim": 1000},
    "one step with a length": {"steps": 1},
    "2 steps": {"steps": 2},
    "5 steps": {"steps": 5},
    "keeps more": {"kept": 9},
    "keeps more, 5 steps": {"kept": 9, "steps": 5},
    "keeps more, 20 steps": {"kept": 9, "steps": 20},
    "slots": {"slots": 7},
    "slots, 5 steps, keeps more": {"slots": 7, "steps": 5, "kept": 6},
    "ring": {"ring": True},
    "ring, 2 steps": {"ring": True, "steps": 2},
    "ring, 5 steps": {"ring": True, "steps": 5, "batch": 5},
    "ring keeps more": {"ring": True, "kept": 9, "batch": 5},
    "ring keeps more, 5 steps": {"ring": True, "kept": 9, "steps": 5, "batch": 5},
    "ring keeps more, 20 steps, slots": {"ring": True, "kept": 9, "steps": 20, "slots": 5},
    "ring, width 1 keeps nothing": {"ring": True, "width": 1, "steps": 2},
    "ring, width 9": {"ring": True, "width": 9, "kept": 11, "steps": 4},
    "ring, bfloat16, channel-last": {"ring": True, **BRAIN, "layout": "channel", "steps": 3, "kept": 6},
    "channel-last": {"layout": "channel", "steps": 3},
    "sliced": {"layout": "sliced"},
    "strided": {"layout": "strided", "steps": 3},
    "no bias": {"bias": False},
    "no activation": {"activation": None},
    "float16": HALF,
    "bfloat16": BRAIN,
    "bfloat16, channel-last, slots": {**BRAIN, "layout": "channel", "slots": 5, "steps": 4},
    "bfloat16, float32 weights": {**BRAIN, "weight_dtype": torch.float32},
    "keeps 4, bfloat16": {**BRAIN, "kept": 4, "dim": 130},
    "keeps 4, float16, slots": {**HALF, "kept": 4, "slots": 7},
    "keeps 4, bfloat16, a step with a time axis": {**BRAIN, "kept": 4, "steps": 1},
    "keeps 4, bfloat16, sliced": {**BRAIN, "kept": 4, "layout": "sliced"},
    "keeps 4, bfloat16, channel-last": {**BRAIN, "kept": 4, "layout": "channel"},
    "keeps 4, bfloat16, width 3": {**BRAIN, "kept": 4, "width": 3},
    "keeps 4, bfloat16, no bias, no activation": {**BRAIN, "kept": 4, "bias": False, "activation": None},
    "no sequences": {"batch": 0},
    "no channels": {"dim": 0},
    "no steps": {"steps": 0},
}


def assert_step_matches(inputs: dict[str, Any]) -> None:
    assert_matches_reference(
        causal_conv1d_update, causal_conv1d_update_ref, inputs, backward=False, written=["conv_state"]
    )


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_matches_float64(row: dict[str, Any], device: str) -> None:
    assert_matches_reference(conv, conv_ref, make_conv_inputs(**row, device=device))


@pytest.mark.parametrize("row", UPDATE_ROWS.values(), ids=UPDATE_ROWS)
def test_update_matches_float64(row: dict[str, Any], device: str) -> None:
    inputs = make_conv_update_inputs(**row, device=device)
    assert_step_matches(inputs)


@pytest.mark.parametrize("layout", ["seq", "channel"])
def test_gradients_arrive_in_any_memory_order(layout: str, device: str) -> None:
    def transposed(function: Callable[..., Any], inputs: dict[str, Any]) -> torch.Tensor:
        return function(**inputs).transpose(1, 2)

    def summed(function: Callable[..., Any], inputs: dict[str, Any]) -> torch.Tensor:
        return function(**inputs).sum()

    inputs = make_conv_inputs(initial_states=True, layout=layout, device=device)
    inputs["initial_states"] = inputs["initial_states"].contiguous()
    for form in (transposed, summed):
        assert_matches_reference(
            lambda form=form, **inputs: form(causal_conv1d_fn, inputs),
            lambda form=form, **inputs: form(causal_conv1d_ref, inputs),
            inputs,
        )


@pytest.mark.parametrize(
    "row", [{"steps": 2}, {}, {"kept": 4, "dim": 130, **BRAIN}], ids=["2", "1", "kept 4"]
)
def test_update_leaves_padding_and_other_slots_alone(row: dict[str, Any], device: str) -> None:
    inputs = make_conv_update_inputs(**{"batch": 3, "slots": 5, **row}, device=device)
    inputs["conv_state_indices"][1] = -1
    assert_step_matches(inputs)
    before = inputs["conv_state"].clone()
    out = causal_conv1d_update(**inputs)
    live = inputs["conv_state_indices"].tolist()
    assert not out[1].any()
    for slot in range(5):
        assert torch.equal(inputs["conv_state"][slot], before[slot]) == (slot not in live)


def test_slots_that_do_not_exist_are_never_written(device: str) -> None:
    inputs = make_conv_update_inputs(batch=3, slots=5, steps=2, ring=True, device=device)
    inputs["conv_state_indices"][1] = 5
    # One slot more lies behind the state, where a write would land.
    memory = torch.cat([inputs["conv_state"], torch.ones_like(inputs["conv_state"][:1])])
    inputs["conv_state"] = memory[:5]
    before = memory.clone()
    if device == "cpu":
        with pytest.raises(ValueError, match="conv_state_indices must be slots below 5"):
            causal_conv1d_update(**inputs)
        assert torch.equal(memory, before)
        return
    assert not causal_conv1d_update(**inputs)[1].any()
    live = inputs["conv_state_indices"].tolist()
    for slot in range(6):
        assert torch.equal(memory[slot], before[slot]) == (slot not in live or slot == 5)


@pytest.mark.parametrize("steps", [1, 3, 8])
def test_a_ring_is_a_state_that_never_shifts(steps: int, device: str) -> None:
    inputs = make_conv_update_inputs(kept=5, steps=24, device=device)
    filters = {name: inputs[name] for name in ("weight", "bias", "activation")}
    shifting = inputs["conv_state"].clone()
    ring = shifting.roll(2, dims=2)
    seen = torch.full((2,), 2, dtype=torch.int32, device=device)
    for part in inputs["x"].split(steps, dim=2):
        wanted = causal_conv1d_update(part, shifting, **filters)
        assert torch.equal(causal_conv1d_update(part, ring, **filters, cache_seqlens=seen), wanted)
        seen += steps
        assert torch.equal(ring.roll(-int(seen[0]), dims=2), shifting)


@pytest.mark.parametrize("seen", [[-1, -9], [2**31 - 1, 2**31 - 2]], ids=str)
def test_a_ring_turns_by_any_number(seen: list[int], device: str) -> None:
    inputs = make_conv_update_inputs(kept=5, steps=3, ring=True, device=device)
    inputs["cache_seqlens"] = torch.tensor(seen, dtype=torch.int32, device=device)
    assert_step_matches(inputs)


def test_autograd_notices_that_the_state_was_written(device: str) -> None:
    inputs = make_conv_update_inputs(device=device)
    sequence = make_conv_inputs(device=device)
    sequence["weight"].requires_grad_()
    out = conv(**sequence | {"initial_states": inputs["conv_state"]})[0]
    causal_conv1d_update(**inputs)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@pytest.mark.parametrize("initial_states", [False, True])
@pytest.mark.parametrize("length", [1, 2, 3, 9])
def test_final_states_are_the_last_steps(length: int, initial_states: bool, device: str) -> None:
    inputs = make_conv_inputs(length=length, initial_states=initial_states, device=device)
    before = inputs["initial_states"] if initial_states else inputs["x"].new_zeros(2, 8, 3)
    final_states = conv(**inputs)[1]
    assert torch.equal(final_states, torch.cat([before, inputs["x"]], dim=2)[..., -3:])


def test_final_states_out_is_written_and_returned(device: str) -> None:
    inputs = make_conv_inputs(device=device)
    buffer = torch.empty(2, 3, 8, device=device).transpose(1, 2)
    returned = conv(**inputs, final_states_out=buffer)[1]
    assert returned is buffer
    assert torch.equal(buffer, inputs["x"][..., -3:])
    buffer.zero_()
    assert isinstance(causal_conv1d_fn(**inputs, final_states_out=buffer), torch.Tensor)
    assert torch.equal(buffer, inputs["x"][..., -3:])


def test_final_states_out_that_lies_in_itself_is_refused(device: str) -> None:
    memory = torch.zeros(40, device=device)
    for strides in ((8, 1, 1), (8, 3, 0), (1, 2, 11)):
        with pytest.raises(ValueError, match="final_states_out is written, so its elements must not share"):
            conv(**make_conv_inputs(device=device), final_states_out=memory.as_strided((2, 8, 3), strides))
    assert not memory.any()


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("width", [1, 2, 3, 4, 6])
def test_gradcheck(width: int, activation: str | None) -> None:
    inputs = make_conv_inputs(
        1, 2, 5, width, dtype=torch.float64, initial_states=True, activation=activation, layout="channel"
    )
    names = [name for name, value in inputs.items() if isinstance(value, torch.Tensor)]

    def call(*tensors: torch.Tensor) -> Any:
        return conv(**inputs | dict(zip(names, tensors, strict=True)))

    assert torch.autograd.gradcheck(call, [inputs[name].requires_grad_() for name in names])


@pytest.mark.parametrize("need", ["x", "weight", "bias", "initial_states"])
def test_gradient_of_one_input_alone(need: str, device: str) -> None:
    inputs = make_conv_inputs(initial_states=True, device=device)
    together = results_of(conv, inputs)[f"grad {need}"]

    def call(**alone: Any) -> Any:
        return conv(**inputs | alone)

    assert torch.equal(results_of(call, {need: inputs[need]})[f"grad {need}"], together)


@pytest.mark.parametrize("layout", ["contiguous", "channel"])
def test_silu_of_large_numbers_keeps_its_slope(layout: str, device: str) -> None:
    x = torch.linspace(-90, 90, 64 * 32, dtype=torch.float64, device=device).reshape(1, 32, 64)
    true = torch.sigmoid(x) * (1 + x * (1 - torch.sigmoid(x)))
    given = x.float() if layout == "contiguous" else x.float().mT.contiguous().mT
    given.requires_grad_()
    taps = torch.ones(32, 1, device=device)
    (slope,) = torch.autograd.grad(causal_conv1d_fn(given, taps, activation="silu").sum(), given)
    # 1 - sigmoid(x) is off by a unit of 1, as long as it is not 0.
    allowed = 2e-7 * (2 + torch.where(x.abs() < 18, x.abs(), 0))
    assert ((slope - true).abs() <= allowed).all()


# causal-conv1d tests/test_causal_conv1d.py: (rtol, atol); dweight and dbias are held to 1e-3 throughout.
PEER_TOLERANCE = {torch.float32: (3e-4, 1e-3), torch.float16: (3e-3, 5e-3), torch.bfloat16: (1e-2, 5e-2)}


@pytest.mark.parametrize("length", [1, 8, 130, 151, 1134, 4096])
@pytest.mark.parametrize("layout", ["sliced", "channel"])
@pytest.mark.parametrize("dtype", PEER_TOLERANCE, ids=str)
def test_meets_the_tolerances_of_causal_conv1d(
    length: int, layout: str, dtype: torch.dtype, device: str
) -> None:
    rtol, atol = PEER_TOLERANCE[dtype]
    inputs = make_conv_inputs(
        2,
        64,
        length,
        dtype=dtype,
        weight_dtype=torch.float32,
        layout=layout,
        initial_states=True,
        device=device,
    )
    got, wanted = results_of(conv, inputs), results_of(conv_ref, inputs)
    for name, value in got.items():
        weight_like = name in ("grad weight", "grad bias")
        r, a = (1e-3, 1e-3) if weight_like else (rtol, atol)
        torch.testing.assert_close(value, wanted[name], rtol=r, atol=a, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("dtype", PEER_TOLERANCE, ids=str)
@pytest.mark.parametrize("ring", [False, True], ids=["shift", "ring"])
@pytest.mark.parametrize("more", [0, 1, 9])
@pytest.mark.parametrize("steps", [1, 4, 5])
@pytest.mark.parametrize("width", [2, 3, 4])
def test_update_meets_the_tolerances_of_causal_conv1d(
    width: int, steps: int, more: int, ring: bool, dtype: torch.dtype, device: str
) -> None:
    rtol, atol = PEER_TOLERANCE[dtype]
    kept = width - 1 + more
    inputs = make_conv_update_inputs(
        6, 80, width, steps=steps, kept=kept, slots=20, ring=ring, dtype=dtype, device=device
    )
    inputs["conv_state_indices"][4] = -1
    wanted = inputs | {"conv_state": inputs["conv_state"].clone()}
    out = causal_conv1d_update(**inputs)
    torch.testing.assert_close(out, causal_conv1d_update_ref(**wanted), rtol=rtol, atol=atol)
    assert torch.equal(inputs["conv_state"], wanted["conv_state"])
    assert not out[4].any()


# Base calls: batch 2, channels 8, length 63 (update: one step), width 4; each row changes some arguments.
SENTENCES: dict[str, tuple[dict[str, Any], str]] = {
    "x rank": ({"x": torch.zeros(2, 8)}, "x must be [batch, channels, length] (3 dimensions), got [2, 8]"),
    "x dtype": ({"x": torch.zeros(2, 8, 63, dtype=torch.int32)}, "x must be float32, float16, bfloat16"),
    "x is no tensor": ({"x": [1.0]}, "x must be a torch.Tensor, got list"),
    "weight rank": ({"weight": torch.zeros(8, 1, 4)}, "weight must be [channels, width] (2 dimensions)"),
    "width 0": ({"weight": torch.zeros(8, 0)}, "weight must have a width of 1 to 64, got 0"),
    "width 65": ({"weight": torch.zeros(8, 65)}, "weight must have a width of 1 to 64, got 65"),
    "weight channels": (
        {"weight": torch.zeros(7, 4)},
        "weight must be [channels, width] = [8, 4], got [7, 4]",
    ),
    "bias shape": ({"bias": torch.zeros(7)}, "bias must be [channels] = [8], got [7]"),
    "initial_states shape": (
        {"initial_states": torch.zeros(2, 8, 4)},
        "initial_states must be [batch, channels, width - 1] = [2, 8, 3], got [2, 8, 4]",
    ),
    "initial_states dtype": (
        {"initial_states": torch.zeros(2, 8, 3).half()},
        "initial_states must be float32 like x, got float16",
    ),
    "final_states_out shape": (
        {"final_states_out": torch.zeros(2, 8, 4)},
        "final_states_out must be [batch, channels, width - 1] = [2, 8, 3], got [2, 8, 4]",
    ),
    "final_states_out dtype": (
        {"final_states_out": torch.zeros(2, 8, 3).half()},
        "final_states_out must be of torch.float32 like x, got torch.float16",
    ),
    "final_states_out is no tensor": ({"final_states_out": 1}, "final_states_out must be a torch.Tensor or"),
    "activation": ({"activation": "relu"}, 'activation must be None, "silu" or "swish", got \'relu\''),
}

UPDATE_SENTENCES: dict[str, tuple[dict[str, Any], str]] = {
    "x rank": ({"x": torch.zeros(8)}, "x must be [batch, channels] or [batch, channels, length], got [8]"),
    "conv_state rank": ({"conv_state": torch.zeros(2, 8)}, "conv_state must be [slots, channels, state"),
    "conv_state too short": ({"conv_state": torch.zeros(2, 8, 2)}, "at least width - 1 = 3, got [2, 8, 2]"),
    "conv_state channels": ({"conv_state": torch.zeros(2, 7, 3)}, "= [2, 8, 3], got [2, 7, 3]"),
    "conv_state slots": ({"conv_state": torch.zeros(3, 8, 3)}, "one slot per sequence of x, which is 2"),
    "conv_state dtype": ({"conv_state": torch.zeros(2, 8, 3).half()}, "conv_state must be float32 like x"),
    "indices dtype": (
        {"conv_state_indices": torch.zeros(2, dtype=torch.int64)},
        "conv_state_indices must be int32 (one slot per sequence), got int64",
    ),
    "indices shape": (
        {"conv_state_indices": torch.zeros(3, dtype=torch.int32)},
        "conv_state_indices must be [batch] = [2], got [3]",
    ),
    "cache_seqlens dtype": (
        {"cache_seqlens": torch.zeros(2)},
        "cache_seqlens must be int32 (steps seen by each sequence), got float32",
    ),
    "cache_seqlens shape": (
        {"cache_seqlens": torch.zeros(3, dtype=torch.int32)},
        "cache_seqlens must be [batch] = [2], got [3]",
    ),
    "activation": ({"activation": "gelu"}, 'activation must be None, "silu" or "swish", got \'gelu\''),
}


@pytest.mark.parametrize(("change", "sentence"), SENTENCES.values(), ids=SENTENCES)
def test_sentence(change: dict[str, Any], sentence: str, device: str) -> None:
    inputs = make_conv_inputs(device=device)
    inputs |= {name: v.to(device) if isinstance(v, torch.Tensor) else v for name, v in change.items()}
    with pytest.raises(TypeError if "torch.Tensor" in sentence else ValueError) as caught:
        causal_conv1d_fn(**inputs)
    assert str(caught.value).startswith("causal_conv1d_fn: ")
    assert sentence in str(caught.value)


@pytest.mark.parametrize(("change", "sentence"), UPDATE_SENTENCES.values(), ids=UPDATE_SENTENCES)
def test_update_sentence(change: dict[str, Any], sentence: str, device: str) -> None:
    inputs = make_conv_update_inputs(device=device)
    inputs |= {name: v.to(device) if isinstance(v, torch.Tensor) else v for name, v in change.items()}
    before = inputs["conv_state"].clone()
    with pytest.raises(TypeError if "torch.Tensor" in sentence else ValueError) as caught:
        causal_conv1d_update(**inputs)
    assert str(caught.value).startswith("causal_conv1d_update: ")
    assert sentence in str(caught.value)
    assert torch.equal(inputs["conv_state"], before)


def test_conv_state_that_overlaps_itself_is_refused(device: str) -> None:
    inputs = make_conv_update_inputs(device=device)
    one, buffer = inputs["conv_state"][:1], torch.zeros(100, device=device)
    for state in (one.expand(2, -1, -1), buffer.as_strided((2, 8, 3), (24, 2, 1))):
        with pytest.raises(
            ValueError,
            match="causal_conv1d_update: conv_state is updated in place, so its elements must not share",
        ):
            causal_conv1d_update(**inputs | {"conv_state": state})


def test_conv_state_that_overlaps_the_new_steps_is_refused(device: str) -> None:
    inputs = make_conv_update_inputs(device=device)
    buffer = torch.zeros(2, 8, 4, device=device)
    with pytest.raises(ValueError, match="conv_state must not share memory with x"):
        causal_conv1d_update(**inputs | {"x": buffer[..., 2], "conv_state": buffer[..., :3]})


def test_final_states_out_that_overlaps_itself_is_refused(device: str) -> None:
    inputs = make_conv_inputs(device=device)
    out = torch.zeros(1, 8, 3, device=device).expand(2, -1, -1)
    with pytest.raises(ValueError, match="causal_conv1d_fn: final_states_out is written, so its elements"):
        causal_conv1d_fn(**inputs, final_states_out=out)
