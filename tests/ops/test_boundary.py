"""What the library's checks refuse is a ValueError, also where torch makes a RuntimeError of it."""

import re
from pathlib import Path

import pytest

import mamba_aot  # noqa: F401, its public functions are what is looked at
from mamba_aot.ops import _boundary

CHECKS = Path(__file__).parents[2] / "csrc/ops"


@_boundary.raises_value_errors
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


def test_every_check_begins_with_the_name_of_such_a_function() -> None:
    texts = [source.read_text(encoding="utf-8") for source in CHECKS.iterdir()]
    name = re.compile(r'"(\w+_fn|\w+_update|linear_recurrence)[":]')
    names = {found for text in texts for found in name.findall(text)}
    assert len(names) == 9
    assert names <= _boundary._public
