"""RMSNorm and LayerNorm of rows: after a fused residual addition, or with a gate through SiLU."""

from numbers import Real

import torch
from torch import Tensor

from mamba_aot.ops._boundary import raises_typed_errors, state_dtype
from mamba_aot.ops._gradients import register_gradient, run

_NUMBERS = (float, Real, torch.SymFloat)


@raises_typed_errors
def rms_norm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    x1: Tensor | None = None,
    weight1: Tensor | None = None,
    bias1: Tensor | None = None,
    eps: float = 1e-6,
    dropout_p: float = 0.0,
    rowscale: Tensor | None = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    return_dropout_mask: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Adds a residual, then RMSNorm: u = x + residual, y = u / sqrt(mean(u^2) + eps) * weight + bias.

    Runs on CPU and CUDA, reads any strides without copying rows, is differentiable once in every tensor and
    deterministic. Sums are float32 (float64 for a float64 `x`), u among them until it is stored.

    Args:
        x: Rows, [..., channels], float32, float16 or bfloat16 (float64 too on a CPU).
        weight: Scale of every channel, [channels], any floating dtype.
        bias: Added to every row, [channels], any floating dtype.
        residual: Added to `x` before the norm, shape of `x`; its dtype may be another one than that of `x`.
        x1: Must be None, like `weight1` and `bias1`: a second branch is not supported.
        eps: Added to the mean square.
        dropout_p: Must be 0: dropout is not supported.
        rowscale: Must be None: scaled rows are not supported.
        prenorm: Whether x + residual is returned too.
        residual_in_fp32: Whether that sum is float32 (float64 for a float64 `x`), whatever dtype goes in.
        return_dropout_mask: Must be False: dropout is not supported.

    Returns:
        The output, shape and dtype of `x`; with `prenorm` a pair of it and the sum, the `residual` of the
        norm that follows, in the dtype of `residual`, or of `x` without one.

    Raises:
        TypeError: An argument is not a tensor.
        ValueError: A shape, dtype, device or option is not as above; nothing has been computed.
        RuntimeError: The GPU, its driver or a kernel image for it is missing.

    Source: signature and meaning of `mamba_ssm.ops.triton.layer_norm.rms_norm_fn`; Zhang & Sennrich, "Root
    Mean Square Layer Normalization", arXiv 1910.07467.
    """
    _refuse("rms_norm_fn", x1, weight1, bias1, dropout_p, rowscale, return_dropout_mask)
    return _add_and_norm(
        "rms_norm_fn", x, weight, bias, residual, eps, prenorm, residual_in_fp32, centered=False
    )


@raises_typed_errors
def layer_norm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    x1: Tensor | None = None,
    weight1: Tensor | None = None,
    bias1: Tensor | None = None,
    eps: float = 1e-6,
    dropout_p: float = 0.0,
    rowscale: Tensor | None = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    is_rms_norm: bool = False,
    return_dropout_mask: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Adds a residual and normalizes each row to mean 0 and variance 1; with `is_rms_norm` as `rms_norm_fn`.

    Args, returns and errors are those of `rms_norm_fn`.

    Source: signature and meaning of `mamba_ssm.ops.triton.layer_norm.layer_norm_fn`; Ba, Kiros & Hinton,
    "Layer Normalization", arXiv 1607.06450.
    """
    _refuse("layer_norm_fn", x1, weight1, bias1, dropout_p, rowscale, return_dropout_mask)
    return _add_and_norm(
        "layer_norm_fn", x, weight, bias, residual, eps, prenorm, residual_in_fp32, centered=not is_rms_norm
    )


@raises_typed_errors
def rmsnorm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None = None,
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
) -> Tensor:
    """Divides groups of channels by their root mean square, with a gate: norm(x) silu(z), or norm(x silu(z)).

    Runs on CPU and CUDA, reads any strides without copying rows, is differentiable once in every tensor and
    deterministic. Sums are float32 (float64 for a float64 `x`).

    Args:
        x: Rows, [..., channels], float32, float16 or bfloat16 (float64 too on a CPU).
        weight: Scale of every channel, [channels], any floating dtype.
        bias: Added to every row, [channels], any floating dtype.
        z: The gate, shape of `x`, in one of its dtypes (float64 only if `x` is; when the two differ, a GPU
            takes float32 copies of them); no gate when absent.
        eps: Added to the mean square.
        group_size: Channels that are normalized together, a divisor of their number; all of them when absent.
        norm_before_gate: Whether the gate multiplies the result of the norm, and not what goes into it.

    Returns:
        The output, shape and dtype of `x`.

    Raises:
        TypeError: An argument is not a tensor.
        ValueError: A shape, dtype, device or option is not as above; nothing has been computed.
        RuntimeError: The GPU, its driver or a kernel image for it is missing.

    Source: signature and meaning of `mamba_ssm.ops.triton.layernorm_gated.rmsnorm_fn`; Dao & Gu,
    "Transformers are SSMs", arXiv 2405.21060.
    """
    return _gated_norm("rmsnorm_fn", x, weight, bias, z, eps, group_size, norm_before_gate, centered=False)


@raises_typed_errors
def layernorm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None = None,
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
    is_rms_norm: bool = False,
) -> Tensor:
    """Normalizes groups of channels to mean 0 and variance 1, with a gate as in `rmsnorm_fn`.

    Args, returns, errors and source are those of `rmsnorm_fn`, which is what `is_rms_norm` makes of it.
    """
    return _gated_norm(
        "layernorm_fn", x, weight, bias, z, eps, group_size, norm_before_gate, centered=not is_rms_norm
    )


def _refuse(
    function: str,
    x1: object,
    weight1: object,
    bias1: object,
    dropout_p: float,
    rowscale: object,
    return_dropout_mask: bool,
) -> None:
    for name, value in (("x1", x1), ("weight1", weight1), ("bias1", bias1)):
        if value is not None:
            raise ValueError(
                f"{function}: {name} must be None, a second branch is not supported by this version; "
                f"add x1 to residual, and norm the returned sum with weight1 by a second call"
            )
    if dropout_p != 0.0 or return_dropout_mask:
        name, wanted, got = (
            ("dropout_p", "0.0", dropout_p) if dropout_p != 0.0 else ("return_dropout_mask", "False", True)
        )
        raise ValueError(
            f"{function}: {name} must be {wanted}, dropout is not supported by this version, got {got!r}; "
            f"apply torch.nn.functional.dropout to x"
        )
    if rowscale is not None:
        raise ValueError(
            f"{function}: rowscale must be None, scaled rows are not supported by this version; "
            f"pass x * rowscale[..., None]"
        )


def _add_and_norm(
    function: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    prenorm: bool,
    residual_in_fp32: bool,
    centered: bool,
) -> Tensor | tuple[Tensor, Tensor]:
    _require_like(function, x, "residual", residual)
    _require_eps(function, eps)
    tensors = (_as_rows(x), weight, bias, _as_rows(residual), None)
    op = torch.ops.mamba_aot.rms_norm_fwd.default
    out, total, _, _ = run(op, tensors, eps, 0, centered, None, prenorm, residual_in_fp32)
    return (_shaped_as(x, out), _shaped_as(x, total)) if prenorm else _shaped_as(x, out)


def _require_eps(function: str, eps: float) -> None:
    if not isinstance(eps, _NUMBERS) or not eps >= 0:
        raise ValueError(f"{function}: eps must be a number of at least 0, got {eps!r}")


def _gated_norm(
    function: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None,
    eps: float,
    group_size: int | None,
    norm_before_gate: bool,
    centered: bool,
) -> Tensor:
    _require_like(function, x, "z", z)
    _require_eps(function, eps)
    if group_size is not None and group_size < 1:
        raise ValueError(f"{function}: group_size must be at least 1 or None, got {group_size!r}")
    tensors = (_as_rows(x), weight, bias, None, _as_rows(z))
    op = torch.ops.mamba_aot.rms_norm_fwd.default
    out, _, _, _ = run(op, tensors, eps, group_size or 0, centered, norm_before_gate, False, False)
    return _shaped_as(x, out)


def _require_like(function: str, x: Tensor, name: str, other: Tensor | None) -> None:
    if x.dim() == 0:
        raise ValueError(f"{function}: x must be [..., channels], got a tensor without dimensions")
    if other is not None and other.shape != x.shape:
        raise ValueError(
            f"{function}: {name} must have the shape of x, {list(x.shape)}, got {list(other.shape)}"
        )


def _as_rows(x: Tensor | None) -> Tensor | None:
    """[..., channels] as the op takes it, [batch, rows, channels]: a view unless batches do not line up."""
    if x is None or x.dim() == 3:
        return x
    if x.dim() > 3:
        return x.flatten(0, -3)
    return x.unsqueeze(0) if x.dim() == 2 else x[None, None]


def _shaped_as(x: Tensor, rows: Tensor) -> Tensor:
    """The op's [batch, rows, channels] in the shape of x."""
    # A view that changes nothing takes the host a microsecond.
    return rows if x.dim() == 3 else rows.view(x.shape)


@torch.library.register_fake("mamba_aot::rms_norm_fwd")
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    z: Tensor | None,
    eps: float,
    group_size: int,
    centered: bool,
    norm_before_gate: bool | None,
    keep_sum: bool,
    wide_sum: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    wide = state_dtype(x)
    groups = x.shape[2] // group_size if group_size else 1
    sum_dtype = wide if wide_sum else x.dtype if residual is None else residual.dtype
    total = x.new_empty(x.shape, dtype=sum_dtype) if keep_sum else x.new_empty(0)
    rstd = x.new_empty((*x.shape[:2], groups), dtype=wide)
    return x.new_empty(x.shape), total, torch.empty_like(rstd) if centered else rstd.new_empty(0), rstd


@torch.library.register_fake("mamba_aot::rms_norm_bwd")
def _(
    dout: Tensor,
    dsum: Tensor | None,
    x: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    z: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    eps: float,
    group_size: int,
    centered: bool,
    norm_before_gate: bool | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    def like(tensor: Tensor | None) -> Tensor:
        return dout.new_empty(0) if tensor is None else tensor.new_empty(tensor.shape)

    dresidual = None if residual is None or residual.dtype == dout.dtype else residual
    return like(dout), like(weight), like(bias), like(dresidual), like(z)


def _setup_context(ctx, inputs: tuple, output: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    x, weight, bias, residual, z, *ctx.options, keep_sum, _wide_sum = inputs
    _, total, mean, rstd = output
    ctx.x_dtype = x.dtype
    if keep_sum and residual is not None and total.dtype == residual.dtype == rstd.dtype:
        # The sum was not rounded: it says all that the backward needs, and the next norm keeps it anyway.
        x, residual = None, total
    ctx.save_for_backward(x, weight, bias, residual, z, mean, rstd)
    ctx.mark_non_differentiable(mean, rstd, *(() if keep_sum else (total,)))
    # A result that the loss does not use arrives in the backward as None, not as a tensor of zeros.
    ctx.set_materialize_grads(False)


def _backward(ctx, dout: Tensor | None, dsum: Tensor | None, _dmean: None, _drstd: None) -> tuple:
    if dout is None:
        if dsum is None:
            return (None,) * 11
        dout = torch.zeros_like(dsum, dtype=ctx.x_dtype)
    # Read once: under activation checkpointing every reading recomputes the forward.
    saved = ctx.saved_tensors
    residual = saved[3]
    dx, dweight, dbias, dresidual, dz = torch.ops.mamba_aot.rms_norm_bwd(dout, dsum, *saved, *ctx.options)
    if residual is not None and residual.dtype == dout.dtype:
        dresidual = dx
    grads = (dx, dweight, dbias, dresidual, dz)
    wanted = [grad if need else None for grad, need in zip(grads, ctx.needs_input_grad, strict=False)]
    return *wanted, *(None,) * 6


register_gradient(torch.ops.mamba_aot.rms_norm_fwd.default, "rms_norm_fn", _backward, _setup_context)
