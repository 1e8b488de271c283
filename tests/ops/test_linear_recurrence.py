"""linear_recurrence against float64: shapes, memory orders, dtypes, both directions; its laws and errors."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mamba_aot import linear_recurrence
from mamba_aot.reference import linear_recurrence_ref
from mamba_aot.testing import LAYOUTS, assert_matches_reference, place, results_of
from mamba_aot.testing import make_linear_recurrence_inputs as make_inputs

recur: Callable[..., Any] = functools.partial(linear_recurrence, return_last_state=True)
recur_ref: Callable[..., Any] = functools.partial(linear_recurrence_ref, return_last_state=True)

HALF = {"dtype": torch.float16}
BRAIN = {"dtype": torch.bfloat16}
COMPLEX = {"dtype": torch.complex64}
DTYPES = {"float32": {}, "float16": HALF, "bfloat16": BRAIN, "complex64": COMPLEX}

# A shape, and what differs from the base row.
ROWS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "base": ((2, 8, 63), {}),
    "one step": ((2, 8, 1), {}),
    "one chunk": ((2, 8, 64), {}),
    "two chunks and a step": ((2, 24, 129), {}),
    "whole tiles": ((2, 8, 512), {}),
    "long": ((3, 1000), {}),
    "one row": ((300,), {}),
    "many rows": ((2, 700, 16), {}),
    "more rows than a small grid takes": ((16400, 16), {}),
    "channel-last": ((2, 24, 129), {"layout": "channel"}),
    "channel-last, one step": ((2, 24, 1), {"layout": "channel"}),
    "sliced": ((2, 24, 129), {"layout": "sliced"}),
    "strided": ((2, 24, 129), {"layout": "strided"}),
    "four dimensions": ((2, 3, 5, 70), {}),
    "four dimensions, time second": ((2, 6, 5, 70), {"layout": "channel"}),
    "four dimensions, sliced": ((2, 3, 5, 70), {"layout": "sliced"}),
    "no rows": ((0, 8, 63), {}),
    "no channels": ((2, 0, 63), {}),
    "no steps": ((2, 8, 0), {}),
}


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("kind", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_matches_float64(
    row: tuple[tuple[int, ...], dict[str, Any]], kind: dict[str, Any], reverse: bool, device: str
) -> None:
    shape, options = row
    for initial_state in (True, False):
        inputs = make_inputs(
            *shape, **options, **kind, initial_state=initial_state, reverse=reverse, device=device
        )
        assert_matches_reference(recur, recur_ref, inputs)


@pytest.mark.parametrize("kind", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["a", "b"])
def test_a_and_b_have_their_own_memory_orders(
    name: str, layout: str, kind: dict[str, Any], device: str
) -> None:
    inputs = make_inputs(2, 24, 80, **kind, initial_state=True, device=device)
    assert_matches_reference(recur, recur_ref, inputs | {name: place(inputs[name], layout)})


@pytest.mark.parametrize("kind", DTYPES.values(), ids=DTYPES)
def test_expanded_inputs(kind: dict[str, Any], device: str) -> None:
    inputs = make_inputs(3, 24, 80, **kind, initial_state=True, device=device)
    for name, index in (
        ("a", (..., slice(1))),
        ("a", (slice(1),)),
        ("b", (slice(1),)),
        ("b", (..., slice(1))),
    ):
        expanded = inputs[name][index].expand(3, 24, 80)
        assert_matches_reference(recur, recur_ref, inputs | {name: expanded})


@pytest.mark.parametrize("kind", DTYPES.values(), ids=DTYPES)
def test_gradients_arrive_in_any_memory_order(kind: dict[str, Any], device: str) -> None:
    def transposed(function: Callable[..., Any], inputs: dict[str, Any]) -> Tensor:
        return function(**inputs)[0].transpose(1, 2)

    def summed(function: Callable[..., Any], inputs: dict[str, Any]) -> Tensor:
        return function(**inputs)[0].sum() + function(**inputs)[1].sum()

    def last_state(function: Callable[..., Any], inputs: dict[str, Any]) -> Tensor:
        return function(**inputs)[1]

    for layout in ("seq", "channel"):
        inputs = make_inputs(2, 8, 80, **kind, initial_state=True, layout=layout, device=device)
        for form in (transposed, summed, last_state):
            assert_matches_reference(
                lambda form=form, **inputs: form(recur, inputs),
                lambda form=form, **inputs: form(recur_ref, inputs),
                inputs,
            )


def test_gradients_of_a_lazy_conjugate(device: str) -> None:
    inputs = make_inputs(2, 8, 70, **COMPLEX, device=device)
    assert_matches_reference(
        lambda **inputs: linear_recurrence(**inputs | {"a": inputs["a"].conj()}).conj(),
        lambda **inputs: linear_recurrence_ref(**inputs | {"a": inputs["a"].conj()}).conj(),
        inputs,
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_gradcheck(dtype: torch.dtype, reverse: bool) -> None:
    inputs = make_inputs(2, 3, 131, dtype=dtype, initial_state=True)
    leaves = [inputs[name].requires_grad_() for name in ("a", "b", "initial_state")]
    call = functools.partial(recur, reverse=reverse)
    assert torch.autograd.gradcheck(call, leaves, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_float64_equals_the_reference(dtype: torch.dtype) -> None:
    inputs = make_inputs(2, 24, 300, dtype=dtype, initial_state=True)
    got, wanted = results_of(recur, inputs), results_of(recur_ref, inputs)
    torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-11)


def test_second_derivative_is_refused(device: str) -> None:
    inputs = make_inputs(device=device)
    b = inputs["b"].requires_grad_()
    (db,) = torch.autograd.grad(linear_recurrence(**inputs).square().sum(), b, create_graph=True)
    with pytest.raises(RuntimeError, match="is taken once and in reverse"):
        db.sum().backward()


each_dtype = pytest.mark.parametrize("kind", DTYPES.values(), ids=DTYPES)
each_layout = pytest.mark.parametrize("layout", LAYOUTS)


@each_dtype
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("cuts", [(64,), (1, 2, 129)], ids=str)
def test_segments_are_the_whole(
    cuts: tuple[int, ...], reverse: bool, kind: dict[str, Any], device: str
) -> None:
    def in_segments(*, initial_state: Tensor, **inputs: Any) -> tuple[Tensor, Tensor]:
        outs, state = [], initial_state
        spans = list(zip((0, *cuts), (*cuts, 130), strict=True))
        for start, stop in reversed(spans) if reverse else spans:
            part = {name: inputs[name][..., start:stop] for name in ("a", "b")}
            out, state = recur(**part, initial_state=state, reverse=reverse)
            outs.append(out)
        return torch.cat(outs[::-1] if reverse else outs, dim=-1), state

    inputs = make_inputs(2, 8, 130, **kind, initial_state=True, reverse=reverse, device=device)
    assert_matches_reference(in_segments, recur_ref, inputs)


@each_dtype
@each_layout
def test_reverse_is_a_flip(layout: str, kind: dict[str, Any], device: str) -> None:
    inputs = make_inputs(2, 8, 130, **kind, layout=layout, initial_state=True, device=device)

    def flipped(*, a: Tensor, b: Tensor, **inputs: Any) -> tuple[Tensor, Tensor]:
        out, state = recur(a=a.flip(-1), b=b.flip(-1), **inputs | {"reverse": True})
        return out.flip(-1), state

    got, wanted = results_of(flipped, inputs), results_of(recur, inputs)
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)


@each_dtype
@each_layout
def test_the_future_changes_nothing_before_it(layout: str, kind: dict[str, Any], device: str) -> None:
    inputs = make_inputs(2, 8, 130, **kind, layout=layout, device=device)
    before = linear_recurrence(**inputs).clone()
    inputs["a"][..., 77:], inputs["b"][..., 77:] = torch.nan, torch.nan
    after = linear_recurrence(**inputs)
    assert torch.equal(after[..., :77], before[..., :77])
    assert after[..., 77:].isnan().all()


@each_dtype
def test_order_of_rows_does_not_matter(kind: dict[str, Any], device: str) -> None:
    inputs = make_inputs(5, 20, 130, **kind, initial_state=True, device=device)
    order = torch.tensor([3, 0, 4, 1, 2], device=device)
    shuffled = {n: t[order] if isinstance(t, Tensor) else t for n, t in inputs.items()}
    for straight, mixed in zip(recur(**inputs), recur(**shuffled), strict=True):
        assert torch.equal(straight[order], mixed)


@each_dtype
@each_layout
def test_repeats_itself_bit_for_bit(layout: str, kind: dict[str, Any], device: str) -> None:
    inputs = make_inputs(3, 40, 130, **kind, initial_state=True, layout=layout, device=device)
    first = results_of(recur, inputs)
    for _ in range(3):
        again = results_of(recur, inputs)
        assert all(torch.equal(again[name], first[name]) for name in first)
    without = results_of(recur, inputs, backward=False)
    assert all(torch.equal(without[name], first[name]) for name in without)


def test_number_of_threads_does_not_matter() -> None:
    inputs = make_inputs(3, 40, 130, initial_state=True)
    threads = torch.get_num_threads()
    try:
        results = []
        for many in (1, 2, 3):
            torch.set_num_threads(many)
            results.append(results_of(recur, inputs))
        assert all(torch.equal(r[name], results[0][name]) for r in results for name in r)
    finally:
        torch.set_num_threads(threads)


@each_layout
@each_dtype
def test_memory_order_follows_the_input(kind: dict[str, Any], layout: str, device: str) -> None:
    inputs = make_inputs(2, 8, 130, **kind, layout=layout, device=device)
    results = results_of(recur, inputs)
    expected = (1040, 1, 8) if layout == "channel" else (1040, 130, 1)
    # torch itself makes the gradient of a real view of complex numbers contiguous.
    for name in ("out 0",) if results["out 0"].is_complex() else ("out 0", "grad a", "grad b"):
        assert results[name].stride() == expected, name


@each_dtype
def test_keeps_what_it_says_for_the_backward(kind: dict[str, Any], device: str) -> None:
    inputs = make_inputs(3, 8, 130, **kind, initial_state=True, device=device)
    leaves = {n: t.requires_grad_() if isinstance(t, Tensor) else t for n, t in inputs.items()}
    held = {t.untyped_storage().data_ptr() for t in inputs.values() if isinstance(t, Tensor)}
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        h, _ = recur(**leaves)
    held.add(h.untyped_storage().data_ptr())
    extra = [t.numel() for t in kept if t.untyped_storage().data_ptr() not in held]
    assert extra == ([3 * 3 * 8] if h.dtype in (torch.float16, torch.bfloat16) else [])


# torch traces the op, and warns about itself where it does: it reads `.grad` of copies it made.
@pytest.mark.filterwarnings("default")
@each_dtype
@each_layout
def test_opcheck(layout: str, kind: dict[str, Any], device: str) -> None:
    inputs = make_inputs(2, 6, 70, **kind, initial_state=True, layout=layout, device=device)
    is_complex = inputs["b"].is_complex()

    def op_form(tensor: Tensor) -> Tensor:
        return (torch.view_as_real(tensor) if is_complex else tensor).detach()

    a, b, state = (op_form(inputs[name]) for name in ("a", "b", "initial_state"))
    half = b.dtype in (torch.float16, torch.bfloat16)
    ops = torch.ops.mamba_aot
    h, last_state, chunks = ops.linear_recurrence_fwd(a, b, state, is_complex, False, half)
    saved = (b, None, None, chunks) if half else (None, h, state, None)
    arguments = (torch.ones_like(h), torch.ones_like(last_state), a, *saved, is_complex, False)
    torch.library.opcheck(ops.linear_recurrence_bwd.default, arguments)
    leaves = [t.requires_grad_() for t in (a, b, state)]
    torch.library.opcheck(ops.linear_recurrence_fwd.default, (*leaves, is_complex, True, half))


@pytest.mark.filterwarnings("default")
@each_dtype
@pytest.mark.parametrize("layout", ["seq", "channel"])
def test_compiles_as_one_graph_of_any_length(kind: dict[str, Any], layout: str, device: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(recur, fullgraph=True, dynamic=True, backend="aot_eager")
    for length in (70, 129, 33):
        inputs = make_inputs(2, 8, length, **kind, initial_state=True, layout=layout, device=device)
        got, wanted = results_of(compiled, inputs), results_of(recur, inputs)
        assert got.keys() == wanted.keys()
        for name, value in got.items():
            assert torch.equal(value, wanted[name]), name
            assert value.stride() == wanted[name].stride(), name


# The base call is [2, 8, 63]; each row changes some arguments of it.
SENTENCES: dict[str, tuple[dict[str, Any], str]] = {
    "a shape": (
        {"a": torch.zeros(2, 8, 62)},
        "linear_recurrence: a must be [..., length] = [2, 8, 63] beside b, got [2, 8, 62]",
    ),
    "a rank": ({"a": torch.zeros(63)}, "a must be [..., length] = [2, 8, 63] beside b, got [63]"),
    "a dtype": ({"a": torch.zeros(2, 8, 63).half()}, "a must be float32 like b, got float16. Convert it"),
    "a complex": (
        {"a": torch.zeros(2, 8, 63, dtype=torch.complex64)},
        "a must be real like b, got torch.complex64",
    ),
    "b complex": (
        {"b": torch.zeros(2, 8, 63, dtype=torch.complex64)},
        "a must be complex like b, got torch.float32",
    ),
    "b dtype": ({"b": torch.zeros(2, 8, 63, dtype=torch.int32)}, "b must be float32, float16, bfloat16 or"),
    "b rank": ({"b": torch.zeros(())}, "b must be [..., length] with at least one dimension, got []"),
    "b is no tensor": ({"b": 1.0}, "b must be a torch.Tensor, got float"),
    "initial_state shape": (
        {"initial_state": torch.zeros(2, 7)},
        "initial_state must be [...], the leading dimensions = [2, 8] beside b, got [2, 7]",
    ),
    "initial_state dtype": (
        {"initial_state": torch.zeros(2, 8).double()},
        "initial_state must be float32 (the state's dtype), got float64",
    ),
    "initial_state complex": (
        {"initial_state": torch.zeros(2, 8, dtype=torch.complex64)},
        "initial_state must be real like b, got torch.complex64",
    ),
}


@pytest.mark.parametrize(("changes", "sentence"), SENTENCES.values(), ids=SENTENCES)
def test_says_what_is_wrong(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises((TypeError, ValueError)) as error:
        linear_recurrence(**make_inputs() | changes)
    assert sentence in str(error.value)


@pytest.mark.parametrize("kind", DTYPES.values(), ids=DTYPES)
def test_a_gradient_may_lie_in_any_way(kind: dict[str, Any], device: str) -> None:
    """Leading dimensions of the inputs collapse, those of the gradient that comes in do not."""
    inputs = make_inputs(2, 3, 2, 5, 2, 8, **kind, device=device)
    weight = torch.randn(5, 2, 2, 3, 2, 8, device=device).to(inputs["b"].dtype)

    def turned(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda **inputs: function(**inputs).permute(3, 0, 2, 1, 4, 5).contiguous() * weight

    assert_matches_reference(turned(linear_recurrence), turned(linear_recurrence_ref), inputs)


def test_says_when_leading_dimensions_do_not_collapse(device: str) -> None:
    inputs = make_inputs(4, 4, 4, 4, 70, device=device)
    a = place(inputs["a"].new_zeros(8, 8, 8, 8, 70), "seq")[::2, ::2, ::2, ::2]
    with pytest.raises(ValueError, match="collapse to at most 3 in memory, got 4"):
        linear_recurrence(**inputs | {"a": a})
    linear_recurrence(**inputs | {"a": a.contiguous()})


@pytest.mark.gpu
def test_float64_is_refused_on_cuda() -> None:
    with pytest.raises(ValueError, match="b must be float32, float16 or bfloat16 on cuda:0, got float64"):
        linear_recurrence(**make_inputs(dtype=torch.float64, device="cuda"))


@pytest.mark.gpu
def test_offsets_beyond_32_bits() -> None:
    rows, length = 2**20 + 64, 2064
    small = make_inputs(8, length, dtype=torch.bfloat16, device="cuda")
    a = torch.zeros(rows, length, dtype=torch.bfloat16, device="cuda")
    b = torch.zeros_like(a)
    a[-8:], b[-8:] = small["a"], small["b"]
    h = linear_recurrence(a, b)
    assert h.numel() > 2**31
    torch.testing.assert_close(h[-8:], linear_recurrence(small["a"], small["b"]), rtol=0.02, atol=0.02)
