"""What a Mamba block does between its two projections of the model's width, and the second of these.

A composition of this package's ops with plain linear layers. What is its own is what autograd keeps: with
`checkpoint_lvl=1` neither the convolved sequence nor the step sizes, which the backward makes again.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_aot.ops._boundary import as_pairs, raises_typed_errors, state_dtype
from mamba_aot.ops._gradients import is_transformed, needs_gradient, once, run
from mamba_aot.ops.causal_conv1d import causal_conv1d_fn
from mamba_aot.ops.rms_norm import rms_norm_fn


class _Inputs(NamedTuple):
    """The tensors that the scan's arguments are made of, named as in `mamba_inner_fn`."""

    xz: Tensor
    conv1d_weight: Tensor
    conv1d_bias: Tensor | None
    x_proj_weight: Tensor
    delta_proj_weight: Tensor
    A: Tensor
    B: Tensor | None
    C: Tensor | None
    D: Tensor | None
    delta_bias: Tensor | None
    B_proj_bias: Tensor | None
    C_proj_bias: Tensor | None
    b_rms_weight: Tensor | None
    c_rms_weight: Tensor | None
    dt_rms_weight: Tensor | None

    @property
    def numbers(self) -> int:
        """Real numbers in one step of B or of C."""
        return self.A.shape[1] * (2 if self.A.is_complex() else 1)


@raises_typed_errors
def mamba_inner_fn(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
    checkpoint_lvl: int = 1,
    b_rms_weight: Tensor | None = None,
    c_rms_weight: Tensor | None = None,
    dt_rms_weight: Tensor | None = None,
    b_c_dt_rms_eps: float = 1e-6,
) -> Tensor:
    """Convolution with SiLU, projection to delta, B and C, selective scan with gate, projection out.

    With x, z the halves of `xz` and u = silu(conv(x)): `x_proj_weight` takes u to a low-rank delta, B and C;
    `delta_proj_weight` takes delta to all channels; y = `selective_scan_fn(u, delta, A, B, C, D, z,
    delta_bias, delta_softplus)`; the result is y through `out_proj_weight`.

    Runs on CPU and CUDA, in the memory order of `xz`, and is differentiable once in every tensor, the weights
    of the norms among them. Under autocast, `xz` and the projections are taken in autocast's dtype.

    Args:
        xz: The sequence and its gate, [batch, 2 * channels, length], float32, float16 or bfloat16 (float64
            too on a CPU).
        conv1d_weight: Taps, [channels, 1, width] with width 1 to 64, any floating dtype.
        conv1d_bias: [channels], any floating dtype, or None.
        x_proj_weight: [rank + numbers of B + numbers of C, channels], dtype of `xz`, where B and C have
            `state` numbers each, 2 * state (re, im of each state) beside a complex `A`, none where given.
        delta_proj_weight: [channels, rank], dtype of `xz`.
        out_proj_weight: [d_model, channels], dtype of `xz`.
        out_proj_bias: [d_model], any floating dtype, or None.
        A: Diagonal state matrix, [channels, state], real or complex.
        B: Input weights of all steps, [channels, state], complex if `A` is; when None they come from `xz`.
        C: Output weights of all steps, as `B`.
        D: Skip weight, [channels].
        delta_bias: Added to delta, [channels].
        B_proj_bias: Added to a projected B, [numbers of B].
        C_proj_bias: Added to a projected C, [numbers of C].
        delta_softplus: Whether delta goes through softplus.
        checkpoint_lvl: 0 keeps the convolved sequence and delta for the backward, 1 makes them again there,
            but not the scan. (Under torch.compile, the compiler decides.)
        b_rms_weight: Norms B of each step, bias included, as `rms_norm_fn`, [numbers of B].
        c_rms_weight: Norms C of each step, [numbers of C].
        dt_rms_weight: Norms delta of each step over all channels, before `delta_bias`, [channels].
        b_c_dt_rms_eps: The `eps` of these norms.

    Returns:
        [batch, length, d_model], dtype of `xz`.

    Raises:
        TypeError: An argument is not a tensor.
        ValueError: A shape, dtype, device or option is not as above; nothing has been computed.
        RuntimeError: The GPU, its driver or a kernel image for it is missing.

    Source: signature and meaning of `mamba_ssm.ops.selective_scan_interface.mamba_inner_fn`, which gives no
    gradient to the weights of the norms; Gu & Dao, "Mamba", arXiv 2312.00752, section 3.4.
    """
    if checkpoint_lvl not in (0, 1):
        raise ValueError(f"mamba_inner_fn: checkpoint_lvl must be 0 or 1, got {checkpoint_lvl!r}")
    device = xz.device.type
    if torch.is_autocast_enabled(device) and xz.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
        xz, x_proj_weight, delta_proj_weight, out_proj_weight = (
            t.to(dtype) for t in (xz, x_proj_weight, delta_proj_weight, out_proj_weight)
        )
    inputs = _Inputs(
        xz,
        conv1d_weight,
        conv1d_bias,
        x_proj_weight,
        delta_proj_weight,
        A,
        B,
        C,
        D,
        delta_bias,
        B_proj_bias,
        C_proj_bias,
        b_rms_weight,
        c_rms_weight,
        dt_rms_weight,
    )
    _require_fit(inputs, out_proj_weight, out_proj_bias)
    saves = needs_gradient(inputs)
    as_written = torch.compiler.is_compiling() or is_transformed()
    # Everything has its dtype by now.
    with torch.autocast(device, enabled=False):
        if saves and checkpoint_lvl == 1 and not as_written:
            y = _Recomputed.apply(delta_softplus, b_c_dt_rms_eps, *inputs)
        else:
            y = _scan(_scan_arguments(inputs, b_c_dt_rms_eps), delta_softplus, saves)[0]
        return _projected_out(y, out_proj_weight, out_proj_bias)


class _Recomputed(torch.autograd.Function):
    """The scan of what `_scan_arguments` makes, which is made again in the backward."""

    @staticmethod
    def forward(ctx, delta_softplus: bool, eps: float, *tensors: Tensor | None) -> Tensor:
        out, _, states = _scan(_scan_arguments(_Inputs._make(tensors), eps), delta_softplus, save_states=True)
        ctx.save_for_backward(*tensors, states)
        ctx.delta_softplus, ctx.eps = delta_softplus, eps
        return out

    @staticmethod
    @once("mamba_inner_fn")
    def backward(ctx, dout: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, states = ctx.saved_tensors
        needed = ctx.needs_input_grad[2:]
        leaves = [
            None if tensor is None else tensor.detach().requires_grad_(need)
            for tensor, need in zip(tensors, needed, strict=True)
        ]
        with torch.autocast(dout.device.type, enabled=False):
            with torch.enable_grad():
                arguments = _scan_arguments(_Inputs._make(leaves), ctx.eps)
            *grads, _gate, _state = torch.ops.mamba_aot.selective_scan_bwd(
                dout, None, *arguments, None, None, None, states, ctx.delta_softplus, False, False
            )
            pairs = zip(arguments, grads, strict=True)
            reached = [(t, grad) for t, grad in pairs if t is not None and t.requires_grad]
            wanted = [leaf for leaf in leaves if leaf is not None and leaf.requires_grad]
            found = iter(torch.autograd.grad([t for t, _ in reached], wanted, [grad for _, grad in reached]))
        return None, None, *(next(found) if need else None for need in needed)


def _scan(
    arguments: tuple[Tensor | None, ...], delta_softplus: bool, save_states: bool
) -> tuple[Tensor, Tensor, Tensor]:
    op = torch.ops.mamba_aot.selective_scan_fwd.default
    return run(op, (*arguments, None, None, None, None), delta_softplus, False, save_states)


def _scan_arguments(inputs: _Inputs, eps: float) -> tuple[Tensor | None, ...]:
    """u, delta, A, B, C, D, z, delta_bias as the scan's op takes them."""
    x, z = inputs.xz.chunk(2, dim=1)
    u = causal_conv1d_fn(x, inputs.conv1d_weight.squeeze(1), inputs.conv1d_bias, activation="silu")
    assert isinstance(u, Tensor)
    rank = inputs.delta_proj_weight.shape[1]
    sizes = [rank, *(inputs.numbers if given is None else 0 for given in (inputs.B, inputs.C))]
    low, B, C = _projected(u, inputs.x_proj_weight).split(sizes, dim=1)  # each [B, size, L]
    delta = _projected(low, inputs.delta_proj_weight)
    if inputs.dt_rms_weight is not None:
        delta = _normed(delta, inputs.dt_rms_weight, eps)
    B = _op_weight(inputs, inputs.B, B, inputs.B_proj_bias, inputs.b_rms_weight, eps)
    C = _op_weight(inputs, inputs.C, C, inputs.C_proj_bias, inputs.c_rms_weight, eps)
    A = as_pairs(inputs.A) if inputs.A.is_complex() else inputs.A
    return u, delta, A, B, C, inputs.D, z, inputs.delta_bias


def _op_weight(
    inputs: _Inputs,
    constant: Tensor | None,
    projected: Tensor,
    bias: Tensor | None,
    norm: Tensor | None,
    eps: float,
) -> Tensor:
    """B or C as the op takes it: [batch, 1, state, length] or [channels, state], beside a complex A with a
    last dim of 2.
    """
    if constant is not None:
        return as_pairs(constant) if constant.is_complex() else constant
    # Wide from here on, which costs little: a step of B or C is far smaller than one of u.
    projected = projected.to(state_dtype(projected))
    if bias is not None:
        projected = projected + bias[:, None]
    if norm is not None:
        projected = _normed(projected, norm, eps)
    if inputs.A.is_complex():
        projected = projected.unflatten(1, (-1, 2)).movedim(2, -1)
    return projected.unsqueeze(1)


def _projected(sequence: Tensor, weight: Tensor) -> Tensor:
    """[B, channels, L] through a linear layer, in the memory order of `sequence` and without copying it.

    Which product that takes is said here: F.linear would choose by whether gradients are wanted, and round
    differently then.
    """
    if sequence.stride(1) == 1:
        return F.linear(sequence.transpose(1, 2), weight).transpose(1, 2)
    return torch.bmm(weight.expand(sequence.shape[0], -1, -1), sequence)


def _projected_out(y: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """[B, channels, L] through a linear layer to contiguous [B, L, d_model]."""
    rows = y.transpose(1, 2)
    if rows.stride(2) == 1:
        return F.linear(rows, weight, None if bias is None else bias.to(y.dtype))
    out = torch.bmm(rows, weight.T.expand(rows.shape[0], -1, -1))
    return out if bias is None else out + bias.to(y.dtype)


def _normed(sequence: Tensor, weight: Tensor, eps: float) -> Tensor:
    """[B, channels, L], normed over the channels."""
    normed = rms_norm_fn(sequence.transpose(1, 2), weight, eps=eps)
    assert isinstance(normed, Tensor)
    return normed.transpose(1, 2)


def _require_fit(inputs: _Inputs, out_proj_weight: Tensor, out_proj_bias: Tensor | None) -> None:
    """Checks what the ops below don't: the shapes and dtypes that belong together."""
    xz, A = inputs.xz, inputs.A
    if xz.dim() != 3 or xz.shape[1] % 2:
        raise ValueError(f"mamba_inner_fn: xz must be [batch, 2 * channels, length], got {list(xz.shape)}")
    channels = xz.shape[1] // 2
    if A.dim() != 2:
        raise ValueError(f"mamba_inner_fn: A must be [channels, state], got {list(A.shape)}")
    for name, matrix in (
        ("delta_proj_weight", inputs.delta_proj_weight),
        ("out_proj_weight", out_proj_weight),
    ):
        if matrix.dim() != 2:
            first = "[channels, rank]" if name == "delta_proj_weight" else "[d_model, channels]"
            raise ValueError(f"mamba_inner_fn: {name} must be {first}, got {list(matrix.shape)}")
    state, numbers, rank = A.shape[1], inputs.numbers, inputs.delta_proj_weight.shape[1]
    rows = rank + sum(numbers for given in (inputs.B, inputs.C) if given is None)
    width = inputs.conv1d_weight.shape[-1] if inputs.conv1d_weight.dim() else 0
    kind = "2 * state" if A.is_complex() else "state"
    for name, tensor, dims, shape in (
        ("conv1d_weight", inputs.conv1d_weight, "channels, 1, width", (channels, 1, width)),
        ("A", A, "channels, state", (channels, state)),
        ("delta_proj_weight", inputs.delta_proj_weight, "channels, rank", (channels, rank)),
        ("x_proj_weight", inputs.x_proj_weight, "rank + numbers of B and C, channels", (rows, channels)),
        ("out_proj_weight", out_proj_weight, "d_model, channels", (out_proj_weight.shape[0], channels)),
        ("out_proj_bias", out_proj_bias, "d_model", (out_proj_weight.shape[0],)),
        ("B", inputs.B, "channels, state", (channels, state)),
        ("C", inputs.C, "channels, state", (channels, state)),
        ("B_proj_bias", inputs.B_proj_bias, kind, (numbers,)),
        ("C_proj_bias", inputs.C_proj_bias, kind, (numbers,)),
        ("b_rms_weight", inputs.b_rms_weight, kind, (numbers,)),
        ("c_rms_weight", inputs.c_rms_weight, kind, (numbers,)),
        ("dt_rms_weight", inputs.dt_rms_weight, "channels", (channels,)),
    ):
        if tensor is None:
            continue
        if tensor.shape != shape:
            raise ValueError(
                f"mamba_inner_fn: {name} must be [{dims}] = {list(shape)}, got {list(tensor.shape)}"
            )
        if tensor.device != xz.device:
            raise ValueError(
                f"mamba_inner_fn: {name} must be on {xz.device} like xz, got {tensor.device}. Move it with "
                ".to(xz.device)."
            )
    for name, bias in (
        ("out_proj_bias", out_proj_bias),
        ("B_proj_bias", inputs.B_proj_bias),
        ("C_proj_bias", inputs.C_proj_bias),
    ):
        if bias is not None and not bias.is_floating_point():
            raise ValueError(
                f"mamba_inner_fn: {name} must be real and floating, got {bias.dtype}. "
                "Convert it with .float()."
            )
    for name, weight in (
        ("x_proj_weight", inputs.x_proj_weight),
        ("delta_proj_weight", inputs.delta_proj_weight),
        ("out_proj_weight", out_proj_weight),
    ):
        if weight.dtype != xz.dtype:
            raise ValueError(
                f"mamba_inner_fn: {name} must have the dtype of xz, {xz.dtype}, got {weight.dtype}. "
                f"Convert one of them, or call under torch.autocast."
            )
    for name, given, bias, norm in (
        ("B", inputs.B, inputs.B_proj_bias, inputs.b_rms_weight),
        ("C", inputs.C, inputs.C_proj_bias, inputs.c_rms_weight),
    ):
        if given is None:
            continue
        if given.is_complex() != A.is_complex():
            kind = "complex" if A.is_complex() else "real"
            raise ValueError(f"mamba_inner_fn: {name} must be {kind} because A is, got {given.dtype}")
        for option, value in ((f"{name}_proj_bias", bias), (f"{name.lower()}_rms_weight", norm)):
            if value is not None:
                raise ValueError(
                    f"mamba_inner_fn: {option} must be None because {name} is given, it is for a projected "
                    f"{name}; apply it to {name} before the call"
                )
