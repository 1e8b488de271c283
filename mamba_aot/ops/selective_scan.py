"""Selective scan: the recurrence of Mamba over a whole sequence."""

from typing import Any

import torch
from torch import Tensor

from mamba_aot.ops._boundary import (
    as_pairs,
    empty_layout_like,
    is_zoh,
    raises_typed_errors,
    state_dtype,
)
from mamba_aot.ops._gradients import needs_gradient, register_gradient, run
from mamba_aot.ops._packing import check_ends, runs_of

# Steps between two states that the forward keeps for the backward; `kChunk` in csrc/ops/selective_scan.h.
_CHUNK = 64


@raises_typed_errors
def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    *,
    decay_gate: Tensor | None = None,
    discretization: str = "euler",
    initial_state: Tensor | None = None,
    seq_idx: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    validate: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Runs the selective scan h_t = g_t exp(dt_t A) h_{t-1} + phi_t B_t u_t, y_t = C_t h_t + D u_t.

    dt is `delta + delta_bias`, through softplus if `delta_softplus`; phi is dt ("euler") or
    (exp(dt A) - 1) / A ("zoh"). A complex A stands for itself and its conjugate: y_t = 2 Re(C_t h_t) + D u_t.
    Runs on CPU and CUDA, in the memory order of its inputs (sequence-last or channel-last) without copying
    them, is differentiable once in every tensor and deterministic. Between forward and backward it keeps its
    inputs and one state in 64.

    Sequences may be packed, so that the state stays within each: by `seq_idx`, several in each batch row, or
    by `cu_seqlens`, all in one row. On a GPU the latter run side by side.

    u, delta and z may differ in dtype. A CPU reads each as it is; a GPU takes float32 copies of them for the
    time of the call, forward and backward: give them one dtype where memory or time counts.

    Args:
        u: The sequence, [batch, channels, length], float32, float16 or bfloat16 (float64 too on a CPU).
        delta: Step sizes, shape of `u`, in one of the dtypes of `u` (float64 only if `u` is); or [batch,
            heads, length], where channel d belongs to head d // (channels / heads). Its gradient then takes
            the memory of one per channel on the way.
        A: Diagonal state matrix, [channels, state], real or complex.
        B: Input weights, [batch, state, length] or [batch, groups, state, length]; channel d belongs to group
            d // (channels / groups). Any floating dtype; complex if `A` is, or then real with (re, im) pairs
            along a last dim of 2 * length, as mamba_ssm has it. Or the same for all steps, [channels, state],
            complex if `A` is.
        C: Output weights, in one of the shapes of `B`; with as many groups, if both have them.
        D: Skip weight, [channels].
        z: Output gate, shape of `u`, in one of the dtypes of `delta`; the result is multiplied by silu(z).
        delta_bias: Added to `delta`, [channels]; or [heads] of a `delta` per head.
        delta_softplus: Whether dt goes through softplus.
        return_last_state: Whether the state after the last step is returned too.
        decay_gate: Factor g on the decay, [batch, state, length].
        discretization: "euler" or "zoh".
        initial_state: State before the first step, [batch, channels, state], float32 (float64 if `u` is),
            complex if `A` is; zero when absent. With `seq_idx` it comes before the sequence at step 0 of the
            row, if that is not padding; with `cu_seqlens` there is one for each sequence, [sequences,
            channels, state].
        seq_idx: Index of each step's sequence, int32 [batch, length]; where it changes, a sequence ends. A
            negative index marks padding: its output and gradients are zero, whatever the other tensors hold
            there.
        cu_seqlens: Where the sequences packed in the one row of `u` [1, channels, length] end, int32
            [sequences + 1]: 0, then the lengths summed up. Sequences may be empty.
        validate: Whether the values of a `cu_seqlens` on a GPU are checked too, for which the host waits; on
            a CPU they always are. Unchecked, steps that wrong values leave out are padding.

    Returns:
        The output, shape and dtype of `u`; with `return_last_state` a pair of it and the last state, which
        has the shape and dtype of `initial_state` and is differentiable as well: with `seq_idx` that of the
        row's last sequence (zero for a row of padding), with `cu_seqlens` that of each sequence.

    Raises:
        TypeError: An argument is not a tensor.
        ValueError: A shape, dtype, device or option is not as above; nothing has been computed.
        RuntimeError: The GPU, its driver or a kernel image for it is missing.

    Source: Gu & Dao, "Mamba", arXiv 2312.00752, eq. 2 and 4, Algorithm 2; symbols in `mamba_aot.reference`.
    """
    zoh = is_zoh("selective_scan_fn", discretization)
    if A.dim() != 2:
        raise ValueError(f"selective_scan_fn: A must be [channels, state], got {list(A.shape)}")
    if u.dim() != 3:
        raise ValueError(
            f"selective_scan_fn: u must be [batch, channels, length] (3 dimensions), got {list(u.shape)}"
        )
    is_complex = A.is_complex()
    B, C = _op_weight("B", B, is_complex, u), _op_weight("C", C, is_complex, u)
    if is_complex:
        A = as_pairs(A)
    if initial_state is not None and initial_state.is_complex():
        initial_state = as_pairs(initial_state)

    delta_bias = _per_channel(delta_bias, delta, u)
    runs = None
    if seq_idx is not None:
        runs = runs_of("selective_scan_fn", seq_idx, cu_seqlens, u)
        # Weights lie in one tile with those of the steps around them, so padding must not hold what spreads.
        padding = seq_idx < 0
        B, C = _without(B, padding), _without(C, padding)
    if validate and cu_seqlens is not None:
        check_ends(cu_seqlens, u)

    inputs = (u, delta, A, B, C, D, z, delta_bias, decay_gate, initial_state, runs, cu_seqlens)
    # An exported program runs forward only, and a number of chunks would bound the lengths it accepts.
    # (Dynamo of torch 2.11 takes is_exporting() for true whenever it traces.)
    exporting = torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling()
    needed = needs_gradient(inputs)
    op = torch.ops.mamba_aot.selective_scan_fwd.default
    out, last_state, _ = run(op, inputs, delta_softplus, zoh, needed and not exporting, needed=needed)
    if not return_last_state:
        return out
    return out, torch.view_as_complex(last_state) if is_complex else last_state


def _op_weight(name: str, weight: Tensor, is_complex: bool, u: Tensor) -> Tensor:
    """B or C as the op takes it: [B, G, N, L] or [D, N], with a last dim of 2 beside a complex A."""
    if weight.dim() == 3:
        weight = weight.unsqueeze(1)
    elif weight.dim() not in (2, 4):
        raise ValueError(
            f"selective_scan_fn: {name} must be [batch, state, length] or [batch, groups, state, length], or "
            f"[channels, state] for all steps, got {list(weight.shape)}"
        )
    if weight.is_complex():
        if not is_complex:
            raise ValueError(f"selective_scan_fn: {name} must be real because A is real, got {weight.dtype}")
        return as_pairs(weight)
    if not is_complex:
        return weight
    if weight.dim() == 2:
        raise ValueError(
            f"selective_scan_fn: {name} must be complex because A is complex, got {weight.dtype} of "
            f"{list(weight.shape)}"
        )
    length = u.shape[-1]
    if weight.shape[3] != 2 * length:
        raise ValueError(
            f"selective_scan_fn: {name} must be complex because A is complex, or real with (re, im) pairs "
            f"along a last dim of 2 * length = {2 * length}, got {weight.dtype} of {list(weight.shape)}"
        )
    return weight.unflatten(3, (length, 2))


def _per_channel(bias: Tensor | None, delta: Tensor, u: Tensor) -> Tensor | None:
    """delta_bias as the op takes it: [D]. What does not fit, it refuses."""
    if bias is None or delta.dim() != 3:
        return bias
    heads, channels = delta.shape[1], u.shape[1]
    if heads in (0, channels) or bias.shape != (heads,) or channels % heads != 0:
        return bias
    if not bias.is_floating_point():
        return bias
    # Wide, so that the gradient of a head is not a sum of rounded ones.
    return bias[:, None].to(state_dtype(u)).expand(-1, channels // heads).flatten()


def _without(weight: Tensor, padding: Tensor) -> Tensor:
    """B or C as the op takes it with zeros at steps of padding [B, L]."""
    if weight.dim() < 4:
        return weight
    at = padding[:, None, None, :]
    return torch.where(at if weight.dim() == 4 else at.unsqueeze(4), 0, weight)


@torch.library.register_fake("mamba_aot::selective_scan_fwd")
def _(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    decay_gate: Tensor | None,
    initial_state: Tensor | None,
    runs: Tensor | None,
    cu_seqlens: Tensor | None,
    delta_softplus: bool,
    zoh: bool,
    save_states: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, dim, length = u.shape
    state, pair = A.shape[1], A.shape[2:]
    numbers = state * 2 if pair else state
    rows = batch if cu_seqlens is None else cu_seqlens.shape[0] - 1
    saved = (length + _CHUNK - 1) // _CHUNK
    if cu_seqlens is not None:
        saved += rows
    elif runs is not None:
        saved += 1
    chunks = (batch, saved, numbers, dim) if save_states else (0,)
    dtype = state_dtype(u)
    last_state = u.new_empty((rows, dim, state, *pair), dtype=dtype)
    return empty_layout_like(u), last_state, u.new_empty(chunks, dtype=dtype)


@torch.library.register_fake("mamba_aot::selective_scan_bwd")
def _(
    dout: Tensor,
    dlast_state: Tensor | None,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    decay_gate: Tensor | None,
    runs: Tensor | None,
    cu_seqlens: Tensor | None,
    chunk_states: Tensor,
    delta_softplus: bool,
    zoh: bool,
    from_state: bool,
) -> tuple[Tensor, ...]:
    absent = u.new_empty(0, dtype=state_dtype(u))

    def like(tensor: Tensor | None) -> Tensor:
        return torch.empty_like(absent) if tensor is None else tensor.new_empty(tensor.shape)

    dz = torch.empty_like(absent) if z is None else empty_layout_like(z)
    rows = u.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    dinitial_state = u.new_empty((rows, u.shape[1], *A.shape[1:]), dtype=state_dtype(u))
    return (
        empty_layout_like(u),
        empty_layout_like(delta),
        like(A),
        like(B),
        like(C),
        like(D),
        dz,
        like(delta_bias),
        like(decay_gate),
        dinitial_state,
    )


@torch.library.register_fake("mamba_aot::selective_scan_bwd_into")
def _(*arguments: Any) -> tuple[Tensor, ...]:
    *others, _ddelta, _dz = arguments
    du, _, dA, dB, dC, dD, _, *rest = torch.ops.mamba_aot.selective_scan_bwd(*others, True)
    return du, dA, dB, dC, dD, *rest


def _setup_context(ctx, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, initial_state, runs, cu_seqlens, ctx.delta_softplus, ctx.zoh, _save_states = inputs
    ctx.from_state = initial_state is not None
    chunk_states = output[2]
    ctx.save_for_backward(*tensors, runs, cu_seqlens, chunk_states)
    ctx.mark_non_differentiable(chunk_states)
    # A result that the loss does not use arrives in the backward as None, not as a tensor of zeros.
    ctx.set_materialize_grads(False)


def _backward(ctx, dout: Tensor | None, dlast_state: Tensor | None, _dchunk_states: None) -> tuple:
    if dout is None and dlast_state is None:
        return (None,) * len(ctx.needs_input_grad)
    # Read once: under activation checkpointing every reading recomputes the forward.
    saved = ctx.saved_tensors
    if dout is None:
        dout = torch.zeros_like(saved[0])
    if dlast_state is not None:
        dlast_state = dlast_state.contiguous()
    options = (ctx.delta_softplus, ctx.zoh, ctx.from_state)
    grads = torch.ops.mamba_aot.selective_scan_bwd(dout, dlast_state, *saved, *options)
    wanted = [grad if need else None for grad, need in zip(grads, ctx.needs_input_grad, strict=False)]
    return *wanted, *(None,) * (len(ctx.needs_input_grad) - len(wanted))


register_gradient(
    torch.ops.mamba_aot.selective_scan_fwd.default, "selective_scan_fn", _backward, _setup_context
)
