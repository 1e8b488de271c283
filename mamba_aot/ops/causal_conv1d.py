"""Causal depthwise convolution of width 2 to 4: over a whole sequence, and one call's new steps at a time."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mamba_aot.ops._boundary import empty_layout_like, is_silu, require_tensors


def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: Tensor | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Convolves each channel with its taps: y_t = bias + sum_k weight_k x_{t-width+1+k}, then SiLU if asked.

    Runs on CPU and CUDA, in the memory order of `x` (sequence-last or channel-last) without copying it, is
    differentiable once in every tensor and deterministic. Sums are float32 (float64 for a float64 `x`).

    Args:
        x: The sequence, [batch, channels, length], float32, float16 or bfloat16 (float64 too on a CPU).
        weight: Taps, [channels, width] with width 2, 3 or 4, any floating dtype; the last tap meets step t.
        bias: Added to every step, [channels], any floating dtype.
        seq_idx: Must be None: packed sequences are not supported.
        initial_states: The width - 1 steps before the first one, [batch, channels, width - 1], dtype of `x`;
            zero when absent.
        return_final_states: Whether the last width - 1 steps are returned too.
        final_states_out: Tensor that the final states are written into, and that is returned for them.
        activation: None, "silu" or "swish" (the same).

    Returns:
        The output, shape and dtype of `x`; with `return_final_states` a pair of it and the final states, the
        `initial_states` of the sequence that follows.

    Raises:
        TypeError: An argument is not a tensor.
        ValueError: A shape, dtype, device or option is not as above; nothing has been computed.
        RuntimeError: The GPU, its driver or a kernel image for it is missing.

    Source: signature and meaning of `causal_conv1d.causal_conv1d_fn`; the convolution of Gu & Dao, "Mamba",
    arXiv 2312.00752, section 3.4.
    """
    require_tensors(
        "causal_conv1d_fn",
        dict(bias=bias, initial_states=initial_states, final_states_out=final_states_out),
        x=x,
        weight=weight,
    )
    if seq_idx is not None:
        raise ValueError(
            "causal_conv1d_fn: seq_idx must be None, packed sequences are not supported by this version; "
            "call once per sequence, or pad the sequences to one length"
        )
    silu = is_silu("causal_conv1d_fn", activation)
    out = torch.ops.mamba_aot.causal_conv1d_fwd(x, weight, bias, initial_states, silu)
    if not return_final_states and final_states_out is None:
        return out
    final_states = _last_steps(x, initial_states, weight.shape[1] - 1)
    if final_states_out is not None:
        final_states = final_states_out.copy_(final_states)
    return (out, final_states) if return_final_states else out


@torch.no_grad()
def causal_conv1d_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    cache_seqlens: Tensor | None = None,
    conv_state_indices: Tensor | None = None,
) -> Tensor:
    """Convolves new steps with the ones kept in `conv_state`, and shifts them into it, in place.

    Args:
        x: New steps, [batch, channels] or [batch, channels, steps], float32, float16 or bfloat16.
        conv_state: The steps before, oldest first, [slots, channels, kept] with kept >= width - 1, dtype of
            `x`, any strides; written in place.
        weight: Taps, [channels, width] with width 2, 3 or 4, any floating dtype.
        bias: Added to every step, [channels], any floating dtype.
        activation: None, "silu" or "swish" (the same).
        cache_seqlens: Must be None: circular states are not supported.
        conv_state_indices: Slot of each batch row, int32 [batch]; row i uses slot i when absent. A negative
            slot marks padding: its output is zero and no state is touched. Live rows name different slots.

    Returns:
        The output, shape and dtype of `x`. Not differentiable.

    Raises:
        TypeError: An argument is not a tensor.
        ValueError: A shape, dtype, device or option is not as above; nothing has been computed or written.
        RuntimeError: The GPU, its driver or a kernel image for it is missing.

    Source: signature and meaning of `causal_conv1d.causal_conv1d_update`.
    """
    require_tensors(
        "causal_conv1d_update",
        dict(bias=bias, conv_state_indices=conv_state_indices),
        x=x,
        conv_state=conv_state,
        weight=weight,
    )
    if cache_seqlens is not None:
        raise ValueError(
            "causal_conv1d_update: cache_seqlens must be None, circular states are not supported by this "
            "version; without it the state is shifted, newest step last"
        )
    silu = is_silu("causal_conv1d_update", activation)
    out = torch.ops.mamba_aot.causal_conv1d_update(x, conv_state, weight, bias, conv_state_indices, silu)
    torch.autograd.graph.increment_version(conv_state)
    return out


def _last_steps(x: Tensor, before: Tensor | None, count: int) -> Tensor:
    """The last `count` steps of the sequence `before` followed by `x`, as a tensor of its own."""
    length = x.shape[2]
    if length >= count:
        return x[..., length - count :].clone(memory_format=torch.contiguous_format)
    if before is None:
        before = x.new_zeros(x.shape[0], x.shape[1], count)
    return torch.cat([before[..., length:], x], dim=2)


@torch.library.register_fake("mamba_aot::causal_conv1d_fwd")
def _(x: Tensor, weight: Tensor, bias: Tensor | None, initial_states: Tensor | None, silu: bool) -> Tensor:
    return empty_layout_like(x)


@torch.library.register_fake("mamba_aot::causal_conv1d_bwd")
def _(
    dout: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, initial_states: Tensor | None, silu: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    def like(tensor: Tensor | None) -> Tensor:
        return x.new_empty(0) if tensor is None else tensor.new_empty(tensor.shape)

    return empty_layout_like(x), like(weight), like(bias), like(initial_states)


@torch.library.register_fake("mamba_aot::causal_conv1d_update")
def _(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    conv_state_indices: Tensor | None,
    silu: bool,
) -> Tensor:
    return x.new_empty(x.shape)


def _setup_context(ctx, inputs: tuple, output: Tensor) -> None:
    *tensors, ctx.silu = inputs
    ctx.save_for_backward(*tensors)


@once_differentiable
def _backward(ctx, dout: Tensor) -> tuple:
    grads = torch.ops.mamba_aot.causal_conv1d_bwd(dout, *ctx.saved_tensors, ctx.silu)
    wanted = [grad if need else None for grad, need in zip(grads, ctx.needs_input_grad, strict=False)]
    return *wanted, None


torch.library.register_autograd("mamba_aot::causal_conv1d_fwd", _backward, setup_context=_setup_context)
