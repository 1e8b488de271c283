"""Whether a module does what its weight says, so that a kernel may read the weight instead of calling it."""

from torch import nn
from torch._subclasses import FakeTensor
from torch.nn.modules.module import _has_any_global_hook


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """No subclass, no hooks, no weight of a special type."""
    return (
        type(module) is kind
        # While torch.export traces, plain parameters are fake tensors.
        and type(module.weight) in (nn.Parameter, FakeTensor)
        and not has_hooks(module)
    )


def has_hooks(module: nn.Module) -> bool:
    """Whether something else watches a call of it, or its gradients."""
    own = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return any(own) or bool(_has_any_global_hook())
