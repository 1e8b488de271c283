"""The scans: h_t = a_t h_{t-1} + b_t, and what a selective scan makes of it."""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_aot.reference._common import sequences, wide

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
    seq_idx: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    validate: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Runs the recurrence one step after the other. Shapes and source: `mamba_aot.selective_scan_fn`."""
    weights = (A, D, delta_bias, delta_softplus, discretization)
    batch, channels, length = u.shape
    rows = batch if cu_seqlens is None else cu_seqlens.shape[0] - 1
    h = wide(A, u.dtype).new_zeros(rows, channels, A.shape[1])
    if initial_state is not None:
        h = wide(initial_state, u.dtype)
    if seq_idx is None and cu_seqlens is None:
        out, last_state = _scan(u, delta, B, C, z, decay_gate, h, *weights)
        return (out, last_state) if return_last_state else out

    # Each packed sequence by itself, with the state before it.
    out = torch.zeros_like(u)
    ends = list((torch.zeros_like(h) if cu_seqlens is None else h).unbind(0))
    for row, start, stop, state_row in sequences(seq_idx, cu_seqlens):
        part = functools.partial(_steps_of, row=row, start=start, stop=stop, length=length)
        before = torch.zeros_like(h[:1]) if state_row is None else h[state_row : state_row + 1]
        y, after = _scan(part(u), part(delta), part(B), part(C), part(z), part(decay_gate), before, *weights)
        out[row, :, start:stop] = y[0]
        ends[row if cu_seqlens is None or state_row is None else state_row] = after[0]
    last_state = torch.stack(ends) if ends else h
    return (out, last_state) if return_last_state else out


def _steps_of(tensor: Tensor | None, row: int, start: int, stop: int, length: int) -> Any:
    """Steps of one batch row; of weights for all steps, all there is."""
    if tensor is None or tensor.dim() == 2:
        return tensor
    # (re, im) pairs make two numbers of a step.
    size = tensor.shape[-1] // max(length, 1)
    return tensor[row : row + 1, ..., start * size : stop * size]


def _scan(
    u: Tensor,
    delta: Tensor,
    B: Tensor,
    C: Tensor,
    z: Tensor | None,
    decay_gate: Tensor | None,
    h: Tensor,
    A: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    discretization: str,
) -> tuple[Tensor, Tensor]:
    dtype, length, channels = u.dtype, u.shape[2], u.shape[1]
    u, dt, A = wide(u, dtype), _per_channel(wide(delta, dtype), channels), wide(A, dtype)
    bias = delta_bias
    if bias is not None:
        bias = _per_channel(wide(bias, dtype)[None, :, None], channels)
    dt = step_size(dt, bias, delta_softplus)
    B = _per_channel(_as_sequence(B, A, length, dtype), channels)  # [B, D, L, N] or [1, D, 1, N]
    C = _per_channel(_as_sequence(C, A, length, dtype), channels)

    a, phi = discretize(dt.unsqueeze(-1), A.unsqueeze(1), discretization)  # [B, D, L, N]
    if decay_gate is not None:
        a = a * wide(decay_gate, dtype).transpose(1, 2).unsqueeze(1)
    inflow = phi * B * u.unsqueeze(-1)
    states = []
    for a_t, inflow_t in zip(a.unbind(2), inflow.unbind(2), strict=True):
        h = a_t * h + inflow_t
        states.append(h)
    y = read_out(torch.stack(states, dim=2) if states else inflow, C)  # [B, D, L]

    if D is not None:
        y = y + wide(D, dtype)[:, None] * u
    if z is not None:
        y = y * F.silu(wide(z, dtype))
    return y.to(dtype), h


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
    decays, inflows = wide(a, dtype).unbind(-1), wide(b, dtype).unbind(-1)
    h = wide(b.new_zeros(b.shape[:-1]) if initial_state is None else initial_state, dtype)
    steps = range(b.shape[-1])
    states = []
    for t in reversed(steps) if reverse else steps:
        h = decays[t] * h + inflows[t]
        states.append(h)
    if reverse:
        states.reverse()
    out = (torch.stack(states, dim=-1) if states else wide(b, dtype)).to(b.dtype)
    return (out, h) if return_last_state else out


def expm1_ratio(w: Tensor) -> Tensor:
    """(exp(w) - 1) / w, finite and smooth at w = 0, for real or complex w."""
    near = w.abs() <= 1
    w_near, w_far = torch.where(near, w, 0), torch.where(near, 1, w)
    series = torch.ones_like(w)
    for k in range(_SERIES_TERMS, 1, -1):
        series = 1 + series * w_near / k
    return torch.where(near, series, (torch.exp(w_far) - 1) / w_far)


def discretize(dt: Tensor, A: Tensor, discretization: str) -> tuple[Tensor, Tensor]:
    w = dt * A
    if discretization == "zoh":
        return torch.exp(w), dt * expm1_ratio(w)
    if discretization == "euler":
        return torch.exp(w), dt
    raise ValueError(f'discretization must be "euler" or "zoh", got {discretization!r}')


def step_size(dt: Tensor, bias: Tensor | None, softplus: bool) -> Tensor:
    if bias is not None:
        dt = dt + bias
    return F.softplus(dt) if softplus else dt


def read_out(h: Tensor, C: Tensor) -> Tensor:
    y = (h * C).sum(-1)
    return 2 * y.real if y.is_complex() else y


def grouped(tensor: Tensor, dims: int) -> Tensor:
    return tensor if tensor.dim() == dims else tensor.unsqueeze(1)


def _as_sequence(tensor: Tensor, A: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    """B or C as [B, G, L, N]; real ones of a complex A hold (re, im) pairs along the last dim, 2L long.

    What is [D, N] for all steps becomes [1, D, 1, N].
    """
    if tensor.dim() == 2:
        return wide(tensor, dtype)[None, :, None, :]
    if A.is_complex() and not tensor.is_complex():
        pairs = tensor.reshape(*tensor.shape[:-1], length, 2)
        tensor = torch.complex(*wide(pairs, dtype).unbind(-1))
    return wide(grouped(tensor, 4), dtype).transpose(2, 3)


def _per_channel(tensor: Tensor, channels: int) -> Tensor:
    """[B, G, ...] → [B, D, ...]: channel d belongs to group (or head) d // (D / G)."""
    groups = tensor.shape[1]
    return tensor if groups == channels else tensor.repeat_interleave(channels // groups, dim=1)
