"""State update: one step of the selective scan, with the state kept in place between calls."""

import torch
from torch import Tensor

from mamba_aot.ops._boundary import as_pairs, is_zoh, require_tensors


@torch.no_grad()
def selective_state_update(
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
) -> Tensor:
    """Takes one step of `selective_scan_fn` and writes the new state into `state`.

    Arithmetic is float32, and the output is computed from the new state before that is rounded to the dtype
    of `state`. The meaning of every symbol is that of `selective_scan_fn`.

    Args:
        state: States, [slots, channels, state], float32, float16 or bfloat16, or complex64 if `A` is complex;
            any strides; written in place.
        x: The step, [batch, channels], float32, float16 or bfloat16; float64 on a CPU with a float64 state.
        dt: Step sizes, shape and dtype of `x`.
        A: Diagonal state matrix, [channels, state], real or complex.
        B: Input weights, [batch, state] or [batch, groups, state], any floating dtype; complex if `A` is.
        C: Output weights, shaped like `B`.
        D: Skip weight, [channels].
        z: Output gate, shape and dtype of `x`.
        dt_bias: Added to `dt`, [channels].
        dt_softplus: Whether the step size goes through softplus.
        state_batch_indices: Slot of each batch row, int32 [batch]; row i uses slot i when absent. A negative
            slot marks padding: its output is zero and no state is touched. Live rows name different slots.
        decay_gate: Factor on the decay, [batch, state].
        discretization: "euler" or "zoh".

    Returns:
        The output, [batch, channels], dtype of `x`. Not differentiable.

    Raises:
        TypeError: An argument is not a tensor.
        ValueError: A shape, dtype, device or option is not as above; nothing has been computed or written.
        RuntimeError: The GPU, its driver or a kernel image for it is missing.

    Source: signature of `mamba_ssm.ops.triton.selective_state_update`; Gu & Dao, "Mamba", arXiv 2312.00752,
    eq. 2.
    """
    require_tensors(
        "selective_state_update",
        dict(D=D, z=z, dt_bias=dt_bias, state_batch_indices=state_batch_indices, decay_gate=decay_gate),
        state=state,
        x=x,
        dt=dt,
        A=A,
        B=B,
        C=C,
    )
    zoh = is_zoh("selective_state_update", discretization)
    if state.dim() == 4 or A.dim() != 2:
        raise ValueError(
            "selective_state_update: state must be [slots, channels, state] and A [channels, state], "
            f"got {list(state.shape)} and {list(A.shape)}; the form with heads is not supported by this "
            "version: flatten heads into channels, expand A, dt and D over them, and pass B and C per group"
        )
    is_complex = A.is_complex()
    if state.is_complex() != is_complex:
        raise ValueError(
            f"selective_state_update: state must be {'complex' if is_complex else 'real'} because A is, "
            f"got {state.dtype}"
        )
    B, C = _op_weight("B", B, is_complex), _op_weight("C", C, is_complex)
    # Not as_pairs: the op writes into `state` itself, so a copy of it would lose the new state.
    pairs = torch.view_as_real(state) if is_complex else state
    # torch.compile rebuilds a written view from its base, which fails for a real view of a complex input.
    by_copy = is_complex and torch.compiler.is_compiling()
    written = pairs.clone() if by_copy else pairs
    out = torch.ops.mamba_aot.state_update(
        written,
        x,
        dt,
        as_pairs(A) if is_complex else A,
        B,
        C,
        D,
        z,
        dt_bias,
        decay_gate,
        state_batch_indices,
        dt_softplus,
        zoh,
    )
    torch.autograd.graph.increment_version(state)
    if by_copy:
        state.copy_(torch.view_as_complex(written))
    return out


def _op_weight(name: str, weight: Tensor, is_complex: bool) -> Tensor:
    """B or C as the op takes it: [B, G, N], or [B, G, N, 2] beside a complex A."""
    if weight.dim() not in (2, 3):
        raise ValueError(
            f"selective_state_update: {name} must be [batch, state] or [batch, groups, state], "
            f"got {list(weight.shape)}"
        )
    if weight.is_complex() != is_complex:
        raise ValueError(
            f"selective_state_update: {name} must be {'complex' if is_complex else 'real'} because A is, "
            f"got {weight.dtype}"
        )
    weight = weight.unsqueeze(1) if weight.dim() == 2 else weight
    return as_pairs(weight) if is_complex else weight


@torch.library.register_fake("mamba_aot::state_update")
def _(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    decay_gate: Tensor | None,
    state_batch_indices: Tensor | None,
    dt_softplus: bool,
    zoh: bool,
) -> Tensor:
    return x.new_empty(x.shape)
