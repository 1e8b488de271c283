"""Rules of torch.vmap: a call for every slice, or one call where the slices fit into the batch."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

Rule = Callable[..., tuple[Any, Any]]
Saves = Callable[[Sequence[Tensor]], bool]


def map_slices(op: Any, saves: Saves | None = None) -> Rule:
    """The rule that calls `op` once for every slice and stacks the results.

    `saves` settles the argument `save_states` from the tensors of a call: the public functions can't see
    through vmap whether a backward will follow.
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

        def take(index: int) -> list[Any]:
            pairs = zip(args, in_dims, strict=True)
            return _settled(op, saves, (arg if dim is None else arg.select(dim, index) for arg, dim in pairs))

        calls = [op(*take(index)) for index in range(info.batch_size)]
        if len(op._schema.returns) == 1:
            return torch.stack(calls), 0
        outs = tuple(torch.stack(results) for results in zip(*calls, strict=True))
        return outs, (0,) * len(outs)

    return rule


def fold_into_batch(op: Any, batched: Sequence[str], saves: Saves | None = None) -> Rule:
    """The rule that makes slices part of the batch, the first dimension of arguments `batched` and results.

    Where another argument is mapped over, a weight, it is a call for every slice.
    """
    each_slice = map_slices(op, saves)
    names = [argument.name for argument in op._schema.arguments]

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        if any(dim is not None and name not in batched for name, dim in zip(names, in_dims, strict=True)):
            return each_slice(info, in_dims, *args)
        count = info.batch_size
        folded = [
            _folded(arg, dim, count) if name in batched and isinstance(arg, Tensor) else arg
            for name, arg, dim in zip(names, args, in_dims, strict=True)
        ]
        results = op(*_settled(op, saves, folded))
        if isinstance(results, Tensor):
            return results.unflatten(0, (count, -1)), 0
        # A result of one dimension is empty: it was not asked for.
        outs = tuple(out.unflatten(0, (count, -1)) if out.dim() > 1 else out for out in results)
        return outs, tuple(0 if out.dim() > 1 else None for out in results)

    return rule


def _settled(op: Any, saves: Saves | None, args: Iterable[Any]) -> list[Any]:
    args = list(args)
    if saves is not None:
        index = [argument.name for argument in op._schema.arguments].index("save_states")
        args[index] = saves([arg for arg in args if isinstance(arg, Tensor)])
    return args


def _folded(tensor: Tensor, dim: int | None, count: int) -> Tensor:
    """[count, B, ...], or [B, ...] for every slice the same, as [count * B, ...]."""
    moved = tensor.expand(count, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return moved.flatten(0, 1)
