"""Whether a module does what its weight says, so that a kernel may read the weight instead of calling it."""

from torch import nn
from torch._subclasses import FakeTensor


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """No subclass, no hooks, no weight of a special type."""
    return (
        type(module) is kind
        # While torch.export traces, plain parameters are fake tensors.
        and type(module.weight) in (nn.Parameter, FakeTensor)
        and not (module._forward_hooks or module._forward_pre_hooks)
    )
