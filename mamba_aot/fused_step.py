"""When a token is taken by kernels that read the weights themselves, and when by modules: a layer, and the
head after the last one.
"""

import math
import os
from functools import cache
from typing import NamedTuple, TypeGuard

import torch
from torch import Tensor, nn

from mamba_aot.layers import CausalConv1d
from mamba_aot.mamba1 import Mamba1
from mamba_aot.modules import MambaState
from mamba_aot.norms import LayerNorm, RMSNorm
from mamba_aot.ops._gradients import is_transformed
from mamba_aot.ops.mamba1_step import few_rows_linear, mamba1_step
from mamba_aot.plain import is_plain

# On a GPU the modules are as fast with more rows, or faster: 256 were timed.
MOST_ROWS_ON_GPU = 128
# On a CPU the kernels' own products are for this many rows.
MOST_ROWS_ON_CPU = 8
# Of more rows times d_model, every GPU adds up parts of the last product where the next norm reads them;
# mamba1_step_in.FEW of csrc/kernels/tuned is less.
MOST_WITHOUT_PARTS = 10_000
_SIXTEEN_BITS = (torch.float16, torch.bfloat16)


class Handed(NamedTuple):
    """What a layer hands on in a step: x and the residual it is to be added to, [batch, d_model].

    If `normed`, `x` is what the norm that follows makes of that sum, and `residual` is the sum.
    """

    x: Tensor
    residual: Tensor | None = None
    normed: bool = False


def fused_step(
    norm: RMSNorm | LayerNorm,
    mixer: nn.Module,
    given: Handed,
    in_fp32: bool,
    state: object,
    next_norm: nn.Module,
) -> Handed | None:
    """The step of a layer in fused kernels, and `next_norm` too where that is for nothing.

    None where its modules have to be called: for many rows, for sizes and dtypes that the kernels are not
    made for, and where a projection is anything but a plain linear layer.
    """
    x = given.x
    if not _is_few(x):
        return None
    if not (type(mixer) is Mamba1 and type(norm) is RMSNorm and isinstance(state, MambaState)):
        return None
    if not _fits(norm, mixer, x, state):
        return None
    behind = next_norm if _adds_parts(x) and _is_norm(next_norm, x) else None
    if given.normed and behind is None:
        return None
    made, residual = mamba1_step(
        x.contiguous(),
        None if given.residual is None else given.residual.contiguous(),
        None if given.normed else norm.weight,
        mixer.in_proj.weight,
        state.conv,
        mixer.conv1d.weight.squeeze(1),
        mixer.conv1d.bias,
        mixer.x_proj.weight,
        mixer.dt_proj.weight,
        mixer.dt_proj.bias,
        mixer.A if mixer.fixed_A is None else mixer.fixed_A,
        mixer.D,
        state.ssm,
        mixer.out_proj.weight,
        None if behind is None else behind.weight,
        eps=norm.eps,
        next_eps=norm.eps if behind is None else behind.eps,
        residual_in_fp32=in_fp32,
    )
    return Handed(made, residual, behind is not None)


def logits_of(norm: RMSNorm | LayerNorm, head: nn.Linear, handed: Handed) -> Tensor:
    """The logits after a step, [batch, vocab_size], from what the last layer hands on."""
    x, residual, normed = handed
    if not normed and _is_few(x) and _is_head(head, x) and _is_norm(norm, x):
        residual = None if residual is None else residual.contiguous()
        return few_rows_linear(x.contiguous(), head.weight, norm.weight, residual, eps=norm.eps)
    x = x if normed else norm(x, residual)
    if _is_few_on_cpu(x) and _is_head(head, x):
        return few_rows_linear(x.contiguous(), head.weight)
    return head(x)


def _is_head(head: nn.Linear, x: Tensor) -> bool:
    if not is_plain(head, nn.Linear) or torch.is_autocast_enabled(x.device.type):
        return False
    return head.bias is None and _is_ready(head.weight, x.dtype)


def _is_few(x: Tensor) -> bool:
    return _is_few_on_cpu(x) or _is_few_on_gpu(x)


def _is_few_on_cpu(x: Tensor) -> bool:
    return x.is_cpu and x.dtype in (*_SIXTEEN_BITS, torch.float32) and _rows(x) <= MOST_ROWS_ON_CPU


def _is_few_on_gpu(x: Tensor) -> bool:
    return x.is_cuda and x.dtype in _SIXTEEN_BITS and _rows(x) <= MOST_ROWS_ON_GPU


def _adds_parts(x: Tensor) -> bool:
    """Whether the parts of the last product are added up by the norm that follows."""
    return x.is_cuda and x.numel() > MOST_WITHOUT_PARTS and not _is_batch_invariant()


@cache
def _is_batch_invariant() -> bool:
    """As csrc/runtime/batch_invariant.h reads it: once."""
    return os.environ.get("MAMBA_AOT_BATCH_INVARIANT", "0") not in ("", "0")


def _is_norm(norm: nn.Module, x: Tensor) -> TypeGuard[RMSNorm]:
    return is_plain(norm, RMSNorm) and isinstance(norm, RMSNorm) and _is_ready(norm.weight, x.dtype)


def _rows(x: Tensor) -> float:
    """Infinitely many where what is traced must hold for any number, as for Dynamo and most exports, and
    under torch.vmap, for which the modules' ops have rules.
    """
    known = type(x.shape[0]) is int and not torch.compiler.is_dynamo_compiling()
    return x.shape[0] if known and not is_transformed() else math.inf


def _fits(norm: RMSNorm, mixer: Mamba1, x: Tensor, state: MambaState) -> bool:
    sizes = (mixer.d_model, mixer.d_inner, mixer.dt_rank)
    if any(size % 16 for size in sizes) or mixer.d_state != 16 or mixer.d_conv > 4:
        return False
    if mixer.mixer_rms_eps is not None or torch.is_autocast_enabled(x.device.type):
        return False
    if state.conv.shape[-1] not in (mixer.d_conv - 1, mixer.d_conv):
        return False
    linears = (mixer.in_proj, mixer.x_proj, mixer.dt_proj, mixer.out_proj)
    if not all(is_plain(linear, nn.Linear) for linear in linears):
        return False
    if not is_plain(mixer.conv1d, CausalConv1d):
        return False
    if any(linear.bias is not None for linear in (mixer.in_proj, mixer.x_proj, mixer.out_proj)):
        return False
    narrow = [linear.weight for linear in linears]
    narrow += [norm.weight, mixer.conv1d.weight, mixer.dt_proj.bias, state.conv]
    if mixer.conv1d.bias is not None:
        narrow.append(mixer.conv1d.bias)
    wide = [mixer.A_log, mixer.D]
    if not any(_is_ready(state.ssm, dtype) for dtype in (torch.float32, x.dtype)):
        return False
    return all(_is_ready(t, x.dtype) for t in narrow) and all(_is_ready(t, torch.float32) for t in wide)


def _is_ready(tensor: Tensor, dtype: torch.dtype) -> bool:
    """Whether the kernels can read it as it lies; memory begins on a boundary, a view of it need not."""
    aligned = tensor.storage_offset() * tensor.element_size() % 16 == 0
    return tensor.dtype == dtype and tensor.is_contiguous() and aligned
