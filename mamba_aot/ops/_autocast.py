"""Rules of torch.autocast for single arguments; torch's own are for all arguments of an op at once."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Choose = Callable[[str, tuple[Any, ...]], torch.dtype]

# Lives as long as the process: a rule goes when its Library does.
_LIBRARY = torch.library.Library("mamba_aot", "FRAGMENT")
# Of each op which arguments are cast, and what says to which dtype.
_rules: dict[Any, tuple[Sequence[int], Choose]] = {}


def cast_under_autocast(op: Any, names: Sequence[str], like: str | None = None) -> None:
    """Makes `op` take its arguments `names` in autocast's dtype, or in that of its argument `like`."""
    positions = [argument.name for argument in op._schema.arguments]
    chosen = [positions.index(name) for name in names]

    def choose(device: str, args: tuple[Any, ...]) -> torch.dtype:
        model = None if like is None else args[positions.index(like)]
        return torch.get_autocast_dtype(device) if model is None else model.dtype

    _register(op, chosen, choose)


def promote_under_autocast(op: Any, names: Sequence[str]) -> None:
    """Makes `op` take its arguments `names` in the widest dtype among them."""
    positions = [argument.name for argument in op._schema.arguments]
    chosen = [positions.index(name) for name in names]

    def choose(device: str, args: tuple[Any, ...]) -> torch.dtype:
        first, *others = [args[position].dtype for position in chosen if args[position] is not None]
        for other in others:
            first = torch.promote_types(first, other)
        return first

    _register(op, chosen, choose)


def cast_arguments(op: Any, args: tuple[Any, ...]) -> Sequence[Any]:
    """The arguments of a call of `op` as autocast has them, if it is on where the first of them is."""
    device = args[0].device.type
    if op not in _rules or not torch.is_autocast_enabled(device):
        return args
    return _cast_all(op, device, args)


def _register(op: Any, chosen: Sequence[int], choose: Choose) -> None:
    _rules[op] = chosen, choose
    for device in ("cpu", "cuda"):

        def kernel(*args: Any, device: str = device) -> Any:
            cast = _cast_all(op, device, args)
            # As torch.autocast(enabled=False) would, in less of the host's time.
            with torch._C._DisableAutocast():
                return op(*cast)

        _LIBRARY.impl(op._opname, kernel, f"Autocast{device.upper()}")


def _cast_all(op: Any, device: str, args: tuple[Any, ...]) -> Sequence[Any]:
    chosen, choose = _rules[op]
    dtype = choose(device, args)
    return [_cast(arg, dtype) if index in chosen else arg for index, arg in enumerate(args)]


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """As torch's own rules do, float64 stays."""
    if isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64:
        return value.to(dtype)
    return value
