"""Causal depthwise convolution of width 1 to 64: over whole sequences, and one call's new steps at a time."""

from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from mamba_aot.ops._boundary import (
    empty_layout_like,
    is_silu,
    raises_typed_errors,
    untracked,
)
from mamba_aot.ops._gradients import register_gradient, run


@raises_typed_errors
def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: Tensor | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
    *,
    cu_seqlens: Tensor | None = None,
    validate: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Convolves each channel with its taps: y_t = bias + sum_k weight_k x_{t-width+1+k}, then SiLU if asked.

    Runs on CPU and CUDA, in the memory order of `x` (sequence-last or channel-last) without copying it, is
    differentiable once in every tensor and deterministic. Sums are float32 (float64 for a float64 `x`).

    Sequences may be packed, so that the filter stays within each: by `seq_idx`, several in each batch row, or
    by `cu_seqlens`, all in one row. Both work in any memory order, with initial and final states.

    Args:
        x: The sequence, [batch, channels, length], float32, float16 or bfloat16 (float64 too on a CPU).
        weight: Taps, [channels, width] with width 1 to 64, any floating dtype; the last tap meets step t.
        bias: Added to every step, [channels], any floating dtype.
        seq_idx: Index of each step's sequence, int32 [batch, length]; where it changes, a sequence ends. A
            negative index marks padding: its output and gradient are zero, whatever `x` holds there.
        initial_states: The width - 1 steps before the first one, [batch, channels, width - 1], dtype of `x`;
            zero when absent. With `seq_idx` they come before the sequence at step 0 of the row, if that is
            not padding; with `cu_seqlens` there is one for each sequence, [sequences, channels, width - 1].
        return_final_states: Whether the last width - 1 steps are returned too: with `seq_idx` those of the
            row's last sequence (zero for a row of padding), with `cu_seqlens` those of each sequence.
        final_states_out: Tensor that the final states are written into, and that is returned for them; shape
            of `initial_states`, dtype of `x`, any strides.
        activation: None, "silu" or "swish" (the same).
        cu_seqlens: Where the sequences packed in the one row of `x` [1, channels, length] end, int32
            [sequences + 1]: 0, then the lengths summed up. Sequences may be empty.
        validate: Whether the values of a `cu_seqlens` on a GPU are checked too, for which the host waits; on
            a CPU they always are. Unchecked, steps that wrong values leave out are padding.

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
    silu = is_silu("causal_conv1d_fn", activation)
    if final_states_out is not None:
        _require_fit(final_states_out, x, weight, cu_seqlens)
    sequences = None
    if seq_idx is not None or cu_seqlens is not None:
        sequences = _sequences(x, weight, seq_idx, cu_seqlens, initial_states, validate)
    op = torch.ops.mamba_aot.causal_conv1d_fwd.default
    tensors = (x, weight, bias, initial_states, sequences)
    out = run(op, tensors, silu)
    if not return_final_states and final_states_out is None:
        return out
    count = weight.shape[1] - 1
    if cu_seqlens is not None:
        final_states = _ends_of_sequences(x, cu_seqlens, count, initial_states)
    elif seq_idx is not None:
        assert sequences is not None
        final_states = _ends_of_rows(x, seq_idx, sequences, count, initial_states)
    else:
        final_states = _last_steps(x, initial_states, count)
    if final_states_out is not None:
        final_states = final_states_out.copy_(final_states)
    return (out, final_states) if return_final_states else out


@raises_typed_errors
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
        weight: Taps, [channels, width] with width 1 to 64, any floating dtype.
        bias: Added to every step, [channels], any floating dtype.
        activation: None, "silu" or "swish" (the same).
        cache_seqlens: Steps that each sequence has seen, int32 [batch]. When given, the state is a ring that
            nothing is shifted in: new step i is written at (cache_seqlens + i) % kept, where the oldest was.
        conv_state_indices: Slot of each batch row, int32 [batch]; row i uses slot i when absent. A negative
            slot marks padding: its output is zero and no state is touched. Live rows name different slots.
            A slot that does not exist is an error on a CPU, and padding on a GPU.

    Returns:
        The output, shape and dtype of `x`. Not differentiable.

    Raises:
        TypeError: An argument is not a tensor.
        ValueError: A shape, dtype, device or option is not as above; nothing has been computed or written.
        RuntimeError: The GPU, its driver or a kernel image for it is missing.

    Source: signature and meaning of `causal_conv1d.causal_conv1d_update`.
    """
    silu = is_silu("causal_conv1d_update", activation)
    op = torch.ops.mamba_aot.causal_conv1d_update.default
    out = untracked(op, x, conv_state, weight, bias, cache_seqlens, conv_state_indices, silu)
    torch.autograd.graph.increment_version(conv_state)
    return out


@raises_typed_errors
def causal_conv1d_varlen_states(x: Tensor, cu_seqlens: Tensor, state_len: int) -> Tensor:
    """The last `state_len` steps of each packed sequence, behind zeros where it is shorter.

    Runs on CPU and CUDA without waiting for the device, and is differentiable. The values of `cu_seqlens` are
    not checked: no wrong ones read outside `x`.

    Args:
        x: The sequences one after the other, [length, channels], any dtype and strides.
        cu_seqlens: Where they end, int32 [sequences + 1]: 0, then the lengths summed up.
        state_len: Steps to take of each.

    Returns:
        [sequences, channels, state_len], dtype of `x`: a `conv_state` for `causal_conv1d_update`.

    Raises:
        TypeError: An argument is not a tensor.
        ValueError: A shape, dtype or device is not as above.

    Source: signature and meaning of `causal_conv1d.causal_conv1d_varlen_states`.
    """
    fn = "causal_conv1d_varlen_states"
    if x.dim() != 2:
        raise ValueError(f"{fn}: x must be [length, channels] (2 dimensions), got {list(x.shape)}")
    if cu_seqlens.dtype != torch.int32:
        got = str(cu_seqlens.dtype).removeprefix("torch.")
        raise ValueError(f"{fn}: cu_seqlens must be int32, got {got}. Convert it with .to(torch.int32).")
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] == 0:
        raise ValueError(f"{fn}: cu_seqlens must be [sequences + 1], got {list(cu_seqlens.shape)}")
    if cu_seqlens.device != x.device:
        raise ValueError(
            f"{fn}: cu_seqlens must be on {x.device} like x, got {cu_seqlens.device}. "
            "Move it with .to(x.device)."
        )
    is_integer = isinstance(state_len, Integral | torch.SymInt) and not isinstance(state_len, bool)
    if not is_integer or state_len < 0:
        raise ValueError(f"{fn}: state_len must be an integer of at least 0, got {state_len!r}")
    return _ends_of_sequences(x.T.unsqueeze(0), cu_seqlens, state_len, None)


def _require_fit(out: Tensor, x: Tensor, weight: Tensor, cu_seqlens: Tensor | None) -> None:
    """Raises ValueError unless final states fit into `out`. What else does not fit, the op refuses."""
    name = "causal_conv1d_fn: final_states_out"
    if x.dim() != 3 or weight.dim() != 2 or (cu_seqlens is not None and cu_seqlens.dim() != 1):
        return
    rows = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    dims = "batch" if cu_seqlens is None else "sequences"
    shape = (rows, x.shape[1], weight.shape[1] - 1)
    if out.shape != shape:
        raise ValueError(
            f"{name} must be [{dims}, channels, width - 1] = {list(shape)}, got {list(out.shape)}"
        )
    for what, got, wanted in (("of", out.dtype, x.dtype), ("on", out.device, x.device)):
        if got != wanted:
            raise ValueError(f"{name} must be {what} {wanted} like x, got {got}. Pass one that is.")
    if _shares_elements(out):
        raise ValueError(
            f"{name} is written, so its elements must not share memory; got strides {list(out.stride())}. "
            "Pass a tensor of its own."
        )


def _shares_elements(tensor: Tensor) -> bool:
    """Whether two elements may lie in the same place: a step along one dimension has to pass all others'."""
    reach = 0
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride <= reach:
            return True
        reach += stride * (size - 1)
    return False


def _sequences(
    x: Tensor,
    weight: Tensor,
    seq_idx: Tensor | None,
    cu_seqlens: Tensor | None,
    initial_states: Tensor | None,
    validate: bool,
) -> Tensor:
    """Of each step, where its sequence starts and its row of the initial states, int32 [2, B, L]."""
    x, weight = x.detach(), weight.detach()
    before = None if initial_states is None else initial_states.detach()
    sequences = torch.ops.mamba_aot.causal_conv1d_sequences(x, weight, seq_idx, cu_seqlens, before)
    if validate and cu_seqlens is not None and not cu_seqlens.is_cpu:
        # The CPU half reads the values; of x it only needs the shape.
        length = x.new_empty(1, 1, 1, device="cpu").expand(1, 1, x.shape[2])
        tap = weight.new_empty(1, 1, device="cpu")
        torch.ops.mamba_aot.causal_conv1d_sequences(length, tap, None, cu_seqlens.cpu(), None)
    return sequences


def _last_steps(x: Tensor, before: Tensor | None, count: int) -> Tensor:
    """The last `count` steps of the sequence `before` followed by `x`, as a tensor of its own."""
    length = x.shape[2]
    compiling = torch.compiler.is_compiling()
    if not compiling and length >= count:
        return x[..., length - count :].clone(memory_format=torch.contiguous_format)
    if before is None:
        before = x.new_zeros(x.shape[0], x.shape[1], count)
    if compiling:
        # Without a branch, so that one graph serves every length; a compiler copies only what is kept.
        return torch.cat([before, x], dim=2)[..., length:].clone(memory_format=torch.contiguous_format)
    return torch.cat([before[..., length:], x], dim=2)


def _ends_of_sequences(x: Tensor, cu_seqlens: Tensor, count: int, before: Tensor | None) -> Tensor:
    """The last `count` steps of each sequence in `x` [1, D, L], with its own steps `before` in front."""
    starts, ends = cu_seqlens[:-1], cu_seqlens[1:]
    return _steps_until(x, torch.zeros_like(ends, dtype=torch.int64), starts, ends, count, before)


def _ends_of_rows(x: Tensor, seq_idx: Tensor, sequences: Tensor, count: int, before: Tensor | None) -> Tensor:
    """The last `count` steps of each batch row's last sequence, with the steps `before` the row's first."""
    rows = torch.arange(x.shape[0], device=x.device)
    if x.shape[2] == 0:
        return _steps_until(x, rows, rows * 0, rows * 0, count, None)
    steps = torch.arange(1, x.shape[2] + 1, device=x.device)
    ends = torch.where(seq_idx < 0, 0, steps).amax(1)
    last = (ends - 1).clamp(min=0)
    starts, owners = sequences[:, rows, last]
    return _steps_until(x, rows, starts, ends, count, before, owners >= 0)


def _steps_until(
    x: Tensor,
    rows: Tensor,
    starts: Tensor,
    ends: Tensor,
    count: int,
    before: Tensor | None,
    follows: Tensor | None = None,
) -> Tensor:
    """`count` steps of `x` [B, D, L] up to ends[r] in row rows[r], [R, D, count].

    What would be earlier than starts[r] comes from before[r], the `count` steps before that, where follows[r]
    (everywhere when None), and is zero otherwise.
    """
    at = ends[:, None] - count + torch.arange(count, device=x.device)  # [R, count]
    early = (at < starts[:, None])[:, None, :]
    if x.shape[2] > 0:
        # Wrong ends must not read outside x. Both indices beside each other would move D to the front.
        steps = x[rows[:, None], :, at.clamp(0, x.shape[2] - 1)].transpose(1, 2)
    else:
        steps = x.new_zeros(ends.shape[0], x.shape[1], count)
    if before is None:
        return steps.masked_fill(early, 0).contiguous()
    index = (at - starts[:, None] + count).clamp(0, max(count - 1, 0))
    steps_before = before[torch.arange(ends.shape[0], device=x.device)[:, None], :, index].transpose(1, 2)
    if follows is not None:
        steps_before = steps_before.masked_fill(~follows[:, None, None], 0)
    return torch.where(early, steps_before, steps).contiguous()


@torch.library.register_fake("mamba_aot::causal_conv1d_sequences")
def _(
    x: Tensor,
    weight: Tensor,
    seq_idx: Tensor | None,
    cu_seqlens: Tensor | None,
    initial_states: Tensor | None,
) -> Tensor:
    return x.new_empty(2, x.shape[0], x.shape[2], dtype=torch.int32)


@torch.library.register_fake("mamba_aot::causal_conv1d_fwd")
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_states: Tensor | None,
    sequences: Tensor | None,
    silu: bool,
) -> Tensor:
    return empty_layout_like(x)


@torch.library.register_fake("mamba_aot::causal_conv1d_bwd")
def _(
    dout: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_states: Tensor | None,
    sequences: Tensor | None,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    def like(tensor: Tensor | None) -> Tensor:
        return x.new_empty(0) if tensor is None else tensor.new_empty(tensor.shape)

    return empty_layout_like(x), like(weight), like(bias), like(initial_states)


@torch.library.register_fake("mamba_aot::causal_conv1d_bwd_into")
def _(*arguments: Any) -> tuple[Tensor, ...]:
    *others, _dx = arguments
    return torch.ops.mamba_aot.causal_conv1d_bwd(*others)[1:]


@torch.library.register_fake("mamba_aot::causal_conv1d_update")
def _(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    cache_seqlens: Tensor | None,
    conv_state_indices: Tensor | None,
    silu: bool,
) -> Tensor:
    return x.new_empty(x.shape)


def _setup_context(ctx, inputs: tuple, output: Tensor) -> None:
    *tensors, ctx.silu = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, dout: Tensor) -> tuple:
    grads = torch.ops.mamba_aot.causal_conv1d_bwd(dout, *ctx.saved_tensors, ctx.silu)
    wanted = [grad if need else None for grad, need in zip(grads, ctx.needs_input_grad, strict=False)]
    return *wanted, None, None


register_gradient(
    torch.ops.mamba_aot.causal_conv1d_fwd.default, "causal_conv1d_fn", _backward, _setup_context
)
