"""State update: steps of the selective scan, with the state kept in place between calls; and the same as a
function of the state, which autograd can follow.
"""

import torch
from torch import Tensor

from mamba_aot.ops._boundary import (
    as_pairs,
    is_zoh,
    raises_typed_errors,
    state_dtype,
    untracked,
)
from mamba_aot.ops.selective_scan import selective_scan_fn


@raises_typed_errors
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
    dst_state_batch_indices: Tensor | None = None,
    pad_slot_id: int = -1,
    out: Tensor | None = None,
    intermediate_states: Tensor | None = None,
    accepted_steps: Tensor | None = None,
    disable_state_update: bool = False,
    validate: bool = False,
) -> Tensor:
    """Takes one step or a few of `selective_scan_fn` and writes the new state into `state`.

    Arithmetic is float32, and the output is computed from the new state before that is rounded to the dtype
    of `state`; between the steps of one call the state isn't rounded either. The meaning of every symbol is
    that of `selective_scan_fn`.

    Channels may be [heads, dim] instead, in every argument that has them: a state of four dimensions says so.
    The sequence may be [batch, steps, ...] instead of [batch, ...]: an `x` with one dimension more says so.
    Any strides are read as they are, so what is tied over dimensions can be passed with `expand`.

    Args:
        state: States, [slots, channels, state] or [slots, heads, dim, state], float32, float16 or bfloat16,
            or complex64 if `A` is complex; any strides; written in place.
        x: The steps, [batch, channels], [batch, steps, channels], [batch, heads, dim] or
            [batch, steps, heads, dim], float32, float16 or bfloat16; float64 on a CPU with a float64 state.
        dt: Step sizes, shape of `x`, in one of its dtypes (float64 only if `x` is). When dtypes of x, dt and
            z differ, a GPU takes float32 copies of them.
        A: Diagonal state matrix, [channels, state] or [heads, dim, state], real or complex.
        B: Input weights, [batch, state] or [batch, groups, state], after `batch` [steps] if `x` has it; any
            floating dtype; complex if `A` is. Groups divide the heads, or the channels where there are none.
        C: Output weights, shaped like `B`.
        D: Skip weight, [channels] or [heads, dim].
        z: Output gate, shape of `x`, in one of the dtypes of `dt`.
        dt_bias: Added to `dt`, [channels] or [heads, dim].
        dt_softplus: Whether the step size goes through softplus.
        state_batch_indices: Slot of each batch row, int32 [batch]; row i uses slot i when absent. A negative
            slot marks padding: its output is zero and no state is touched. Live rows name different slots.
        decay_gate: Factor on the decay, [batch, state] or [batch, steps, state].
        discretization: "euler" or "zoh".
        dst_state_batch_indices: Slot that the new state of each row is written to, int32 [batch], when that
            is not the slot it is read from; for padding it is not written. No row writes a slot that another
            row reads or writes.
        pad_slot_id: Another slot that marks padding, beside the negative ones.
        out: Tensor for the output, shape and dtype of `x`, any strides, memory of its own.
        intermediate_states: Receives the state after every step of each row, [batch, steps] and then the
            shape of a slot, dtype of `state`; `steps` is 1 if `x` has none. Rows of padding stay as they are.
        accepted_steps: Number of steps that the new state of each row takes, int32 [batch], between 0 and
            `steps` (what lies beyond counts as the nearer of them); all when absent. The output is that of
            all steps: drafted tokens that were rejected leave no trace in the state. (Not vLLM's
            `num_accepted_tokens`, which picks the state to start from.)
        disable_state_update: Whether `state` stays as it was.
        validate: Whether slots beyond those of `state` are an error on CUDA too, as they always are on a CPU.
            That waits for the device. Without it such rows are padding.

    Returns:
        The output, shape and dtype of `x`; `out` itself if given. Not differentiable: `selective_state_step`
        is.

    Raises:
        TypeError: An argument is not a tensor.
        ValueError: A shape, dtype, device or option is not as above; nothing has been computed or written.
        RuntimeError: The GPU, its driver or a kernel image for it is missing.

    Source: signatures of `mamba_ssm.ops.triton.selective_state_update` and, for what is new, of vLLM and
    FlashInfer; Gu & Dao, "Mamba", arXiv 2312.00752, eq. 2.
    """
    name = "selective_state_update"
    zoh = is_zoh(name, discretization)
    if validate and state.is_cuda:
        _require_slots("state_batch_indices", state_batch_indices, state.shape[0], pad_slot_id)
        _require_slots("dst_state_batch_indices", dst_state_batch_indices, state.shape[0], pad_slot_id)

    # The op knows pairs of numbers, and says itself what must be real.
    is_complex = A.is_complex()
    written = results = (state, intermediate_states)
    # torch.compile rebuilds a written view from its base, which fails for a real view of a complex input.
    by_copy = is_complex and torch.compiler.is_compiling()
    if is_complex:
        for argument, tensor in (("state", state), ("B", B), ("C", C)):
            _require_kind(name, argument, tensor, is_complex)
        if intermediate_states is not None:
            _require_kind(name, "intermediate_states", intermediate_states, is_complex)
        written = tuple(None if tensor is None else _written(tensor, by_copy) for tensor in results)
        A, B, C = as_pairs(A), as_pairs(B), as_pairs(C)
    fresh = untracked(
        torch.ops.mamba_aot.state_update.default,
        written[0],
        x,
        dt,
        A,
        B,
        C,
        D,
        z,
        dt_bias,
        decay_gate,
        state_batch_indices,
        dst_state_batch_indices,
        accepted_steps,
        out,
        written[1],
        pad_slot_id,
        dt_softplus,
        zoh,
        not disable_state_update,
        is_complex,
    )
    if not disable_state_update:
        torch.autograd.graph.increment_version(state)
    for tensor in (out, intermediate_states):
        if tensor is not None:
            torch.autograd.graph.increment_version(tensor)
    if by_copy:
        with torch.no_grad():
            for tensor, pairs in zip(results, written, strict=True):
                if tensor is not None and pairs is not None:
                    tensor.copy_(torch.view_as_complex(pairs))
    return fresh if out is None else out


@raises_typed_errors
def selective_state_step(
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
    """Takes the steps of `selective_state_update` without writing into `state`, and differentiably.

    The arguments are those of `selective_state_update`, with `state` [batch, channels, state] or
    [batch, heads, dim, state]: one slot per row.

    Returns:
        The output, shape and dtype of `x`, and the new state, shape and dtype of `state`.

    Raises:
        TypeError: An argument is not a tensor.
        ValueError: A shape, dtype, device or option is not as above; nothing has been computed.
        RuntimeError: The GPU, its driver or a kernel image for it is missing.

    Source: Gu & Dao, "Mamba", arXiv 2312.00752, eq. 2; it is a short `selective_scan_fn`.
    """
    name = "selective_state_step"
    is_zoh(name, discretization)
    is_complex = A.is_complex()
    many = _has_steps(name, state, x)
    for argument, tensor in (("state", state), ("B", B), ("C", C)):
        _require_kind(name, argument, tensor, is_complex)
    if not (is_complex or state.is_floating_point()):
        raise ValueError(
            f"{name}: state must be of a floating dtype, got {state.dtype}; convert it with .float()"
        )
    channels, states = state.shape[1:-1], state.shape[-1:]
    dims = "heads, dim" if len(channels) == 2 else "channels"
    batch = x.shape[: 2 if many else 1]
    lead = "batch, steps" if many else "batch"
    _require_shape(name, "state", state, f"batch, {dims}, state", (*x.shape[:1], *channels, *states))
    for argument, sequence in (("x", x), ("dt", dt), ("z", z)):
        _require_shape(name, argument, sequence, f"{lead}, {dims}", (*batch, *channels))
    _require_shape(name, "A", A, f"{dims}, state", (*channels, *states))
    for argument, vector in (("D", D), ("dt_bias", dt_bias)):
        _require_shape(name, argument, vector, dims, channels)
    for argument, weight in (("B", B), ("C", C)):
        groups = weight.shape[len(batch) : -1] if weight.dim() == len(batch) + 2 else ()
        inner = f"{lead}, groups, state" if groups else f"{lead}, state"
        _require_shape(name, argument, weight, inner, (*batch, *groups, *states))
        if groups and (groups[0] == 0 or channels[0] % groups[0]):
            raise ValueError(
                f"{name}: {argument} must have a number of groups that divides the {channels[0]} "
                f"{dims.split(',')[0]} of x, got {groups[0]}"
            )
    _require_shape(name, "decay_gate", decay_gate, f"{lead}, state", (*batch, *states))

    def sequence_of(tensor: Tensor, inner: int) -> Tensor:
        """[batch, (steps,) ...] as [batch, ..., steps], the last `inner` dimensions made one."""
        tensor = tensor.flatten(-inner, -1) if inner > 1 else tensor
        return tensor.movedim(1, -1) if many else tensor.unsqueeze(-1)

    inner = len(channels)
    wide = state_dtype(x).to_complex() if is_complex else state_dtype(x)
    result = selective_scan_fn(
        sequence_of(x, inner),
        sequence_of(dt, inner),
        A.flatten(0, -2),
        sequence_of(B, 1),
        sequence_of(C, 1),
        None if D is None else D.flatten(),
        None if z is None else sequence_of(z, inner),
        None if dt_bias is None else dt_bias.flatten(),
        dt_softplus,
        return_last_state=True,
        decay_gate=None if decay_gate is None else sequence_of(decay_gate, 1),
        discretization=discretization,
        initial_state=state.flatten(1, -2).to(wide),
    )
    y, last = result[0], result[1]
    y = y.movedim(-1, 1) if many else y.squeeze(-1)
    return y.reshape(x.shape), last.reshape(state.shape).to(state.dtype)


def _has_steps(name: str, state: Tensor, x: Tensor) -> bool:
    """Whether `x` has a dimension of steps, which `state` of right dimensions tells."""
    if state.dim() not in (3, 4):
        raise ValueError(
            f"{name}: state must be [slots, channels, state] or [slots, heads, dim, state], "
            f"got {list(state.shape)}"
        )
    if x.dim() not in (state.dim() - 1, state.dim()):
        heads = state.dim() == 4
        dims = "heads, dim" if heads else "channels"
        raise ValueError(
            f"{name}: x must be [batch, {dims}] or [batch, steps, {dims}], as state has "
            f"{'heads' if heads else 'no heads'}, got {list(x.shape)}"
        )
    return x.dim() == state.dim()


def _require_kind(name: str, argument: str, tensor: Tensor, is_complex: bool) -> None:
    if tensor.is_complex() != is_complex:
        raise ValueError(
            f"{name}: {argument} must be {'complex' if is_complex else 'real'} because A is, "
            f"got {tensor.dtype}"
        )


def _require_shape(
    name: str, argument: str, tensor: Tensor | None, dims: str, shape: tuple[int, ...]
) -> None:
    if tensor is not None and tensor.shape != shape:
        raise ValueError(f"{name}: {argument} must be [{dims}] = {list(shape)}, got {list(tensor.shape)}")


@torch.no_grad()
def _written(state: Tensor, by_copy: bool) -> Tensor:
    """A complex state as pairs that the op writes into: a view of it, or with `by_copy` a copy."""
    # Not as_pairs: a copy of a lazy conjugate would lose what is new.
    pairs = torch.view_as_real(state)
    return pairs.clone() if by_copy else pairs


def _require_slots(argument: str, indices: Tensor | None, slots: int, pad_slot_id: int) -> None:
    if indices is None:
        return
    outside = (indices >= slots) & (indices != pad_slot_id)
    if outside.any():
        position = int(outside.int().argmax())
        raise ValueError(
            f"selective_state_update: {argument} must be slots below {slots} (or negative, for padding), "
            f"got {int(indices[position])} at position {position}"
        )


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
    dst_state_batch_indices: Tensor | None,
    accepted_steps: Tensor | None,
    out: Tensor | None,
    intermediate_states: Tensor | None,
    pad_slot_id: int,
    dt_softplus: bool,
    zoh: bool,
    update_state: bool,
    is_complex: bool,
) -> Tensor:
    return x.new_empty(x.shape) if out is None else x.new_empty(0)
