"""Packed sequences in causal_conv1d: by seq_idx and by cu_seqlens, with states, padding, every gradient."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mamba_aot import causal_conv1d_fn, causal_conv1d_update, causal_conv1d_varlen_states
from mamba_aot.reference import causal_conv1d_ref, causal_conv1d_varlen_states_ref
from mamba_aot.testing import LAYOUTS, assert_matches_reference, make_conv_inputs, place, results_of

conv: Callable[..., Any] = functools.partial(causal_conv1d_fn, return_final_states=True)
conv_ref: Callable[..., Any] = functools.partial(causal_conv1d_ref, return_final_states=True)

# Lengths of sequences, negative ones are padding. 64 steps are a shape of the aligned CUDA kernels.
ROWS_OF_64: dict[str, Any] = {"seq_idx": [[1, 2, 33, -5, 23], [-3, 7, 4, -2, 48]]}
ONE_ROW_OF_64: dict[str, Any] = {"cu_seqlens": [0, 3, 1, 0, 20, 9, 2, 0, 29, 0]}
STATES: dict[str, Any] = {"initial_states": True}
BRAIN: dict[str, Any] = {"dtype": torch.bfloat16}

ROWS: dict[str, dict[str, Any]] = {
    "rows": ROWS_OF_64,
    "rows, states": {**ROWS_OF_64, **STATES},
    "rows, states, channel-last": {**ROWS_OF_64, **STATES, "layout": "channel", "dim": 48},
    "rows, states, sliced": {**ROWS_OF_64, **STATES, "layout": "sliced"},
    "rows, states, strided": {**ROWS_OF_64, **STATES, "layout": "strided"},
    "rows, width 1": {**ROWS_OF_64, **STATES, "width": 1},
    "rows, width 2": {**ROWS_OF_64, **STATES, "width": 2},
    "rows, width 3": {**ROWS_OF_64, **STATES, "width": 3, "layout": "channel", "dim": 16},
    "rows, width 9": {**ROWS_OF_64, **STATES, "width": 9},
    "rows, no bias, no activation": {**ROWS_OF_64, "bias": False, "activation": None},
    "rows of odd length": {"seq_idx": [[5, 60, -4], [69], [-69]], **STATES},
    "rows of one sequence": {"seq_idx": [[130], [130]], **STATES},
    "rows of one-step sequences": {"seq_idx": [[1] * 20], **STATES},
    "rows of 1200 steps": {"seq_idx": [[1023, 3, 174], [64, -960, 176]], **STATES, "dim": 3},
    "rows, float16": {**ROWS_OF_64, **STATES, "dtype": torch.float16},
    "rows, bfloat16": {**ROWS_OF_64, **STATES, **BRAIN},
    "rows, bfloat16, channel-last": {**ROWS_OF_64, **STATES, **BRAIN, "layout": "channel", "dim": 80},
    "rows, no steps": {"seq_idx": [[], []], **STATES},
    "one row": ONE_ROW_OF_64,
    "one row, states": {**ONE_ROW_OF_64, **STATES},
    "one row, states, channel-last": {**ONE_ROW_OF_64, **STATES, "layout": "channel", "dim": 48},
    "one row, states, strided": {**ONE_ROW_OF_64, **STATES, "layout": "strided"},
    "one row, width 1": {**ONE_ROW_OF_64, **STATES, "width": 1},
    "one row, width 2": {**ONE_ROW_OF_64, **STATES, "width": 2, "layout": "channel", "dim": 16},
    "one row, width 9": {**ONE_ROW_OF_64, **STATES, "width": 9},
    "one row, width 64": {**ONE_ROW_OF_64, **STATES, "width": 64},
    "one row of one sequence": {"cu_seqlens": [77], **STATES},
    "one row of 1200 steps": {"cu_seqlens": [1023, 3, 174], **STATES, "dim": 3},
    "one row, float16": {**ONE_ROW_OF_64, **STATES, "dtype": torch.float16},
    "one row, bfloat16": {**ONE_ROW_OF_64, **STATES, **BRAIN},
    "one row, bfloat16, channel-last": {**ONE_ROW_OF_64, **STATES, **BRAIN, "layout": "channel", "dim": 80},
    "one row, no steps": {"cu_seqlens": [0, 0], **STATES},
    "one row, no sequences": {"cu_seqlens": [], **STATES},
    "one row, no channels": {"cu_seqlens": [3, 4], "dim": 0},
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_matches_float64(row: dict[str, Any], device: str) -> None:
    assert_matches_reference(conv, conv_ref, make_conv_inputs(**row, device=device))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("width", [2, 4, 6])
def test_packed_is_one_by_one(width: int, layout: str, device: str) -> None:
    inputs = make_conv_inputs(**ONE_ROW_OF_64, **STATES, layout=layout, width=width, device=device)

    def one_by_one(*, x: Tensor, initial_states: Tensor, cu_seqlens: Tensor, **rest: Any) -> Any:
        outs, finals = [], []
        for i, (start, stop) in enumerate(itertools.pairwise(cu_seqlens.tolist())):
            states = initial_states[i : i + 1]
            out, final = conv(x=x[..., start:stop], initial_states=states, **rest)
            outs.append(out)
            finals.append(final)
        return torch.cat(outs, dim=2), torch.cat(finals)

    got, wanted = results_of(conv, inputs), results_of(one_by_one, inputs)
    # On a GPU the parts may take another variant than the whole, whose sums the compiler contracts its way.
    for name in ("out 0", "out 1") if device == "cpu" else ("out 1",):
        assert torch.equal(got[name], wanted[name]), name
    assert_matches_reference(one_by_one, conv_ref, inputs)


@pytest.mark.parametrize("layout", ["seq", "channel"])
@pytest.mark.parametrize("packing", [{"length": 16}, {"seq_idx": [[3, -2, 11]]}], ids=["plain", "packed"])
def test_more_than_65536_channels(packing: dict[str, Any], layout: str, device: str) -> None:
    options: dict[str, Any] = {"batch": 1, "dim": 65536 + 48, "layout": layout, **packing, **STATES, **BRAIN}
    assert_matches_reference(conv, conv_ref, make_conv_inputs(**options, device=device))


@pytest.mark.parametrize("width", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_filter_reaches_no_further_than_its_width(layout: str, width: int, device: str) -> None:
    inputs = make_conv_inputs(1, 16, 48, width, layout=layout, device=device)
    inputs["x"][..., 20] = torch.nan
    results = results_of(causal_conv1d_fn, inputs)
    met, met_too = (results[name][0, 0].isnan().nonzero().flatten() for name in ("out 0", "grad x"))
    assert met.tolist() == list(range(20, 20 + width))
    assert met_too.tolist() == list(range(20 - width + 1, 20 + width))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_both_spellings_are_one(layout: str, device: str) -> None:
    lengths = [3, 1, 20, 40]
    by_ends = make_conv_inputs(cu_seqlens=lengths, layout=layout, device=device)
    by_index = {n: v for n, v in by_ends.items() if n != "cu_seqlens"}
    by_index["seq_idx"] = make_conv_inputs(seq_idx=[lengths], device=device)["seq_idx"]
    left, right = results_of(causal_conv1d_fn, by_ends), results_of(causal_conv1d_fn, by_index)
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("width", [1, 4, 7])
@pytest.mark.parametrize("layout", ["seq", "channel"])
def test_one_sequence_is_the_unpacked_row(layout: str, width: int, device: str) -> None:
    inputs = make_conv_inputs(2, 16, 96, width, initial_states=True, layout=layout, device=device)
    index = torch.full((2, 96), 5, dtype=torch.int32, device=device)
    assert_matches_reference(conv, conv_ref, {**inputs, "seq_idx": index})
    assert torch.equal(conv(**inputs, seq_idx=index)[1], conv(**inputs)[1])


def test_an_index_that_returns_is_another_sequence(device: str) -> None:
    inputs = make_conv_inputs(1, 8, 12, device=device)
    returning = torch.tensor([[3] * 4 + [1] * 2 + [3] * 6], dtype=torch.int32, device=device)
    distinct = torch.tensor([[0] * 4 + [1] * 2 + [2] * 6], dtype=torch.int32, device=device)
    left = results_of(conv, {**inputs, "seq_idx": returning})
    right = results_of(conv, {**inputs, "seq_idx": distinct})
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("width", [3, 4, 6])
def test_padding_is_never_read(width: int, layout: str, device: str) -> None:
    inputs = make_conv_inputs(**ROWS_OF_64, **STATES, dim=16, width=width, layout=layout, device=device)
    padding = (inputs["seq_idx"] < 0)[:, None, :].expand_as(inputs["x"])
    clean = results_of(conv, inputs)

    def poisoned_backward(**inputs: Any) -> Any:
        out, final_states = conv(**inputs)
        out.register_hook(lambda grad: grad.masked_fill(padding, torch.nan))
        return out, final_states

    poisoned = {**inputs, "x": place(inputs["x"].masked_fill(padding, torch.nan), layout)}
    got = results_of(poisoned_backward, poisoned)
    for name, value in got.items():
        assert torch.equal(value, clean[name]), name
    assert not got["out 0"][padding].any()
    assert not got["grad x"][padding].any()


def test_a_strided_index_is_read_by_its_strides(device: str) -> None:
    inputs = make_conv_inputs(**ROWS_OF_64, device=device)
    strided = inputs["seq_idx"].repeat_interleave(2, dim=1)[:, ::2]
    assert strided.stride(1) == 2
    wanted = results_of(conv, inputs)
    assert all(torch.equal(v, wanted[n]) for n, v in results_of(conv, {**inputs, "seq_idx": strided}).items())


@pytest.mark.parametrize("packing", [ROWS_OF_64, ONE_ROW_OF_64], ids=["rows", "one row"])
@pytest.mark.parametrize("layout", ["seq", "channel"])
def test_backward_repeats_itself_bit_for_bit(packing: dict[str, Any], layout: str, device: str) -> None:
    inputs = make_conv_inputs(**packing, **STATES, dim=80, layout=layout, device=device)
    first = results_of(conv, inputs)
    for _ in range(3):
        again = results_of(conv, inputs)
        assert all(torch.equal(again[name], value) for name, value in first.items())


@pytest.mark.parametrize("packing", [{"seq_idx": [[2, -1, 4], [-2, 5]]}, {"cu_seqlens": [2, 0, 5]}], ids=str)
@pytest.mark.parametrize("width", [1, 3, 4, 6])
def test_gradcheck(width: int, packing: dict[str, Any]) -> None:
    inputs = make_conv_inputs(dim=2, width=width, dtype=torch.float64, **packing, **STATES)
    names = [n for n, v in inputs.items() if isinstance(v, Tensor) and v.is_floating_point()]

    def call(*tensors: Tensor) -> Any:
        return conv(**inputs | dict(zip(names, tensors, strict=True)))

    assert torch.autograd.gradcheck(call, [inputs[name].requires_grad_() for name in names])


# causal-conv1d's tolerances, (rtol, atol): tests/test_causal_conv1d.py, test_causal_conv1d_varlen.
PEER_TOLERANCE = {torch.float32: (3e-4, 1e-3), torch.float16: (3e-3, 5e-3), torch.bfloat16: (1e-2, 5e-2)}


@pytest.mark.parametrize("length", [8, 130, 151, 1134, 2048])
@pytest.mark.parametrize("width", [2, 4])
@pytest.mark.parametrize("dtype", PEER_TOLERANCE, ids=str)
def test_meets_the_tolerances_of_causal_conv1d(
    length: int, width: int, dtype: torch.dtype, device: str
) -> None:
    rtol, atol = PEER_TOLERANCE[dtype]
    third = length // 3
    rows = [[third, length - third], [length], [1, third, -third, length - 1 - 2 * third]]
    options: dict[str, Any] = {"dtype": dtype, "weight_dtype": torch.float32, "layout": "channel"}
    inputs = make_conv_inputs(dim=64, width=width, seq_idx=rows, **options, device=device)
    got, wanted = results_of(conv, inputs), results_of(conv_ref, inputs)
    for name, value in got.items():
        r, a = (1e-3, 1e-3) if name in ("grad weight", "grad bias") else (rtol, atol)
        torch.testing.assert_close(value, wanted[name], rtol=r, atol=a, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("lengths", [[5, 0, 2, 9], [], [0]], ids=str)
@pytest.mark.parametrize("count", [0, 1, 3, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_varlen_states_are_the_last_steps(
    lengths: list[int], count: int, dtype: torch.dtype, device: str
) -> None:
    ends = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=device)
    x = torch.randn(sum(lengths), 6, device=device).to(dtype)
    for values in (x, x.T.contiguous().T):
        got = causal_conv1d_varlen_states(values, ends, count)
        assert torch.equal(got, causal_conv1d_varlen_states_ref(values, ends, count))
        assert got.is_contiguous()


def test_varlen_states_are_of_any_dtype_and_of_any_integer_of_steps() -> None:
    x, ends = torch.randn(7, 6) > 0, torch.tensor([0, 2, 7], dtype=torch.int32)
    got = causal_conv1d_varlen_states(x, ends, x.numpy().sum(dtype="int64") * 0 + 3)
    assert got.dtype == torch.bool
    assert torch.equal(got, causal_conv1d_varlen_states_ref(x.long(), ends, 3).bool())

    class Ends(torch.nn.Module):
        def forward(self, x: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
            return causal_conv1d_varlen_states(x, ends, x.shape[1])

    length = torch.export.Dim("width", min=2)
    program = torch.export.export(Ends(), (torch.randn(7, 6), ends), dynamic_shapes=({1: length}, None))
    x = torch.randn(7, 4)
    assert torch.equal(program.module()(x, ends), causal_conv1d_varlen_states_ref(x, ends, 4))


def test_varlen_states_continue_in_the_update(device: str) -> None:
    inputs = make_conv_inputs(cu_seqlens=[5, 1, 9], device=device)
    states = causal_conv1d_varlen_states(inputs["x"][0].T, inputs["cu_seqlens"], 3)
    assert torch.equal(states, conv(**inputs)[1])
    filters = {name: inputs[name] for name in ("weight", "bias", "activation")}
    new = torch.randn(3, 8, 1, device=device)
    ends = [0, 5, 6, 15]
    whole = [
        causal_conv1d_fn(torch.cat([inputs["x"][..., a:b], new[i : i + 1]], dim=2), **filters)[..., -1]
        for i, (a, b) in enumerate(itertools.pairwise(ends))
    ]
    step = causal_conv1d_update(new, states, **filters)
    torch.testing.assert_close(step[..., 0], torch.cat(whole))


def int32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


ROW_SENTENCES: dict[str, tuple[dict[str, Any], str]] = {
    "seq_idx dtype": (
        {"seq_idx": torch.zeros(2, 63)},
        "seq_idx must be int32 (one sequence index per step), got float32",
    ),
    "seq_idx shape": (
        {"seq_idx": torch.zeros(2, 62, dtype=torch.int32)},
        "seq_idx must be [batch, length] = [2, 63], got [2, 62]",
    ),
    "both": (
        {"seq_idx": torch.zeros(2, 63, dtype=torch.int32), "cu_seqlens": int32(0, 63)},
        "seq_idx must be None when cu_seqlens is given, got both",
    ),
    "two rows": ({"cu_seqlens": int32(0, 63)}, "x must be [1, channels, total length] when cu_seqlens is"),
}
ONE_ROW_SENTENCES: dict[str, tuple[dict[str, Any], str]] = {
    "dtype": (
        {"cu_seqlens": torch.zeros(3, dtype=torch.int64)},
        "cu_seqlens must be int32 (where each sequence ends, from 0 on), got int64",
    ),
    "rank": ({"cu_seqlens": int32(0, 9)[None]}, "cu_seqlens must be [sequences + 1] (1 dimensions), got"),
    "nothing": ({"cu_seqlens": int32()}, "so hold at least the 0 it starts with, got [0]"),
    "states": (
        {"cu_seqlens": int32(0, 3, 9), "initial_states": torch.zeros(1, 8, 3)},
        "initial_states must be [sequences, channels, width - 1] = [2, 8, 3], got [1, 8, 3]",
    ),
    "no tensor": ({"cu_seqlens": [0, 9]}, "cu_seqlens must be a torch.Tensor or None, got list"),
}
VALUE_SENTENCES: dict[str, tuple[Tensor, str]] = {
    "start": (int32(1, 9), "cu_seqlens must start at 0, got 1"),
    "order": (int32(0, 5, 4, 9), "cu_seqlens must not decrease, got 4 after 5 at position 2"),
    "end": (int32(0, 5), "cu_seqlens must end at the length of x, which is 9, got 5"),
}


def assert_says(inputs: dict[str, Any], change: dict[str, Any], sentence: str, device: str) -> None:
    change = {name: v.to(device) if isinstance(v, Tensor) else v for name, v in change.items()}
    with pytest.raises(TypeError if "torch.Tensor" in sentence else ValueError) as caught:
        causal_conv1d_fn(**inputs | change)
    assert str(caught.value).startswith("causal_conv1d_fn: ")
    assert sentence in str(caught.value)


@pytest.mark.parametrize(("change", "sentence"), ROW_SENTENCES.values(), ids=ROW_SENTENCES)
def test_sentence_of_rows(change: dict[str, Any], sentence: str, device: str) -> None:
    assert_says(make_conv_inputs(device=device), change, sentence, device)


@pytest.mark.parametrize(("change", "sentence"), ONE_ROW_SENTENCES.values(), ids=ONE_ROW_SENTENCES)
def test_sentence_of_one_row(change: dict[str, Any], sentence: str, device: str) -> None:
    assert_says(make_conv_inputs(1, 8, 9, device=device), change, sentence, device)


@pytest.mark.parametrize(("ends", "sentence"), VALUE_SENTENCES.values(), ids=VALUE_SENTENCES)
def test_sentence_of_values(ends: Tensor, sentence: str, device: str) -> None:
    inputs = make_conv_inputs(1, 8, 9, device=device)
    assert_says(inputs, {"cu_seqlens": ends, "validate": device == "cuda"}, sentence, device)


@pytest.mark.gpu
@pytest.mark.parametrize("ends", [int32(2, 5, 9), int32(0, 5), int32(0, 7, 3, 9), int32(-5, 40, 9)], ids=str)
def test_wrong_values_on_a_gpu_stay_inside(ends: Tensor) -> None:
    inputs = make_conv_inputs(1, 8, 9, device="cuda", initial_states=True)
    inputs["initial_states"] = inputs["initial_states"].expand(ends.shape[0] - 1, -1, -1).contiguous()
    results_of(conv, {**inputs, "cu_seqlens": ends.cuda()})
    torch.cuda.synchronize()


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("packing", [ROWS_OF_64, ONE_ROW_OF_64], ids=["rows", "one row"])
def test_waits_for_no_device(packing: dict[str, Any]) -> None:
    inputs = make_conv_inputs(**packing, **STATES, device="cuda")
    results_of(conv, inputs)
    try:
        torch.cuda.set_sync_debug_mode("error")
        out, final_states = conv(**{n: v.requires_grad_() if n == "x" else v for n, v in inputs.items()})
        torch.autograd.backward([out, final_states], [torch.ones_like(out), torch.ones_like(final_states)])
    finally:
        torch.cuda.set_sync_debug_mode("default")


VARLEN_SENTENCES: dict[str, tuple[dict[str, Any], str]] = {
    "x rank": ({"x": torch.zeros(1, 9, 6)}, "x must be [length, channels] (2 dimensions), got [1, 9, 6]"),
    "dtype": ({"cu_seqlens": torch.zeros(2)}, "cu_seqlens must be int32, got float32"),
    "rank": ({"cu_seqlens": int32(0, 9)[None]}, "cu_seqlens must be [sequences + 1], got [1, 2]"),
    "state_len bool": ({"state_len": True}, "state_len must be an integer of at least 0, got True"),
    "state_len": ({"state_len": -1}, "state_len must be an integer of at least 0, got -1"),
    "no tensor": ({"x": 3}, "x must be a torch.Tensor, got int"),
}


@pytest.mark.parametrize(("change", "sentence"), VARLEN_SENTENCES.values(), ids=VARLEN_SENTENCES)
def test_varlen_sentence(change: dict[str, Any], sentence: str) -> None:
    inputs: dict[str, Any] = {"x": torch.zeros(9, 6), "cu_seqlens": int32(0, 9), "state_len": 3, **change}
    with pytest.raises(TypeError if "torch.Tensor" in sentence else ValueError) as caught:
        causal_conv1d_varlen_states(**inputs)
    assert str(caught.value).startswith("causal_conv1d_varlen_states: ")
    assert sentence in str(caught.value)
