"""What is no tensor is a TypeError, what the library's checks refuse a ValueError under every torch."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mamba_aot  # noqa: F401, its public functions are what is looked at
from mamba_aot.ops import _boundary

CHECKS = Path(__file__).parents[2] / "csrc/ops"


@_boundary.raises_typed_errors
def fails(error: Exception) -> None:
    raise error


def test_a_sentence_about_an_argument_is_a_value_error() -> None:
    sentence = "fails: error must be something: else, got this"
    with pytest.raises(ValueError, match=re.escape(sentence)) as raised:
        fails(RuntimeError(sentence))
    assert str(raised.value) == sentence


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mamba_aot: CUDA ops need NVIDIA's driver"),
        RuntimeError("fails-sm90-bf16: no image for CUDA device 0"),
        RuntimeError("fails"),
        TypeError("fails: error must be a torch.Tensor"),
    ],
    ids=str,
)
def test_other_errors_pass(error: Exception) -> None:
    with pytest.raises(type(error)) as raised:
        fails(error)
    assert raised.value is error


@_boundary.raises_typed_errors
def adds(x: Tensor, y: Tensor | None = None, scale: float = 1.0) -> Tensor:
    return x.add(0 if y is None else y.mul(scale))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"x": [1.0]}, "adds: x must be a torch.Tensor, got list"),
        ({"x": None}, "adds: x must be a torch.Tensor, got NoneType"),
        ({"x": torch.ones(1), "y": "two"}, "adds: y must be a torch.Tensor or None, got str"),
    ],
)
def test_what_is_no_tensor_is_a_type_error(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(TypeError, match=f"^{re.escape(sentence)}$"):
        adds(**arguments)


def test_a_wrong_call_says_what_python_says() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'w'"):
        adds(torch.ones(1), w=1)  # type: ignore[call-arg]


def test_every_check_begins_with_the_name_of_such_a_function() -> None:
    texts = [source.read_text(encoding="utf-8") for source in CHECKS.iterdir()]
    name = re.compile(r'"(\w+_fn|\w+_update|linear_recurrence)[":]')
    names = {found for text in texts for found in name.findall(text)}
    assert len(names) == 9
    assert names <= _boundary._public
