"""What every op does at its boundary: types of arguments and errors, complex tensors as pairs, order."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, get_type_hints

import torch
from torch import Tensor

_P = ParamSpec("_P")
_R = TypeVar("_R")
_public: set[str] = set()


def raises_typed_errors(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Makes a public function raise TypeError for what is no tensor, ValueError for what the library refuses.

    Types are looked at when something has failed, as an op refuses what is no tensor before it runs: a look
    before each call would take the host as long as an addition.

    The library's checks throw `std::invalid_argument`, of which Python's binding of torch 2.15 makes a
    RuntimeError. Their sentences are known by the public function that they begin with; all others of the
    library begin with something else. What torch.compile made calls ops without this, and raises what the
    binding makes.
    """
    _public.add(function.__name__)

    @functools.wraps(function)
    def checked(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            if torch.compiler.is_compiling():
                raise
            _require_tensors(function, args, kwargs)
            sentence = str(error)
            name, colon, _ = sentence.partition(": ")
            if not isinstance(error, RuntimeError) or not colon or name not in _public:
                raise
            raise ValueError(sentence) from None

    return checked


def _require_tensors(function: Callable, args: tuple, kwargs: dict[str, object]) -> None:
    """Raises TypeError unless each argument annotated as a tensor is one."""
    try:
        given = inspect.signature(function).bind(*args, **kwargs).arguments
    except TypeError:
        # What Python says of a call without the right arguments is clear as it is.
        return
    wanted = get_type_hints(function)
    for name, value in given.items():
        if isinstance(value, Tensor) or wanted[name] not in (Tensor, Tensor | None):
            continue
        optional = wanted[name] != Tensor
        if optional and value is None:
            continue
        raise TypeError(
            f"{function.__name__}: {name} must be a torch.Tensor{' or None' if optional else ''}, "
            f"got {type(value).__name__}"
        ) from None


def untracked(op: Any, *args: Any) -> Any:
    """Calls an op that has no autograd rule, so that autograd does not look for one.

    Where gradients are on, a guard of the dispatcher takes the host a third of the time of `no_grad`.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        with torch.no_grad():
            return op(*args)
    if not torch.is_grad_enabled():
        return op(*args)
    with torch._C._AutoDispatchBelowAutograd():
        return op(*args)


def is_zoh(function: str, discretization: str) -> bool:
    """Reads the argument `discretization`; raises ValueError for anything but "euler" and "zoh"."""
    if discretization not in ("euler", "zoh"):
        raise ValueError(f'{function}: discretization must be "euler" or "zoh", got {discretization!r}')
    return discretization == "zoh"


def is_silu(function: str, activation: str | None) -> bool:
    """Reads the argument `activation`; raises ValueError for anything but None, "silu" and "swish"."""
    if activation not in (None, "silu", "swish"):
        raise ValueError(f'{function}: activation must be None, "silu" or "swish", got {activation!r}')
    return activation is not None


def as_pairs(tensor: Tensor) -> Tensor:
    """A complex tensor as a real one with a last dim (re, im); a view unless it is a lazy conjugate."""
    return torch.view_as_real(tensor.resolve_conj())


def state_dtype(sequence: Tensor) -> torch.dtype:
    """The dtype states are kept in: float64 for a float64 sequence, else float32."""
    return torch.float64 if sequence.dtype == torch.float64 else torch.float32


def empty_layout_like(x: Tensor) -> Tensor:
    """An empty [B, D, L] output in the memory order of `x`: channel-last if `x` is, else sequence-last."""
    if x.stride(2) == 1 or x.stride(1) != 1:
        return x.new_empty(x.shape)
    batch, dim, length = x.shape
    return x.new_empty(batch, length, dim).transpose(1, 2)
