"""What follows the last mamba1_step: few_rows_linear, with a norm and without, and argmax_rows."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mamba_aot.ops.mamba1_step import argmax_rows, few_rows_linear
from mamba_aot.reference import rms_norm_ref
from mamba_aot.testing import assert_close_to_fp64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("batch", "rows", "width"),
    [(1, 4099, 768), (3, 5, 17), (8, 64, 256), (9, 7, 33), (1, 1, 1), (0, 4, 8), (2, 0, 8), (2, 3, 0)],
)
def test_products_of_few_rows(batch: int, rows: int, width: int, dtype: torch.dtype, device: str) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, width, generator=generator).to(device, dtype)
    weight = torch.randn(rows, width, generator=generator).to(device, dtype)
    got = few_rows_linear(x, weight)
    assert got.dtype == dtype
    truth = x.cpu().double() @ weight.cpu().double().T
    assert_close_to_fp64(got.cpu(), x.cpu() @ weight.cpu().T, truth, "product")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("rows", "size"), [(1, 50280), (5, 50277), (64, 2049), (3, 2048), (2, 1), (0, 7), (1, 400_000)]
)
def test_argmax_is_the_first_of_the_greatest(rows: int, size: int, dtype: torch.dtype, device: str) -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(rows, size + 3, generator=generator).to(dtype)[:, 1 : size + 1]
    # In sixteen bits many numbers are equal.
    wanted = [row.tolist().index(max(row.tolist())) for row in x]
    assert argmax_rows(x.to(device)).tolist() == wanted


def test_argmax_of_float64_on_a_cpu() -> None:
    x = torch.tensor([[1.0, 1 + 1e-12, 1.0]], dtype=torch.float64)
    assert argmax_rows(x).tolist() == [1]


@pytest.mark.gpu
def test_argmax_refuses_float64_on_cuda() -> None:
    with pytest.raises(ValueError, match=r"^argmax_rows: x must be float32, float16 or bfloat16 on "):
        argmax_rows(torch.ones(1, 3, dtype=torch.float64, device="cuda"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_argmax_of_what_is_no_common_number(dtype: torch.dtype, device: str) -> None:
    inf, nan, size = float("inf"), float("nan"), 3000
    x = torch.full((7, size), -1.0)
    x[0, 2500], x[0, 2700] = nan, inf
    x[1, 100], x[1, 2900] = inf, inf
    x[2] = -inf
    x[3, 17], x[3, 16] = 0.0, -0.0
    x[4, 5], x[4, 2999] = nan, nan
    x[5, 2048] = -0.5
    x[6] = -65504
    assert argmax_rows(x.to(device, dtype)).tolist() == [2500, 100, 0, 16, 5, 2048, 0]


def test_opcheck_of_argmax(device: str) -> None:
    op = torch.ops.mamba_aot.argmax_rows.default
    x = torch.randn(3, 50, device=device)
    torch.library.opcheck(op, (x,), test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize(
    ("x", "error", "sentence"),
    [
        (torch.ones(4), ValueError, r"x must be \[rows, size\]"),
        (torch.ones(3, 0), ValueError, "x must have 1 to 2"),
        (torch.ones(4, 3).T, ValueError, "the numbers of a row of x must lie side by side"),
        (torch.ones(2, 3, dtype=torch.int64), ValueError, "x must be"),
        (None, TypeError, "x must be a torch.Tensor"),
    ],
    ids=["rank", "size", "layout", "dtype", "type"],
)
def test_errors_of_argmax(x: Any, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=f"^argmax_rows: {sentence}" if error is ValueError else sentence):
        argmax_rows(x)


NORMED: dict[str, dict[str, Any]] = {
    "130m": {"batch": 1, "rows": 4099, "width": 768},
    "d_model of 1.4b": {"batch": 1, "rows": 3001, "width": 2048},
    "d_model of 2.8b": {"batch": 1, "rows": 1031, "width": 2560},
    "in two parts": {"batch": 1, "rows": 70, "width": 2576, "residual": torch.float32},
    "more rows than a program has sums for": {"batch": 2, "rows": 150_001, "width": 32},
    "three rows, float16": {"batch": 3, "rows": 257, "width": 80, "dtype": torch.float16},
    "no residual": {"batch": 2, "rows": 65, "width": 256, "residual": None},
    "many rows": {"batch": 40, "rows": 65, "width": 256},
    "odd width": {"batch": 2, "rows": 5, "width": 77},
    "float32": {"batch": 2, "rows": 5, "width": 80, "dtype": torch.float32, "residual": torch.float32},
    "no rows": {"batch": 0, "rows": 5, "width": 16},
    "no rows of the weight": {"batch": 2, "rows": 0, "width": 16},
    "one of each": {"batch": 1, "rows": 1, "width": 1},
    "large eps": {"batch": 1, "rows": 9, "width": 48, "eps": 0.5},
}


@pytest.mark.parametrize("row", NORMED.values(), ids=NORMED)
def test_products_behind_a_norm(row: dict[str, Any], device: str) -> None:
    dtype, batch, width = row.get("dtype", torch.bfloat16), row["batch"], row["width"]
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int, of: torch.dtype = dtype) -> Tensor:
        return torch.randn(shape, generator=generator).to(of)

    of_residual = row.get("residual", dtype)
    x, weight, norm_weight = normal(batch, width), normal(row["rows"], width), 1 + normal(width) / 10
    residual = None if of_residual is None else normal(batch, width, of=of_residual)
    eps = row.get("eps", 1e-5)

    def reference(*tensors: Tensor | None) -> Tensor:
        x, weight, norm_weight, residual = tensors
        y = rms_norm_ref(x, norm_weight, residual=residual, eps=eps)
        return y @ weight.T

    tensors = (x, weight, norm_weight, residual)
    got = few_rows_linear(*(None if t is None else t.to(device) for t in tensors), eps=eps).cpu()
    assert got.dtype == dtype
    truth = reference(*(None if t is None else t.double() for t in tensors))
    assert_close_to_fp64(got, reference(*tensors), truth, "logits")


def test_two_products_behind_a_norm_are_equal(device: str) -> None:
    x, weight = (torch.randn(n, 768, device=device, dtype=torch.bfloat16) for n in (3, 1000))
    norm_weight, residual = weight[0].clone(), torch.randn(3, 768, device=device)
    first, second = (few_rows_linear(x, weight, norm_weight, residual) for _ in range(2))
    assert torch.equal(first, second)
    if device == "cpu":
        # Nor do neighbours matter, or how many there are: on a GPU where it is asked for, above.
        assert torch.equal(few_rows_linear(x[1:2], weight, norm_weight, residual[1:2]), first[1:2])


@pytest.mark.parametrize("norm", [False, True])
def test_opcheck_of_few_rows(norm: bool, device: str) -> None:
    x, weight = (torch.randn(n, 32, device=device, dtype=torch.bfloat16) for n in (2, 5))
    of_norm = (weight[0].clone(), x.float()) if norm else (None, None)
    op = torch.ops.mamba_aot.few_rows_linear.default
    torch.library.opcheck(op, (x, weight, *of_norm, 1e-5), test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize(
    ("norm_weight", "residual", "sentence"),
    [
        (torch.ones(5), None, r"norm_weight must be \[width\] = \[4\], got"),
        (torch.ones(4).half(), None, "norm_weight must be float32 like x"),
        (torch.ones(8)[::2], None, "norm_weight must be contiguous"),
        (None, torch.ones(2, 4), "residual is for a norm"),
        (torch.ones(4), torch.ones(3, 4), r"residual must be \[batch, width\]"),
        (torch.ones(4), torch.ones(4, 2).T, "residual must be contiguous"),
        (torch.ones(4), torch.ones(2, 4).double(), "residual must not be wider"),
    ],
    ids=["shape", "dtype", "layout", "no norm", "shape of residual", "layout of residual", "wide residual"],
)
def test_errors_of_a_norm_before_few_rows(
    norm_weight: Tensor | None, residual: Tensor | None, sentence: str
) -> None:
    with pytest.raises(ValueError, match=f"^few_rows_linear: {sentence}"):
        few_rows_linear(torch.ones(2, 4), torch.ones(3, 4), norm_weight, residual)


@pytest.mark.parametrize(
    ("x", "weight", "error", "sentence"),
    [
        (torch.ones(2, 4), torch.ones(3, 5), ValueError, r"weight must be \[rows, width\] = \[3, 4\], got"),
        (torch.ones(2, 4), torch.ones(3, 4).half(), ValueError, "weight must be float32 like x"),
        (torch.ones(4), torch.ones(3, 4), ValueError, r"x must be \[batch, width\]"),
        (torch.ones(2, 4), torch.ones(4), ValueError, r"weight must be \[rows, width\]"),
        (torch.ones(4, 2).T, torch.ones(3, 4), ValueError, "x must be contiguous"),
        (torch.ones(2, 4), torch.ones(4, 3).T, ValueError, "weight must be contiguous"),
        (torch.ones(2, 4), None, TypeError, "weight must be a torch.Tensor"),
    ],
    ids=["shape", "dtype", "rank of x", "rank of weight", "layout of x", "layout of weight", "type"],
)
def test_errors_of_few_rows(x: Tensor, weight: Any, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=f"^few_rows_linear: {sentence}"):
        few_rows_linear(x, weight)
