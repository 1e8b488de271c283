"""Rules of torch.vmap: a call for every slice, or one call where the slices fit into the batch."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

Rule = Callable[..., tuple[Any, Any]]
Saves = Callable[[Sequence[Tensor]], bool]


def map_slices(op: Any, saves: Saves | None = None) -> Rule:
    """The rule that calls `op` once for every slice and stacks the results.

    `saves` settles from the tensors of a call whether `save_states` has to be true: the public functions
    can't see through vmap whether a backward will follow.
    """
    schema = op._schema.arguments

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        for argument, arg, dim in zip(schema, args, in_dims, strict=True):
            written = argument.alias_info is not None and argument.alias_info.is_write
            if written and dim is None and isinstance(arg, Tensor):
                raise ValueError(
                    f"{op._opname}: {argument.name} is written in place, so under torch.vmap it must be "
                    "mapped over as well; give it a dimension of its own and name that in in_dims"
                )

        if info.batch_size == 0:
            return _of_no_slices(op, in_dims, args)

        def take(index: int) -> list[Any]:
            pairs = zip(args, in_dims, strict=True)
            return _settled(op, saves, (arg if dim is None else arg.select(dim, index) for arg, dim in pairs))

        calls = [op(*take(index)) for index in range(info.batch_size)]
        if len(op._schema.returns) == 1:
            return torch.stack(calls), 0
        outs = tuple(torch.stack(results) for results in zip(*calls, strict=True))
        return outs, (0,) * len(outs)

    return rule


def fold_into_batch(op: Any, batched: dict[str, int], saves: Saves | None = None) -> Rule:
    """The rule that makes slices part of the batch, the first dimension of some arguments and all results.

    `batched` names these arguments, with the fewest dimensions that each has when it has a batch. Where
    another one is mapped over, a weight, or integers say how the batch is packed, it is a call for every
    slice.
    """
    each_slice = map_slices(op, saves)
    names = [argument.name for argument in op._schema.arguments]

    def has_batch(name: str, arg: Any, dim: int | None) -> bool:
        return isinstance(arg, Tensor) and arg.dim() - (dim is not None) >= batched.get(name, math.inf)

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        if info.batch_size == 0:
            return _of_no_slices(op, in_dims, args)
        places = [has_batch(*place) for place in zip(names, args, in_dims, strict=True)]
        for arg, dim, place in zip(args, in_dims, places, strict=True):
            is_weight = dim is not None and not place
            if is_weight or (isinstance(arg, Tensor) and not arg.is_floating_point()):
                return each_slice(info, in_dims, *args)
        count = info.batch_size
        folded = [
            _folded(arg, dim, count) if place else arg
            for arg, dim, place in zip(args, in_dims, places, strict=True)
        ]
        results = op(*_settled(op, saves, folded))
        if isinstance(results, Tensor):
            return results.unflatten(0, (count, -1)), 0
        # A result of one dimension is empty: it was not asked for.
        outs = tuple(out.unflatten(0, (count, -1)) if out.dim() > 1 else out for out in results)
        return outs, tuple(0 if out.dim() > 1 else None for out in results)

    return rule


def _of_no_slices(op: Any, in_dims: tuple[int | None, ...], args: tuple[Any, ...]) -> tuple[Any, Any]:
    """Results for no slice at all: shapes are those of a call with a slice of zeros."""
    slices = [
        arg if dim is None else arg.new_zeros(arg.shape[:dim] + arg.shape[dim + 1 :])
        for arg, dim in zip(args, in_dims, strict=True)
    ]
    results = op(*slices)
    if isinstance(results, Tensor):
        return results.new_empty((0, *results.shape)), 0
    return tuple(out.new_empty((0, *out.shape)) for out in results), (0,) * len(results)


def _settled(op: Any, saves: Saves | None, args: Iterable[Any]) -> list[Any]:
    args = list(args)
    if saves is not None:
        index = [argument.name for argument in op._schema.arguments].index("save_states")
        args[index] = args[index] or saves([arg for arg in args if isinstance(arg, Tensor)])
    return args


def _folded(tensor: Tensor, dim: int | None, count: int) -> Tensor:
    """[count, B, ...], or [B, ...] for every slice the same, as [count * B, ...]."""
    moved = tensor.expand(count, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return moved.flatten(0, 1)
