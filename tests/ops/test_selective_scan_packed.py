"""Packed sequences in selective_scan: by seq_idx and by cu_seqlens, with states, padding, every gradient."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mamba_aot import selective_scan_fn
from mamba_aot.reference import selective_scan_ref
from mamba_aot.testing import LAYOUTS, assert_matches_reference, make_scan_inputs, place, results_of

scan: Callable[..., Any] = functools.partial(selective_scan_fn, return_last_state=True)
scan_ref: Callable[..., Any] = functools.partial(selective_scan_ref, return_last_state=True)

# Lengths of sequences, negative ones are padding. 160 steps are a shape of the CUDA kernels for aligned rows;
# sequences begin inside chunks and tiles, at their edges, and reach over several of them.
ROWS_OF_160: dict[str, Any] = {"seq_idx": [[1, 2, 61, -5, 91], [-3, 61, 4, -20, 64, -8]]}
ONE_ROW_OF_160: dict[str, Any] = {"cu_seqlens": [0, 3, 1, 0, 60, 9, 70, 0, 17, 0]}
STATE: dict[str, Any] = {"initial_state": True}
COMPLEX: dict[str, Any] = {"is_complex": True}
BRAIN: dict[str, Any] = {"dtype": torch.bfloat16}
GENERAL: dict[str, Any] = {"decay_gate": True, "discretization": "zoh", "groups": 2}

PACKINGS = {"rows": ROWS_OF_160, "one row": ONE_ROW_OF_160}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "state": STATE,
    "state, channel-last": {**STATE, "layout": "channel", "dim": 24},
    "state, sliced": {**STATE, "layout": "sliced"},
    "state, strided": {**STATE, "layout": "strided"},
    "state 3, no options": {
        **STATE, "state": 3, "D": False, "z": False, "delta_bias": False, "delta_softplus": False
    },
    "gate, zoh, groups": {**STATE, **GENERAL},
    "complex": {**STATE, **COMPLEX},
    "complex, gate, zoh, groups": {**STATE, **COMPLEX, **GENERAL, "layout": "channel"},
    "interleaved": {**COMPLEX, "interleaved": True},
    "constant B, a delta per head": {**STATE, "constant": "B", "heads": 2},
    "complex, constant B and C": {**STATE, **COMPLEX, "constant": "BC"},
    "float16": {**STATE, "dtype": torch.float16},
    "bfloat16": {**STATE, **BRAIN},
    "bfloat16, channel-last": {**STATE, **BRAIN, "layout": "channel", "dim": 40},
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "rows of odd length": {"seq_idx": [[5, 60, -4], [69], [-69]], **STATE},
    "rows of one sequence": {"seq_idx": [[130], [130]], **STATE},
    "rows of one-step sequences": {"seq_idx": [[1] * 20], **STATE},
    "rows of 1200 steps": {"seq_idx": [[1023, 3, 174], [64, -960, 176]], **STATE, "dim": 3, "state": 4},
    "rows in spans": {"seq_idx": [[2100, 1, -40, 900, 1159]], **STATE, "dim": 40},
    "rows in spans, padding first": {"seq_idx": [[-700, 1500, 2000]], **STATE, "dim": 40, "state": 24},
    "rows in spans, bfloat16": {"seq_idx": [[64, 1536, -448, 2048, 8]], **STATE, "dim": 40, **BRAIN},
    "rows, no steps": {"seq_idx": [[], []], **STATE},
    "rows, no channels": {"seq_idx": [[3, -1]], "dim": 0},
    "rows, no states": {"seq_idx": [[3, -1]], "state": 0},
    "one row of one sequence": {"cu_seqlens": [77], **STATE},
    "one row of 1200 steps": {"cu_seqlens": [1023, 3, 174], **STATE, "dim": 3, "state": 4},
    "one row of 3200 steps": {"cu_seqlens": [1000, 0, 63, 65, 2072], **STATE, "dim": 40, "state": 24},
    "one row in spans": {"cu_seqlens": [2100, 1, 940, 0, 1159, 70], **STATE, "dim": 40},
    "one row in spans, aligned": {"cu_seqlens": [1024, 512, 2048, 640], **STATE, "dim": 40, "state": 24},
    "one row in spans, one sequence": {"cu_seqlens": [4224], **STATE, "dim": 40, **BRAIN},
    "one row in spans of several launches": {"cu_seqlens": [3, 5000, 64, 200, 4000, 0], "dim": 24},
    "one row of one-step sequences": {"cu_seqlens": [1] * 20, **STATE},
    "one row, no steps": {"cu_seqlens": [0, 0], **STATE},
    "one row, no sequences": {"cu_seqlens": [], **STATE},
    "one row, no channels": {"cu_seqlens": [3, 4], "dim": 0},
    "one row, no states": {"cu_seqlens": [3, 4], "state": 0},
}


@pytest.mark.parametrize("packing", PACKINGS.values(), ids=PACKINGS)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_matches_float64(case: dict[str, Any], packing: dict[str, Any], device: str) -> None:
    assert_matches_reference(scan, scan_ref, make_scan_inputs(**case, **packing, device=device))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_matches_float64_in_every_shape(shape: dict[str, Any], device: str) -> None:
    assert_matches_reference(scan, scan_ref, make_scan_inputs(**shape, device=device))


# Without states their backward walks them as one row where that is faster: all but those of three states,
# which are the general kernels', and the last, which are a whole round of programs on an H200.
STATELESS: dict[str, dict[str, Any]] = {
    "in spans": {"cu_seqlens": [2100, 1, 940, 0, 1159, 70], "dim": 40},
    "24 states, groups": {"cu_seqlens": [1000, 0, 63, 65, 72], "dim": 40, "state": 24, "groups": 2},
    "three states": {"cu_seqlens": [77, 400], "dim": 24, "state": 3},
    "bfloat16": {"cu_seqlens": [300, 1748], "dim": 40, **BRAIN},
    "empty ones": {"cu_seqlens": [0, 200, 0], "dim": 24},
    "many": {"cu_seqlens": [16] * 300, "dim": 32},
    "many more, bfloat16": {"cu_seqlens": [8] * 264, "dim": 32, **BRAIN},
}


@pytest.mark.parametrize("layout", ["seq", "channel"])
@pytest.mark.parametrize("shape", STATELESS.values(), ids=STATELESS)
def test_sequences_without_states_match_float64(shape: dict[str, Any], layout: str, device: str) -> None:
    inputs = make_scan_inputs(**shape, layout=layout, device=device)
    assert_matches_reference(selective_scan_fn, selective_scan_ref, inputs)


@pytest.mark.gpu
@pytest.mark.parametrize("layout", ["seq", "channel"])
def test_steps_that_ends_leave_out_are_padding(layout: str) -> None:
    inputs = make_scan_inputs(cu_seqlens=[130, 1, 500, 69], dim=40, layout=layout, device="cuda")
    dout = torch.randn_like(inputs["u"])
    along_time = ("u", "delta", "z", "B", "C")

    def around(value: Tensor) -> Tensor:
        nothing = torch.full((*value.shape[:-1], 60), torch.nan, device="cuda")
        return place(torch.cat([nothing, value, nothing[..., :4]], dim=-1), layout)

    def results_with(given: dict[str, Tensor], options: dict[str, Any], dout: Tensor) -> dict[str, Tensor]:
        leaves = {n: v.detach().requires_grad_() for n, v in given.items() if v.is_floating_point()}
        out = selective_scan_fn(**options | given | leaves)
        gradients = torch.autograd.grad(out, [*leaves.values()], dout)
        return {"out": out, **dict(zip(leaves, gradients, strict=True))}

    given = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
    options = {name: value for name, value in inputs.items() if name not in given}
    wanted = results_with(given, options, dout)
    poisoned = {n: around(v) if n in along_time else v for n, v in given.items()}
    poisoned["cu_seqlens"] = given["cu_seqlens"] + 60
    got = results_with(poisoned, options, around(dout))
    for name, value in got.items():
        if name == "out" or name in along_time:
            assert not value[..., :60].any(), name
            assert not value[..., 760:].any(), name
            value = value[..., 60:760]
        torch.testing.assert_close(value, wanted[name], rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("options", [{}, COMPLEX, GENERAL], ids=["plain", "complex", "general"])
def test_packed_is_one_by_one(options: dict[str, Any], layout: str, device: str) -> None:
    inputs = make_scan_inputs(**ONE_ROW_OF_160, **STATE, **options, layout=layout, device=device)

    def one_by_one(*, initial_state: Tensor, cu_seqlens: Tensor, **rest: Any) -> Any:
        along_time = {n: v for n, v in rest.items() if n in ("u", "delta", "B", "C", "z", "decay_gate")}
        outs, lasts = [], []
        for i, (start, stop) in enumerate(itertools.pairwise(cu_seqlens.tolist())):
            parts = {n: v if v is None else v[..., start:stop] for n, v in along_time.items()}
            out, last = scan(**rest | parts, initial_state=initial_state[i : i + 1])
            outs.append(out)
            lasts.append(last)
        return torch.cat(outs, dim=2), torch.cat(lasts)

    assert_matches_reference(one_by_one, scan_ref, inputs)
    got, wanted = results_of(scan, inputs), results_of(one_by_one, inputs)
    # On a GPU the parts may take another variant than the whole, whose sums the compiler contracts its way.
    for name in ("out 0", "out 1") if device == "cpu" else ():
        assert torch.equal(got[name], wanted[name]), name


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("options", [{}, COMPLEX], ids=["real", "complex"])
def test_both_spellings_are_one(options: dict[str, Any], layout: str, device: str) -> None:
    lengths = [3, 1, 60, 96]
    by_ends = make_scan_inputs(cu_seqlens=lengths, layout=layout, **options, device=device)
    by_index = {n: v for n, v in by_ends.items() if n != "cu_seqlens"}
    by_index["seq_idx"] = make_scan_inputs(seq_idx=[lengths], device=device)["seq_idx"]
    left, right = results_of(selective_scan_fn, by_ends), results_of(selective_scan_fn, by_index)
    # Their sums over sequences are put together in different orders, and of one launch or several.
    summed = {"grad A", "grad D", "grad delta_bias"}
    for name, value in left.items():
        if name in summed:
            torch.testing.assert_close(value, right[name], rtol=1e-5, atol=1e-5)
        else:
            assert torch.equal(value, right[name]), name


@pytest.mark.parametrize("layout", ["seq", "channel"])
@pytest.mark.parametrize("options", [{}, GENERAL], ids=["plain", "general"])
def test_one_sequence_is_the_unpacked_row(options: dict[str, Any], layout: str, device: str) -> None:
    inputs = make_scan_inputs(2, 8, 160, **STATE, layout=layout, **options, device=device)
    wanted = results_of(scan, inputs)
    index = torch.full((2, 160), 5, dtype=torch.int32, device=device)
    got = results_of(scan, {**inputs, "seq_idx": index})
    for name, value in wanted.items():
        if device == "cuda" and not options:
            # Packing takes other kernels than a plain scan, which add up in another order.
            torch.testing.assert_close(got[name], value, rtol=1e-5, atol=1e-5)
        else:
            assert torch.equal(got[name], value), name


def test_an_index_that_returns_is_another_sequence(device: str) -> None:
    inputs = make_scan_inputs(1, 8, 80, device=device)
    returning = torch.tensor([[3] * 34 + [1] * 12 + [-1, -2] + [3] * 32], dtype=torch.int32, device=device)
    distinct = torch.tensor([[0] * 34 + [1] * 12 + [-7, -7] + [2] * 32], dtype=torch.int32, device=device)
    left = results_of(scan, {**inputs, "seq_idx": returning})
    right = results_of(scan, {**inputs, "seq_idx": distinct})
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("options", [{}, COMPLEX, GENERAL], ids=["plain", "complex", "general"])
def test_padding_is_never_read(options: dict[str, Any], layout: str, device: str) -> None:
    inputs = make_scan_inputs(**ROWS_OF_160, **STATE, dim=16, layout=layout, **options, device=device)
    padding = inputs["seq_idx"] < 0
    clean = results_of(scan, inputs)

    def at_padding(value: Tensor) -> Tensor:
        return padding.view(2, *[1] * (value.dim() - 2), 160).expand_as(value)

    def poisoned_backward(**inputs: Any) -> Any:
        out, last_state = scan(**inputs)
        out.register_hook(lambda grad: grad.masked_fill(at_padding(grad), torch.nan))
        return out, last_state

    along_time = [n for n in ("u", "delta", "z", "B", "C", "decay_gate") if inputs[n] is not None]
    poisoned = dict(inputs)
    for name in along_time:
        poisoned[name] = place(inputs[name].masked_fill(at_padding(inputs[name]), torch.nan), layout)
    got = results_of(poisoned_backward, poisoned)
    for name, value in got.items():
        assert torch.equal(value, clean[name]), name
    for name in ["out 0", *(f"grad {name}" for name in along_time)]:
        assert not got[name][at_padding(got[name])].any(), name


@pytest.mark.parametrize("layout", ["seq", "channel"])
@pytest.mark.parametrize(
    "packing", [{"seq_idx": [[2100, 300, 1696]]}, {"cu_seqlens": [2100, 300, 1696]}], ids=["row", "one row"]
)
def test_a_sequence_that_is_no_number_stays_by_itself(
    packing: dict[str, Any], layout: str, device: str
) -> None:
    inputs = make_scan_inputs(**packing, **STATE, dim=16, layout=layout, device=device)
    clean = results_of(scan, inputs)
    for name in ("u", "delta"):
        poisoned = dict(inputs)
        value = inputs[name].clone(memory_format=torch.contiguous_format)
        value[..., 2100:2400] = torch.nan
        poisoned[name] = place(value, layout)
        got = results_of(scan, poisoned)
        assert got["out 0"][..., 2100:2400].isnan().all()
        for result in ("out 0", *(f"grad {n}" for n in ("u", "delta", "z", "B", "C"))):
            for steps in (slice(0, 2100), slice(2400, None)):
                assert torch.equal(got[result][..., steps], clean[result][..., steps]), (name, result)
        last = slice(None) if "seq_idx" in packing else [0, 2]
        assert torch.equal(got["out 1"][last], clean["out 1"][last]), name


def test_a_row_of_padding_has_no_state(device: str) -> None:
    inputs = make_scan_inputs(seq_idx=[[-70], [70]], **STATE, device=device)
    results = results_of(scan, inputs)
    assert not results["out 1"][0].any()
    assert not results["grad initial_state"][0].any()
    assert results["grad initial_state"][1].any()


@pytest.mark.parametrize("packing", PACKINGS.values(), ids=PACKINGS)
@pytest.mark.parametrize("layout", ["seq", "channel"])
def test_backward_repeats_itself_bit_for_bit(packing: dict[str, Any], layout: str, device: str) -> None:
    inputs = make_scan_inputs(**packing, **STATE, dim=48, layout=layout, device=device)
    first = results_of(scan, inputs)
    for _ in range(3):
        again = results_of(scan, inputs)
        assert all(torch.equal(again[name], value) for name, value in first.items())


@pytest.mark.parametrize(
    "packing", [{"seq_idx": [[2, -1, 67], [-2, 68]]}, {"cu_seqlens": [2, 0, 68]}], ids=["rows", "one row"]
)
@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("constant", ["", "BC"])
def test_gradcheck(constant: str, is_complex: bool, packing: dict[str, Any]) -> None:
    inputs = make_scan_inputs(
        dim=2, state=2, dtype=torch.float64, is_complex=is_complex, constant=constant, **packing, **STATE
    )
    names = [n for n, v in inputs.items() if isinstance(v, Tensor) and v.dtype != torch.int32]

    def call(*tensors: Tensor) -> Any:
        return scan(**inputs | dict(zip(names, tensors, strict=True)))

    leaves = [inputs[name].requires_grad_() for name in names]
    assert torch.autograd.gradcheck(call, leaves, fast_mode=True)


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
    "two rows": ({"cu_seqlens": int32(0, 63)}, "u must be [1, channels, total length] when cu_seqlens is"),
}
ONE_ROW_SENTENCES: dict[str, tuple[dict[str, Any], str]] = {
    "dtype": (
        {"cu_seqlens": torch.zeros(3, dtype=torch.int64)},
        "cu_seqlens must be int32 (where each sequence ends, from 0 on), got int64",
    ),
    "rank": ({"cu_seqlens": int32(0, 9)[None]}, "cu_seqlens must be [sequences + 1] (1 dimensions), got"),
    "nothing": ({"cu_seqlens": int32()}, "so hold at least the 0 it starts with, got [0]"),
    "state": (
        {"cu_seqlens": int32(0, 3, 9), "initial_state": torch.zeros(1, 8, 16)},
        "initial_state must be [sequences, channels, state] = [2, 8, 16], got [1, 8, 16]",
    ),
    "no tensor": ({"cu_seqlens": [0, 9]}, "cu_seqlens must be a torch.Tensor or None, got list"),
}
VALUE_SENTENCES: dict[str, tuple[Tensor, str]] = {
    "start": (int32(1, 9), "cu_seqlens must start at 0, got 1"),
    "order": (int32(0, 5, 4, 9), "cu_seqlens must not decrease, got 4 after 5 at position 2"),
    "end": (int32(0, 5), "cu_seqlens must end at the length of u, which is 9, got 5"),
    "past the end": (int32(0, 12, 9), "cu_seqlens must end at the length of u, which is 9, got 12"),
}


def assert_says(inputs: dict[str, Any], change: dict[str, Any], sentence: str, device: str) -> None:
    change = {name: v.to(device) if isinstance(v, Tensor) else v for name, v in change.items()}
    with pytest.raises(TypeError if "torch.Tensor" in sentence else ValueError) as caught:
        selective_scan_fn(**inputs | change)
    assert str(caught.value).startswith("selective_scan_fn: ")
    assert sentence in str(caught.value)


@pytest.mark.parametrize(("change", "sentence"), ROW_SENTENCES.values(), ids=ROW_SENTENCES)
def test_sentence_of_rows(change: dict[str, Any], sentence: str, device: str) -> None:
    assert_says(make_scan_inputs(device=device), change, sentence, device)


@pytest.mark.parametrize(("change", "sentence"), ONE_ROW_SENTENCES.values(), ids=ONE_ROW_SENTENCES)
def test_sentence_of_one_row(change: dict[str, Any], sentence: str, device: str) -> None:
    assert_says(make_scan_inputs(1, 8, 9, device=device), change, sentence, device)


@pytest.mark.parametrize(("ends", "sentence"), VALUE_SENTENCES.values(), ids=VALUE_SENTENCES)
def test_sentence_of_values(ends: Tensor, sentence: str, device: str) -> None:
    inputs = make_scan_inputs(1, 8, 9, device=device)
    assert_says(inputs, {"cu_seqlens": ends, "validate": device == "cuda"}, sentence, device)


@pytest.mark.gpu
@pytest.mark.parametrize("ends", [int32(2, 5, 9), int32(0, 5), int32(0, 7, 3, 9), int32(-5, 40, 9)], ids=str)
def test_wrong_values_on_a_gpu_stay_inside(ends: Tensor) -> None:
    inputs = make_scan_inputs(1, 8, 9, device="cuda", initial_state=True)
    inputs["initial_state"] = inputs["initial_state"].expand(ends.shape[0] - 1, -1, -1).contiguous()
    results = results_of(scan, {**inputs, "cu_seqlens": ends.cuda()})
    torch.cuda.synchronize()
    outside = torch.arange(9) >= int(ends.max())
    assert not results["out 0"][..., outside.cuda()].any()


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("packing", PACKINGS.values(), ids=PACKINGS)
def test_waits_for_no_device(packing: dict[str, Any]) -> None:
    inputs = make_scan_inputs(**packing, **STATE, device="cuda")
    results_of(scan, inputs)
    try:
        torch.cuda.set_sync_debug_mode("error")
        out, last_state = scan(**{n: v.requires_grad_() if n == "u" else v for n, v in inputs.items()})
        torch.autograd.backward([out, last_state], [torch.ones_like(out), torch.ones_like(last_state)])
    finally:
        torch.cuda.set_sync_debug_mode("default")
