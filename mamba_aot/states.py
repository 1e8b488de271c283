"""States of a model as collections of tensors: to copy, to save and to load them."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from torch import Tensor


def named_tensors(state: Any) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a model's state, under a name such as "3.conv": the layer, and what it is there."""
    for index, layer in enumerate(state):
        if layer is not None:
            for field in dataclasses.fields(layer):
                yield f"{index}.{field.name}", getattr(layer, field.name)


def tensors_of(state: Any) -> list[Tensor]:
    """Every tensor of a model's state."""
    return [tensor for _, tensor in named_tensors(state)]


def copy_state(state: Any) -> Any:
    """A state of its own with the same values, so that one prompt can be continued more than once."""
    return tuple(_copy_layer(layer) for layer in state)


def _copy_layer(layer: Any) -> Any:
    if layer is None:
        return None
    return type(layer)(*(getattr(layer, field.name).clone() for field in dataclasses.fields(layer)))
