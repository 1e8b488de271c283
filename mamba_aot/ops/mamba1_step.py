"""A token through a layer with a published block, the work between matrix products fused into them; the
product after the last layer, and which token it makes the most probable.
"""

import torch
from torch import Tensor

from mamba_aot.ops._boundary import raises_typed_errors, state_dtype


@torch.no_grad()
@raises_typed_errors
def mamba1_step(
    x: Tensor,
    residual: Tensor | None,
    norm_weight: Tensor | None,
    in_proj: Tensor,
    conv_state: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    x_proj: Tensor,
    dt_proj: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    ssm_state: Tensor,
    out_proj: Tensor,
    next_norm_weight: Tensor | None = None,
    *,
    eps: float = 1e-5,
    next_eps: float = 1e-5,
    residual_in_fp32: bool = False,
) -> tuple[Tensor, Tensor]:
    """Adds `residual`, norms, and takes one step of a `Mamba1` block; writes the new states in place.

    Or the norm of the layer that follows comes after the step, where the parts of the last product are added
    up anyway: a model of many rows takes it there and none before, but in its first layer.

    On a GPU nothing of a few rows is rounded between the products, but for what `conv_state` keeps; what many
    rows pass from one to the next is of the dtype of `x`. How many that are was measured, so the last digits
    of a row depend on how many others there are. All tensors are contiguous and, where no dtype is given, of
    the dtype of `x`.

    Args:
        x: [batch, d_model], float16 or bfloat16; on a CPU float32 or float64, too.
        residual: [batch, d_model], of any floating dtype that is not wider than the arithmetic.
        norm_weight: Of the RMSNorm before the step, [d_model]. Without it `x` is normed already, and
            `residual` is the sum that it was made of.
        in_proj: [2 channels, d_model].
        conv_state: The steps before, oldest first, [batch, channels, taps] or one step fewer.
        conv_weight: [channels, taps].
        conv_bias: [channels].
        x_proj: [rank + 2 state, channels].
        dt_proj: [channels, rank].
        dt_bias: [channels].
        A: Diagonal state matrix, [channels, state], float32; float64 beside a float64 `x`, as D and states.
        D: Skip weight, [channels], float32.
        ssm_state: [batch, channels, state], float32; or of the dtype of `x`, which is half to read and write,
            and forgets small inputs.
        out_proj: [d_model, channels].
        next_norm_weight: Of an RMSNorm of the output and the sum before it, [d_model].
        eps: Added to the mean square.
        next_eps: The same, in the norm after the step.
        residual_in_fp32: Whether the returned sum is float32 at least, not of the dtype of `residual`.

    On a GPU `d_model`, `channels` and `rank` are multiples of 16, `state` is 16 and `taps` at most 4.

    Returns:
        The block's output, shape and dtype of `x`, and the sum of `x` and `residual`. With `next_norm_weight`
        the norm of both, and the sum of both.

    Raises:
        TypeError: An argument is not a tensor.
        ValueError: A shape, dtype, device or layout is not as above, or norms are asked for that make rows
            depend on the batch where MAMBA_AOT_BATCH_INVARIANT is set; nothing has been computed or written.
        RuntimeError: The GPU, its driver or a kernel image for it is missing.

    Source: Gu & Dao, "Mamba", arXiv 2312.00752, section 3.4.
    """
    result = torch.ops.mamba_aot.mamba1_step(
        x,
        residual,
        norm_weight,
        in_proj,
        conv_state,
        conv_weight,
        conv_bias,
        x_proj,
        dt_proj,
        dt_bias,
        A,
        D,
        ssm_state,
        out_proj,
        next_norm_weight,
        eps,
        next_eps,
        residual_in_fp32,
    )
    for state in (conv_state, ssm_state):
        torch.autograd.graph.increment_version(state)
    return result


@torch.no_grad()
@raises_typed_errors
def few_rows_linear(
    x: Tensor,
    weight: Tensor,
    norm_weight: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    eps: float = 1e-5,
) -> Tensor:
    """norm(x + residual) weight^T, the logits of a few tokens, in the time it takes to read the weight.

    Without a `norm_weight` x weight^T. On a CPU torch multiplies single rows more slowly than it reads them,
    in sixteen bits at half the speed of the memory; up to eight rows have a kernel here. On a GPU a single
    row that is normed has one. Other products are torch's. There is no autograd.

    Args:
        x: [batch, width], contiguous, of any floating dtype; on a GPU not float64.
        weight: [rows, width], contiguous, of the dtype of `x`.
        norm_weight: Of an RMSNorm before it, [width], of the dtype of `x`.
        residual: Added to `x` before the norm, [batch, width], of any floating dtype that is not wider than
            the arithmetic.
        eps: Added to the mean square.

    Returns:
        [batch, rows], of the dtype of `x`.

    Raises:
        TypeError: An argument is not a tensor.
        ValueError: A shape, dtype, device or layout is not as above.
    """
    return torch.ops.mamba_aot.few_rows_linear(x, weight, norm_weight, residual, eps)


@torch.no_grad()
@raises_typed_errors
def argmax_rows(x: Tensor) -> Tensor:
    """`x.argmax(-1)` for the few long rows that logits are, and the first of several that are equal.

    On a GPU torch gives a row to one group of threads, which takes longer than reading it.

    Args:
        x: [rows, size], of any floating dtype; on a GPU not float64. A row lies side by side.

    Returns:
        [rows], int64. NaN is greater than any number.

    Raises:
        TypeError: `x` is not a tensor.
        ValueError: A shape, dtype or layout is not as above.
        RuntimeError: The GPU, its driver or a kernel image for it is missing.
    """
    return torch.ops.mamba_aot.argmax_rows(x)


@torch.library.register_fake("mamba_aot::mamba1_step")
def _(
    x: Tensor,
    residual: Tensor | None,
    norm_weight: Tensor | None,
    in_proj: Tensor,
    conv_state: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    x_proj: Tensor,
    dt_proj: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    ssm_state: Tensor,
    out_proj: Tensor,
    next_norm_weight: Tensor | None,
    eps: float,
    next_eps: float,
    wide_sum: bool,
) -> tuple[Tensor, Tensor]:
    of_sum = x if residual is None else residual
    return x.new_empty(x.shape), x.new_empty(x.shape, dtype=state_dtype(x) if wide_sum else of_sum.dtype)


@torch.library.register_fake("mamba_aot::few_rows_linear")
def _(x: Tensor, weight: Tensor, norm_weight: Tensor | None, residual: Tensor | None, eps: float) -> Tensor:
    return x.new_empty((x.shape[0], weight.shape[0]))


@torch.library.register_fake("mamba_aot::argmax_rows")
def _(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[:1], dtype=torch.int64)
