"""The causal convolution, over whole sequences and step by step."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_aot.reference._common import sequences, wide


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
        for row, start, stop, states_row in sequences(seq_idx, cu_seqlens):
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


def causal_conv1d_varlen_states_ref(x: Tensor, cu_seqlens: Tensor, state_len: int) -> Tensor:
    """The last steps of each sequence. Shapes and source: `mamba_aot.causal_conv1d_varlen_states`."""
    states = [
        torch.cat([x.new_zeros(state_len, x.shape[1]), x[start:stop]])[stop - start :].T
        for _, start, stop, _ in sequences(None, cu_seqlens)
    ]
    return torch.stack(states) if states else x.new_zeros(0, x.shape[1], state_len)


def _convolve(padded: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> Tensor:
    if activation not in (None, "silu", "swish"):
        raise ValueError(f'activation must be None, "silu" or "swish", got {activation!r}')
    width = weight.shape[1]
    length = padded.shape[2] - width + 1
    steps, taps = wide(padded, padded.dtype), wide(weight, padded.dtype)
    y = torch.zeros_like(steps[..., :length])
    for k in range(width):
        y = y + taps[:, k, None] * steps[..., k : k + length]
    if bias is not None:
        y = y + wide(bias, padded.dtype)[:, None]
    return (F.silu(y) if activation else y).to(padded.dtype)


def _slots(indices: Tensor | None, x: Tensor) -> tuple[Tensor, Tensor]:
    """State slots of the live batch rows, and the mask of live rows; a negative index marks padding."""
    if indices is None:
        indices = torch.arange(x.shape[0], device=x.device)
    live = indices >= 0
    return indices[live].long(), live
