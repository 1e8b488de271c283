"""Which states state_update reads and writes: slots, padding, accepted steps, results given."""

from typing import Any

import pytest
import torch
from steps import COMPLEX, HEADS, STEPS, TARGETS, assert_steps_match, dense, run, with_intermediate

from mamba_aot import selective_state_update
from mamba_aot.testing import make_state_update_inputs


def test_targets_leave_the_sources_as_they_were(device: str) -> None:
    for row in ({}, STEPS, COMPLEX):
        inputs = make_state_update_inputs(3, 24, slots=8, targets=True, device=device, **row)
        source, target = (inputs[n].tolist() for n in ("state_batch_indices", "dst_state_batch_indices"))
        before = inputs["state"].clone()
        out, state = run(inputs)
        for slot in range(8):
            assert torch.equal(state[slot], before[slot]) == (slot not in target)
        in_place, moved = run(inputs | {"dst_state_batch_indices": None})
        assert torch.equal(out, in_place)
        assert torch.equal(state[target], moved[source])


def test_a_target_of_padding_is_not_written(device: str) -> None:
    inputs = make_state_update_inputs(3, 24, slots=8, targets=True, device=device)
    inputs["dst_state_batch_indices"][1] = -1
    assert_steps_match(inputs)
    out, state = run(inputs)
    assert out[1].any()
    written = (state != inputs["state"]).flatten(1).any(1).sum()
    assert written == 2


@pytest.mark.parametrize("steps", [None, 2])
def test_padding_does_not_matter(steps: int | None, device: str) -> None:
    for pad in (-1, -7, 5):
        inputs = make_state_update_inputs(4, 24, slots=6, steps=steps, decay_gate=True, device=device)
        inputs["state_batch_indices"] = torch.tensor([2, pad, 0, pad], dtype=torch.int32, device=device)
        inputs["pad_slot_id"] = pad
        inputs = with_intermediate(inputs)
        out, state = run(inputs)
        kept = inputs["intermediate_states"].clone()
        for name in ("x", "dt", "B", "C", "z", "decay_gate"):
            inputs[name] = inputs[name].clone()
            inputs[name][1], inputs[name][3] = torch.nan, torch.nan
        inputs["state"] = inputs["state"].clone()
        inputs["state"][[1, 3, 4, 5]] = torch.nan
        inputs["intermediate_states"].zero_()
        poisoned, after = run(inputs)
        assert torch.equal(poisoned, out)
        assert not out[[1, 3]].any()
        assert torch.equal(after[[0, 2]], state[[0, 2]])
        assert after[[1, 3, 4, 5]].isnan().all()
        assert torch.equal(inputs["intermediate_states"], kept)
        assert not kept[[1, 3]].any()


@pytest.mark.parametrize("name", ["state_batch_indices", "dst_state_batch_indices"])
def test_slots_beyond_the_state_are_refused(name: str, device: str) -> None:
    inputs = make_state_update_inputs(2, 24, slots=5, targets=True, device=device)
    before = inputs["state"].clone()
    inputs[name][1] = 5
    sentence = rf"selective_state_update: {name} must be slots below 5 .*, got 5 at position 1"
    with pytest.raises(ValueError, match=sentence):
        selective_state_update(**inputs, validate=True)
    assert torch.equal(inputs["state"], before)
    if device == "cpu":
        with pytest.raises(ValueError, match=sentence):
            selective_state_update(**inputs)
        return
    # Without the check that waits for the device, they are padding.
    out = selective_state_update(**inputs)
    inputs[name][1] = -1
    assert torch.equal(out, selective_state_update(**inputs | {"state": before}))


@pytest.mark.parametrize("steps", [None, 3])
@pytest.mark.parametrize("heads", [None, 4])
def test_out_of_any_strides(steps: int | None, heads: int | None, device: str) -> None:
    inputs = make_state_update_inputs(2, 8, steps=steps, heads=heads, device=device)
    wanted, wanted_state = run(inputs)
    wide = torch.full((*wanted.shape, 3), 7.0, device=device)
    out = wide[..., 1]
    state = inputs["state"].clone()
    assert selective_state_update(**inputs | {"state": state}, out=out) is out
    torch.testing.assert_close(out, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state, wanted_state, rtol=1e-5, atol=1e-5)
    assert (wide[..., ::2] == 7).all()


@pytest.mark.parametrize("row", [{}, HEADS, COMPLEX, {"state": 256}, TARGETS], ids=str)
def test_accepted_steps_are_those_the_state_takes(row: dict[str, Any], device: str) -> None:
    inputs = make_state_update_inputs(3, 24, steps=3, device=device, **row)
    inputs["accepted_steps"] = torch.tensor([2, 0, 3], dtype=torch.int32, device=device)
    assert_steps_match(inputs)
    assert_steps_match(dense(inputs))
    assert torch.equal(run(inputs)[0], run(inputs | {"accepted_steps": None})[0])


def test_the_state_stays_when_its_update_is_disabled(device: str) -> None:
    for row in ({}, STEPS, COMPLEX, TARGETS):
        inputs = with_intermediate(make_state_update_inputs(3, 24, device=device, **row))
        out, state = run(inputs)
        last = inputs["intermediate_states"][:, -1].clone()
        inputs["intermediate_states"].zero_()
        same_out, same_state = run(inputs | {"disable_state_update": True})
        assert torch.equal(same_out, out)
        assert torch.equal(same_state, inputs["state"])
        slots = inputs.get("dst_state_batch_indices")
        assert torch.equal(last, state if slots is None else state[slots.long()])
        assert torch.equal(inputs["intermediate_states"][:, -1], last)
