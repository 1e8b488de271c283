"""Eager PyTorch truth of every op: what the compiled kernels must compute, in plain tensor algebra.

Nothing here is fast and nothing here calls the compiled library. Every function takes the arguments of the
public function of the same name without `_ref`, any floating dtype, and is differentiable by autograd.
Arithmetic runs in float64 when the sequence is float64 and in float32 otherwise; results are rounded to the
dtype of the sequence once, at the end. Two uses follow: in float64 it is the truth, and in the dtype
under test it is the independent implementation whose error a kernel's error is measured against.

Glossary (sizes: B batch, D channels, L length, N state, G groups, W conv width)

    symbol  argument        meaning
    x_t     u, x            the sequence, one number per channel and step
    Δ_t     delta, dt       step size of channel and step, after bias and softplus
    A       A               diagonal of the state matrix, one number per channel and state, Re A < 0
    B_t     B               input weights of step t, per state; all channels of a group share them
    C_t     C               output weights of step t, per state; all channels of a group share them
    g_t     decay_gate      factor in (0, 1) on the decay of step t, per state; 1 when absent
    ā_t     a               decay of one step, g_t exp(Δ_t A)
    φ_t     phi             input factor of one step: Δ_t (euler) or (exp(Δ_t A) - 1) / A (zoh)
    h_t     h               state after step t
    D       D               skip weight per channel
    z_t     z               output gate, through SiLU

    h_t = ā_t h_{t-1} + φ_t B_t x_t,    y_t = C_t h_t + D x_t,    out_t = y_t silu(z_t)

`linear_recurrence` is the first of these lines alone, h_t = a_t h_{t-1} + b_t, with a and b given.

Sources: Gu & Dao, "Mamba" (arXiv 2312.00752), eq. 2 (recurrence), eq. 4 (zero-order hold), Algorithm 2 (input
dependent Δ, B, C); the published code takes φ = Δ for B, which is "euler" here. Gu, Gupta, Goel & Ré, "S4D"
(arXiv 2206.11893): diagonal A, zero-order hold, and the output 2 Re(C h) of a complex state that stands for
itself and its conjugate. The decay gate is this package's addition.
"""

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# At |w| ≤ 1 the first term left out, w^19 / 20!, is below 1e-18: less than float64's rounding.
_SERIES_TERMS = 19


def selective_scan_ref(
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
) -> Tensor | tuple[Tensor, Tensor]:
    """Runs the recurrence one step after the other. Shapes and source: `mamba_aot.selective_scan_fn`."""
    dtype, length = u.dtype, u.shape[2]
    u, dt, A = _wide(u, dtype), _wide(delta, dtype), _wide(A, dtype)
    dt = _step_size(dt, None if delta_bias is None else _wide(delta_bias, dtype)[:, None], delta_softplus)
    B = _per_channel(_as_sequence(B, A, length, dtype), u.shape[1])  # [B, D, L, N]
    C = _per_channel(_as_sequence(C, A, length, dtype), u.shape[1])  # [B, D, L, N]

    a, phi = _discretize(dt.unsqueeze(-1), A.unsqueeze(1), discretization)  # [B, D, L, N]
    if decay_gate is not None:
        a = a * _wide(decay_gate, dtype).transpose(1, 2).unsqueeze(1)
    inflow = phi * B * u.unsqueeze(-1)

    h = (
        a.new_zeros(a.shape[0], a.shape[1], a.shape[3])
        if initial_state is None
        else _wide(initial_state, dtype)
    )
    states = []
    for a_t, inflow_t in zip(a.unbind(2), inflow.unbind(2), strict=True):
        h = a_t * h + inflow_t
        states.append(h)
    y = _read_out(torch.stack(states, dim=2) if states else inflow, C)  # [B, D, L]

    if D is not None:
        y = y + _wide(D, dtype)[:, None] * u
    if z is not None:
        y = y * F.silu(_wide(z, dtype))
    out = y.to(dtype)
    return (out, h) if return_last_state else out


def selective_state_update_ref(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    state_batch_indices: Tensor | None = None,
    *,
    decay_gate: Tensor | None = None,
    discretization: str = "euler",
    dst_state_batch_indices: Tensor | None = None,
    pad_slot_id: int = -1,
    out: Tensor | None = None,
    intermediate_states: Tensor | None = None,
    accepted_steps: Tensor | None = None,
    disable_state_update: bool = False,
) -> Tensor:
    """Runs the steps and writes the new state into `state`. Shapes: `mamba_aot.selective_state_update`."""
    rows = torch.arange(x.shape[0], device=x.device)
    source = rows if state_batch_indices is None else state_batch_indices.long()
    target = source if dst_state_batch_indices is None else dst_state_batch_indices.long()
    live, kept = ((slot >= 0) & (slot < state.shape[0]) for slot in (source, target))
    if state_batch_indices is not None:
        live = live & (source != pad_slot_id)
    if state_batch_indices is not None or dst_state_batch_indices is not None:
        kept = kept & (target != pad_slot_id)
    z, decay_gate = (None if t is None else t[live] for t in (z, decay_gate))
    of_rows = (state[source[live]], x[live], dt[live], A, B[live], C[live], D, z, dt_bias)
    # [b, steps, ...], steps + 1 states [b, ..., N]
    y, states = _steps(*of_rows, dt_softplus, decay_gate, discretization)

    if not disable_state_update:
        last = len(states) - 1
        if accepted_steps is not None:
            count = accepted_steps.long()[live].clamp(0, last)
        else:
            count = torch.full_like(source[live], last)
        new = torch.stack(states)[count, torch.arange(count.shape[0], device=x.device)]
        state[target[live & kept]] = new[kept[live]].to(state.dtype)
    if intermediate_states is not None and len(states) > 1:
        intermediate_states[live] = torch.stack(states[1:], dim=1).to(intermediate_states.dtype)
    out = torch.empty_like(x) if out is None else out
    out.zero_()
    out[live] = y.to(out.dtype)
    return out


def selective_state_step_ref(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    *,
    decay_gate: Tensor | None = None,
    discretization: str = "euler",
) -> tuple[Tensor, Tensor]:
    """Runs the steps and returns the new state too. Shapes: `mamba_aot.selective_state_step`."""
    y, states = _steps(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus, decay_gate, discretization)
    return y.to(x.dtype), states[-1].to(state.dtype)


def _steps(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    decay_gate: Tensor | None,
    discretization: str,
) -> tuple[Tensor, list[Tensor]]:
    """The wide output of x's shape, and the wide states of state's shape before and after every step."""
    many, shape, dtype = x.dim() == state.dim(), x.shape, x.dtype

    def in_steps(tensor: Tensor, dims: int) -> Tensor:
        """[B, steps, ...], the channels (`dims` of them) made one dimension."""
        tensor = _wide(tensor, dtype).flatten(tensor.dim() - dims)
        return tensor if many else tensor.unsqueeze(1)

    dims = state.dim() - 2
    x, dt, A = in_steps(x, dims), in_steps(dt, dims), _wide(A, dtype).flatten(0, -2)
    dt = _step_size(dt, None if dt_bias is None else _wide(dt_bias, dtype).flatten(), dt_softplus)
    B, C = in_steps(B, 1), in_steps(C, 1)
    B, C = (
        _grouped(t.flatten(0, 1), 3).repeat_interleave(x.shape[2] // (t.shape[2] if t.dim() == 4 else 1), 1)
        for t in (B, C)
    )
    B, C = (t.reshape(*x.shape, A.shape[1]) for t in (B, C))  # [B, steps, D, N]
    a, phi = _discretize(dt.unsqueeze(-1), A, discretization)
    if decay_gate is not None:
        a = a * in_steps(decay_gate, 1).unsqueeze(2)
    inflow = phi * B * x.unsqueeze(-1)
    states = [_wide(state, dtype).flatten(1, -2)]
    for t in range(x.shape[1]):
        states.append(a[:, t] * states[-1] + inflow[:, t])
    y = _read_out(torch.stack(states[1:], dim=1) if len(states) > 1 else inflow, C)
    if D is not None:
        y = y + _wide(D, dtype).flatten() * x
    if z is not None:
        y = y * F.silu(in_steps(z, dims))
    return y.reshape(shape), [h.reshape(state.shape) for h in states]


def causal_conv1d_ref(
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
    """Sums the shifted sequence, one term per tap. Shapes and source: `mamba_aot.causal_conv1d_fn`."""
    batch, channels, length = x.shape
    rows = batch if cu_seqlens is None else cu_seqlens.shape[0] - 1
    zero = x.new_zeros(rows, channels, weight.shape[1] - 1)
    before = zero if initial_states is None else initial_states.to(x.dtype)
    if seq_idx is None and cu_seqlens is None:
        padded = torch.cat([before, x], dim=2)
        out = _convolve(padded, weight, bias, activation)
        final_states = padded[..., length:].clone()
    else:
        # Each packed sequence by itself, with the steps before it.
        out, ends = torch.zeros_like(x), list(zero.unbind(0))
        for row, start, stop, states_row in _sequences(seq_idx, cu_seqlens):
            early = zero[:1] if states_row is None else before[states_row : states_row + 1]
            padded = torch.cat([early, x[row : row + 1, :, start:stop]], dim=2)
            out[row, :, start:stop] = _convolve(padded, weight, bias, activation)[0]
            ends[row if cu_seqlens is None or states_row is None else states_row] = padded[
                0, :, stop - start :
            ]
        final_states = torch.stack(ends) if ends else zero
    if final_states_out is not None:
        final_states = final_states_out.copy_(final_states)
    return (out, final_states) if return_final_states else out


def causal_conv1d_update_ref(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    cache_seqlens: Tensor | None = None,
    conv_state_indices: Tensor | None = None,
) -> Tensor:
    """Convolves new steps and shifts them into `conv_state`. Shapes: `mamba_aot.causal_conv1d_update`."""
    slots, live = _slots(conv_state_indices, x)
    steps = x if x.dim() == 3 else x.unsqueeze(2)
    kept, length = conv_state.shape[2], steps.shape[2]
    # Where the state keeps its steps, oldest first: in their order, or from somewhere in a ring.
    order = torch.arange(kept, device=x.device).expand(slots.shape[0], conv_state.shape[1], kept)
    after = order
    if cache_seqlens is not None:
        order = (order + cache_seqlens[live, None, None].long()) % max(kept, 1)
        after = (order + length) % max(kept, 1)
    history = torch.cat([conv_state[slots].gather(2, order), steps[live].to(conv_state.dtype)], dim=2)
    conv_state[slots] = conv_state[slots].scatter(2, after, history[..., history.shape[2] - kept :])
    window = length + weight.shape[1] - 1
    out = torch.zeros_like(steps)
    out[live] = _convolve(history[..., history.shape[2] - window :], weight, bias, activation).to(x.dtype)
    return out.reshape(x.shape)


def linear_recurrence_ref(
    a: Tensor,
    b: Tensor,
    initial_state: Tensor | None = None,
    *,
    return_last_state: bool = False,
    reverse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Runs h_t = a_t h_{t-1} + b_t one step after the other. Shapes: `mamba_aot.linear_recurrence`."""
    dtype = b.dtype.to_real() if b.is_complex() else b.dtype
    decays, inflows = _wide(a, dtype).unbind(-1), _wide(b, dtype).unbind(-1)
    h = _wide(b.new_zeros(b.shape[:-1]) if initial_state is None else initial_state, dtype)
    steps = range(b.shape[-1])
    states = []
    for t in reversed(steps) if reverse else steps:
        h = decays[t] * h + inflows[t]
        states.append(h)
    if reverse:
        states.reverse()
    out = (torch.stack(states, dim=-1) if states else _wide(b, dtype)).to(b.dtype)
    return (out, h) if return_last_state else out


def layer_norm_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    eps: float = 1e-6,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    is_rms_norm: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Adds the residual, then norms rows. Shapes and source: `mamba_aot.layer_norm_fn`."""
    total = _wide(x, x.dtype)
    if residual is not None:
        total = total + _wide(residual, x.dtype)
    out = _norm(total, _wide(weight, x.dtype), bias, eps, x.shape[-1], is_rms_norm).to(x.dtype)
    sum_dtype = total.dtype if residual_in_fp32 else x.dtype if residual is None else residual.dtype
    return (out, total.to(sum_dtype, copy=True)) if prenorm else out


def rms_norm_ref(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None, **options: Any
) -> Tensor | tuple[Tensor, Tensor]:
    """`layer_norm_ref` without the mean. Arguments and source: `mamba_aot.rms_norm_fn`."""
    return layer_norm_ref(x, weight, bias, residual, is_rms_norm=True, **options)


def layernorm_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None = None,
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
    is_rms_norm: bool = False,
) -> Tensor:
    """Norms groups of channels, before or after the gate. Source: `mamba_aot.layernorm_fn`."""
    u = _wide(x, x.dtype)
    gate = None if z is None else F.silu(_wide(z, x.dtype))
    if gate is not None and not norm_before_gate:
        u = u * gate
    size = x.shape[-1] if group_size is None else group_size
    y = _norm(u, _wide(weight, x.dtype), bias, eps, size, is_rms_norm)
    if gate is not None and norm_before_gate:
        y = y * gate
    return y.to(x.dtype)


def rmsnorm_ref(
    x: Tensor, weight: Tensor, bias: Tensor | None, z: Tensor | None = None, **options: Any
) -> Tensor:
    """`layernorm_ref` without the mean. Arguments and source: `mamba_aot.rmsnorm_fn`."""
    return layernorm_ref(x, weight, bias, z, is_rms_norm=True, **options)


def causal_conv1d_varlen_states_ref(x: Tensor, cu_seqlens: Tensor, state_len: int) -> Tensor:
    """The last steps of each sequence. Shapes and source: `mamba_aot.causal_conv1d_varlen_states`."""
    states = [
        torch.cat([x.new_zeros(state_len, x.shape[1]), x[start:stop]])[stop - start :].T
        for _, start, stop, _ in _sequences(None, cu_seqlens)
    ]
    return torch.stack(states) if states else x.new_zeros(0, x.shape[1], state_len)


def expm1_ratio(w: Tensor) -> Tensor:
    """(exp(w) - 1) / w, finite and smooth at w = 0, for real or complex w."""
    near = w.abs() <= 1
    w_near, w_far = torch.where(near, w, 0), torch.where(near, 1, w)
    series = torch.ones_like(w)
    for k in range(_SERIES_TERMS, 1, -1):
        series = 1 + series * w_near / k
    return torch.where(near, series, (torch.exp(w_far) - 1) / w_far)


def _discretize(dt: Tensor, A: Tensor, discretization: str) -> tuple[Tensor, Tensor]:
    w = dt * A
    if discretization == "zoh":
        return torch.exp(w), dt * expm1_ratio(w)
    if discretization == "euler":
        return torch.exp(w), dt
    raise ValueError(f'discretization must be "euler" or "zoh", got {discretization!r}')


def _step_size(dt: Tensor, bias: Tensor | None, softplus: bool) -> Tensor:
    if bias is not None:
        dt = dt + bias
    return F.softplus(dt) if softplus else dt


def _read_out(h: Tensor, C: Tensor) -> Tensor:
    y = (h * C).sum(-1)
    return 2 * y.real if y.is_complex() else y


def _convolve(padded: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> Tensor:
    if activation not in (None, "silu", "swish"):
        raise ValueError(f'activation must be None, "silu" or "swish", got {activation!r}')
    width = weight.shape[1]
    length = padded.shape[2] - width + 1
    wide, taps = _wide(padded, padded.dtype), _wide(weight, padded.dtype)
    y = torch.zeros_like(wide[..., :length])
    for k in range(width):
        y = y + taps[:, k, None] * wide[..., k : k + length]
    if bias is not None:
        y = y + _wide(bias, padded.dtype)[:, None]
    return (F.silu(y) if activation else y).to(padded.dtype)


def _norm(
    u: Tensor, weight: Tensor, bias: Tensor | None, eps: float, group_size: int, is_rms_norm: bool
) -> Tensor:
    rows = u.unflatten(-1, (-1, group_size)) if group_size else u
    if not is_rms_norm:
        rows = rows - rows.mean(-1, keepdim=True)
    normed = (rows * torch.rsqrt(rows.square().mean(-1, keepdim=True) + eps)).reshape(u.shape)
    y = normed * weight
    return y if bias is None else y + bias.to(y.dtype)


def _sequences(seq_idx: Tensor | None, cu_seqlens: Tensor | None) -> list[tuple[int, int, int, int | None]]:
    """(batch row, first step, step after the last, row of the initial states if any) of packed sequences."""
    if cu_seqlens is not None:
        ends = cu_seqlens.tolist()
        return [(0, start, stop, i) for i, (start, stop) in enumerate(itertools.pairwise(ends))]
    found: list[tuple[int, int, int, int | None]] = []
    assert seq_idx is not None
    for row, indices in enumerate(seq_idx.tolist()):
        start = 0
        for stop in range(1, len(indices) + 1):
            if stop == len(indices) or indices[stop] != indices[start]:
                if indices[start] >= 0:
                    found.append((row, start, stop, row if start == 0 else None))
                start = stop
    return found


def _wide(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """`tensor` in the arithmetic dtype of a sequence of `dtype`, complex if it is complex."""
    real = torch.float64 if dtype == torch.float64 else torch.float32
    return tensor.to(real.to_complex() if tensor.is_complex() else real)


def _grouped(tensor: Tensor, dims: int) -> Tensor:
    return tensor if tensor.dim() == dims else tensor.unsqueeze(1)


def _as_sequence(tensor: Tensor, A: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    """B or C as [B, G, L, N]; real ones of a complex A hold (re, im) pairs along the last dim, 2L long."""
    if A.is_complex() and not tensor.is_complex():
        pairs = tensor.reshape(*tensor.shape[:-1], length, 2)
        tensor = torch.view_as_complex(_wide(pairs, dtype).contiguous())
    return _wide(_grouped(tensor, 4), dtype).transpose(2, 3)


def _per_channel(tensor: Tensor, channels: int) -> Tensor:
    """[B, G, ...] → [B, D, ...]: channel d belongs to group d // (D / G)."""
    return tensor.repeat_interleave(channels // tensor.shape[1], dim=1)


def _slots(indices: Tensor | None, x: Tensor) -> tuple[Tensor, Tensor]:
    """State slots of the live batch rows, and the mask of live rows; a negative index marks padding."""
    if indices is None:
        indices = torch.arange(x.shape[0], device=x.device)
    live = indices >= 0
    return indices[live].long(), live
