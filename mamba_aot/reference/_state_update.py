"""A few steps of the selective scan, with states kept in slots."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_aot.reference._common import wide
from mamba_aot.reference._scan import discretize, grouped, read_out, step_size


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
        tensor = wide(tensor, dtype).flatten(tensor.dim() - dims)
        return tensor if many else tensor.unsqueeze(1)

    dims = state.dim() - 2
    x, dt, A = in_steps(x, dims), in_steps(dt, dims), wide(A, dtype).flatten(0, -2)
    dt = step_size(dt, None if dt_bias is None else wide(dt_bias, dtype).flatten(), dt_softplus)
    B, C = in_steps(B, 1), in_steps(C, 1)
    B, C = (
        grouped(t.flatten(0, 1), 3).repeat_interleave(x.shape[2] // (t.shape[2] if t.dim() == 4 else 1), 1)
        for t in (B, C)
    )
    B, C = (t.reshape(*x.shape, A.shape[1]) for t in (B, C))  # [B, steps, D, N]
    a, phi = discretize(dt.unsqueeze(-1), A, discretization)
    if decay_gate is not None:
        a = a * in_steps(decay_gate, 1).unsqueeze(2)
    inflow = phi * B * x.unsqueeze(-1)
    states = [wide(state, dtype).flatten(1, -2)]
    for t in range(x.shape[1]):
        states.append(a[:, t] * states[-1] + inflow[:, t])
    y = read_out(torch.stack(states[1:], dim=1) if len(states) > 1 else inflow, C)
    if D is not None:
        y = y + wide(D, dtype).flatten() * x
    if z is not None:
        y = y * F.silu(in_steps(z, dims))
    return y.reshape(shape), [h.reshape(state.shape) for h in states]
