"""Linear recurrence of first order: the general scan, over the last dimension of tensors of any rank."""

import torch
from torch import Tensor

from mamba_aot.ops._boundary import as_pairs, raises_typed_errors, state_dtype
from mamba_aot.ops._gradients import needs_gradient, register_gradient, run

# Steps between two states that the forward keeps for a float16 or bfloat16 backward; `kRecurrenceChunk` in
# csrc/ops/linear_recurrence.h.
_CHUNK = 64


@raises_typed_errors
def linear_recurrence(
    a: Tensor,
    b: Tensor,
    initial_state: Tensor | None = None,
    *,
    return_last_state: bool = False,
    reverse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Runs h_t = a_t h_{t-1} + b_t along the last dimension, h_{-1} the initial state.

    Runs on CPU and CUDA, in the memory order of its inputs without copying them, is differentiable once in
    every tensor and deterministic. Arithmetic is float32 (float64 for float64 inputs). Between forward and
    backward it keeps a and h; for float16 and bfloat16 a, b and one float32 state in 64.

    Args:
        a: Decays, [..., length], float32, float16, bfloat16 or complex64 (float64 and complex128 too on a
            CPU). Leading dimensions are any that collapse to three in memory.
        b: Inputs, shape and dtype of `a`.
        initial_state: State before the first step, [...] (the leading dimensions), float32 (float64 or
            complex if `b` is); zero when absent.
        return_last_state: Whether the state after the last step is returned too.
        reverse: Whether time runs from the last element to the first: h_t = a_t h_{t+1} + b_t, and the "last"
            state is that of element 0.

    Returns:
        h, shape, dtype and memory order of `b`; with `return_last_state` a pair of it and the last state,
        which has the shape and dtype of `initial_state` and is differentiable as well.

    Raises:
        TypeError: An argument is not a tensor.
        ValueError: A shape, dtype, device or option is not as above; nothing has been computed.
        RuntimeError: The GPU, its driver or a kernel image for it is missing.

    Source: Martin & Cundy, "Parallelizing Linear Recurrent Neural Nets Over Sequence Length",
    arXiv 1709.04057, eq. 1 and section 2.2.
    """
    is_complex = b.is_complex()
    for name, tensor in (("a", a), ("initial_state", initial_state)):
        if tensor is not None and tensor.is_complex() != is_complex:
            kind = "complex" if is_complex else "real"
            raise ValueError(
                f"linear_recurrence: {name} must be {kind} like b, got {tensor.dtype}; "
                f"convert it, or make b {'real' if is_complex else 'complex'} too"
            )
    if is_complex:
        a, b = as_pairs(a), as_pairs(b)
        initial_state = None if initial_state is None else as_pairs(initial_state)
    inputs = (a, b, initial_state)
    # An exported program runs forward only, and a number of chunks would bound the lengths it accepts.
    # (Dynamo of torch 2.11 takes is_exporting() for true whenever it traces.)
    exporting = torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling()
    # Of two dtypes autocast takes the one that holds both, which is float32.
    save_states = _is_half(b) and a.dtype == b.dtype and needs_gradient(inputs) and not exporting
    op = torch.ops.mamba_aot.linear_recurrence_fwd.default
    h, last_state, _ = run(op, inputs, is_complex, reverse, save_states)
    if is_complex:
        h, last_state = torch.view_as_complex(h), torch.view_as_complex(last_state)
    return (h, last_state) if return_last_state else h


def _is_half(tensor: Tensor) -> bool:
    return tensor.dtype in (torch.float16, torch.bfloat16)


def _ordered_like(x: Tensor, is_complex: bool) -> Tensor:
    """An empty dense tensor in the memory order of `x`; dimensions of stride 0 lie outside, pairs inside."""
    dims = list(range(x.dim() - 1 if is_complex else x.dim()))
    order = sorted(dims, key=lambda i: (0, 0) if x.stride(i) == 0 else (1, -x.stride(i)))
    sizes = [x.shape[i] for i in order] + list(x.shape[len(dims) :])
    places = [order.index(i) for i in dims] + list(range(len(dims), x.dim()))
    return x.new_empty(sizes).permute(places)


def _states_shape(x: Tensor, is_complex: bool) -> tuple:
    """[...], the leading dimensions of x [..., L] or of pairs [..., L, 2]."""
    return (*x.shape[:-2], 2) if is_complex else tuple(x.shape[:-1])


@torch.library.register_fake("mamba_aot::linear_recurrence_fwd")
def _(
    a: Tensor, b: Tensor, initial_state: Tensor | None, complex: bool, reverse: bool, save_states: bool
) -> tuple[Tensor, Tensor, Tensor]:
    states = _states_shape(b, complex)
    chunks = ((b.shape[-1] + _CHUNK - 1) // _CHUNK, *states) if save_states else (0,)
    dtype = state_dtype(b)
    return _ordered_like(b, complex), b.new_empty(states, dtype=dtype), b.new_empty(chunks, dtype=dtype)


@torch.library.register_fake("mamba_aot::linear_recurrence_bwd")
def _(
    dh: Tensor,
    dlast_state: Tensor | None,
    a: Tensor,
    b: Tensor | None,
    h: Tensor | None,
    initial_state: Tensor | None,
    chunk_states: Tensor | None,
    complex: bool,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    values = b if _is_half(a) else h
    assert values is not None
    dinitial_state = a.new_empty(_states_shape(a, complex), dtype=state_dtype(a))
    return _ordered_like(a, complex), _ordered_like(values, complex), dinitial_state


def _setup_context(ctx, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    a, b, initial_state, ctx.complex, ctx.reverse, save_states = inputs
    h, _last_state, chunk_states = output
    saved = (b, None, None, chunk_states) if save_states else (None, h, initial_state, None)
    ctx.save_for_backward(a, *saved)
    ctx.mark_non_differentiable(chunk_states)
    # A result that the loss does not use arrives in the backward as None, not as a tensor of zeros.
    ctx.set_materialize_grads(False)


def _backward(ctx, dh: Tensor | None, dlast_state: Tensor | None, _dchunk_states: None) -> tuple:
    if dh is None and dlast_state is None:
        return (None,) * len(ctx.needs_input_grad)
    # Read once: under activation checkpointing every reading recomputes the forward.
    saved = ctx.saved_tensors
    values = saved[1] if saved[2] is None else saved[2]
    if dh is None:
        dh = torch.zeros_like(values)
    elif ctx.complex and dh.stride(-1) != 1:
        # The gradient of a sum over pairs is expanded along them.
        dh = dh.contiguous()
    if dh.dim() - ctx.complex > 4 and dh.stride() != values.stride():
        # More leading dimensions than kernels have must lie as those of the inputs do, which collapse.
        dh = _ordered_like(values, ctx.complex).copy_(dh)
    if dlast_state is not None:
        dlast_state = dlast_state.contiguous()
    grads = torch.ops.mamba_aot.linear_recurrence_bwd(dh, dlast_state, *saved, ctx.complex, ctx.reverse)
    wanted = [grad if need else None for grad, need in zip(grads, ctx.needs_input_grad, strict=False)]
    return *wanted, None, None, None


register_gradient(
    torch.ops.mamba_aot.linear_recurrence_fwd.default, "linear_recurrence", _backward, _setup_context
)
