"""The rule of closeness itself: what it lets pass, and what it says when it does not."""

import math

import pytest
import torch
from torch import Tensor

from mamba_aot.testing import assert_close_to_fp64, assert_matches_reference


def test_passes_what_eager_itself_does() -> None:
    truth = torch.linspace(1, 2, 100, dtype=torch.float64)
    eager = truth.float()
    assert_close_to_fp64(eager, eager, truth, "y")
    assert_close_to_fp64(eager + 2**-23, eager, truth, "y")


def test_says_where_and_how_much() -> None:
    truth = torch.ones(2, 3, dtype=torch.float64)
    out = truth.float()
    out[1, 2] += 1e-3
    with pytest.raises(AssertionError) as caught:
        assert_close_to_fp64(out, truth.float(), truth, "grad u")
    assert str(caught.value).startswith(
        "grad u: error against float64 must be at most 2 x eager's + rounding"
    )
    assert "got 0.001 at (1, 2): 1.001 instead of 1; 1 of 6 elements are over" in str(caught.value)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_refuses_what_is_not_finite(wrong: float) -> None:
    truth = torch.ones(3, dtype=torch.float64)
    out = truth.float()
    out[1] = wrong
    with pytest.raises(AssertionError, match=r"at \(1,\)"):
        assert_close_to_fp64(out, truth.float(), truth, "y")


def test_refuses_another_shape_or_dtype() -> None:
    truth = torch.ones(3, dtype=torch.float64)
    for out in (torch.ones(3, dtype=torch.bfloat16), torch.ones(1, 3)):
        with pytest.raises(AssertionError, match="shape and dtype must be"):
            assert_close_to_fp64(out, truth.float(), truth, "y")


def test_cancellation_counts_as_rounding() -> None:
    def backwards(x: Tensor) -> Tensor:
        return x.flip(0).cumsum(0)[-1]

    def straight(x: Tensor) -> Tensor:
        return x.sum()

    x = torch.cat([torch.rand(1000) * 1e3, -torch.rand(1000) * 1e3])
    assert_matches_reference(backwards, straight, {"x": x})


def test_a_wrong_gradient_is_found() -> None:
    def wrong(x: Tensor) -> Tensor:
        return x.square() + 1e-4 * (x - x.detach())

    with pytest.raises(AssertionError, match="grad x"):
        assert_matches_reference(wrong, lambda x: x.square(), {"x": torch.rand(5)})
