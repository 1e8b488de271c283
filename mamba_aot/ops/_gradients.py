"""How ops with a gradient are called and differentiated: by autograd or torch.func, and only once."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import TransformType, get_interpreter_stack
from torch.autograd import forward_ad

from mamba_aot.ops._autocast import cast_arguments

Backward = Callable[..., tuple[Tensor | None, ...]]
_functions: dict[Any, type[torch.autograd.Function]] = {}


def register_gradient(op: Any, function: str, backward: Backward, setup_context: Callable[..., None]) -> None:
    """Registers the gradient of `op`, which the public `function` calls; it can't be differentiated itself.

    `backward` and `setup_context` are as torch.library.register_autograd has them.
    """
    torch.library.register_autograd(op, once(function)(backward), setup_context=setup_context)

    def forward(*args: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args)

    # torch.func differentiates no rules of torch.library, only functions of this form.
    methods = {"forward": forward, "setup_context": setup_context, "backward": backward}
    members = {name: staticmethod(method) for name, method in methods.items()}
    _functions[op] = type(function, (torch.autograd.Function,), {**members, "generate_vmap_rule": True})


def run(op: Any, tensors: tuple[Tensor | None, ...], *options: Any, needed: bool | None = None) -> Any:
    """Calls an op with a gradient, around its rule if none of its tensors needs it.

    Rules of torch.library are Python code: passing through takes longer than the whole op. `needed` is what
    `needs_gradient` said of the tensors, where that was asked before.
    """
    if torch.compiler.is_compiling():
        return op(*tensors, *options)
    levels = _levels_of_gradients()
    if levels or is_forward_mode():
        if levels[1:] or TransformType.Jvp in levels or _have_tangents(tensors):
            raise RuntimeError(_refusal(_functions[op].__name__))
        if levels:
            # Inside of the function autocast's casts would have no gradient.
            arguments = cast_arguments(op, (*tensors, *options))
            with torch._C._DisableAutocast():
                return _functions[op].apply(*arguments)
    if needed is None:
        needed = needs_gradient(tensors)
    if needed or is_transformed() or torch.is_inference_mode_enabled():
        return op(*tensors, *options)
    with torch._C._AutoDispatchBelowAutograd():
        return op(*tensors, *options)


def needs_gradient(tensors: Iterable[Tensor | None]) -> bool:
    """Whether autograd, or torch.func, may follow what is computed from these tensors."""
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return True
    # What is mapped over does not say that it is differentiated too.
    return not torch.compiler.is_compiling() and bool(_levels_of_gradients())


def is_transformed() -> bool:
    """Whether a transform of torch.func is active, `torch.vmap` among them."""
    return torch._C._are_functorch_transforms_active()


def is_forward_mode() -> bool:
    """Whether tensors may have tangents, which only `run` sees: it refuses them."""
    return forward_ad._current_level >= 0


def _levels_of_gradients() -> list[Any]:
    """The active transforms of torch.func that differentiate: grad and jvp, which all others are made of."""
    if not is_transformed():
        return []
    levels = [level.key() for level in get_interpreter_stack() or []]
    return [level for level in levels if level in (TransformType.Grad, TransformType.Jvp)]


def _have_tangents(tensors: Iterable[Tensor | None]) -> bool:
    if not is_forward_mode():
        return False
    return any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors)


def once(function: str) -> Callable[[Backward], Backward]:
    """Decorates the backward of the public `function`: its results raise where they are differentiated.

    torch's `once_differentiable` lets them pass as constants when the gradients that come in are.
    """

    def decorate(backward: Backward) -> Backward:
        @functools.wraps(backward)
        def checked(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
            if not torch.is_grad_enabled():
                with torch.no_grad():
                    return backward(ctx, *gradients)
            reading = _Reading(ctx)
            with torch.no_grad():
                results = backward(reading, *gradients)
            # Whoever differentiates by what the results follow from, and by nothing else, has to pass here.
            inputs = (*gradients, *reading.read)
            followed = [t for t in inputs if t is not None and t.requires_grad]
            return tuple(
                _Once.apply(result.detach().requires_grad_(), function, *followed)
                if result is not None
                else None
                for result in results
            )

        return checked

    return decorate


class _Reading:
    """The context of a backward, and what it `read` of the tensors saved: that must be done once, for a
    checkpoint makes them again for it.
    """

    def __init__(self, ctx: Any) -> None:
        self._ctx = ctx
        self.read: tuple[Tensor | None, ...] = ()

    @property
    def saved_tensors(self) -> tuple[Tensor | None, ...]:
        self.read = self._ctx.saved_tensors
        return self.read

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ctx, name)


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradient: Tensor, function: str, *_followed: Tensor) -> Tensor:
        ctx.function = function
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise RuntimeError(_refusal(ctx.function))


def _refusal(function: str) -> str:
    return (
        f"mamba_aot: the gradient of {function} is taken once and in reverse, but a gradient of it, or one "
        "in forward mode, was asked for; take those of its version in plain PyTorch, in mamba_aot.reference"
    )
