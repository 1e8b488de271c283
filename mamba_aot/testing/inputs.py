"""Arguments for the ops, drawn from a seed."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mamba_aot.testing._random import Random

LAYOUTS = ("seq", "channel", "sliced", "strided")


def make_scan_inputs(
    batch: int = 2,
    dim: int = 8,
    length: int = 63,
    state: int = 16,
    *,
    dtype: torch.dtype = torch.float32,
    delta_dtype: torch.dtype | None = None,
    z_dtype: torch.dtype | None = None,
    weight_dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    seed: int = 0,
    layout: str = "seq",
    is_complex: bool = False,
    interleaved: bool = False,
    groups: int | None = None,
    D: bool = True,
    z: bool = True,
    delta_bias: bool = True,
    delta_softplus: bool = True,
    decay_gate: bool = False,
    initial_state: bool = False,
    discretization: str = "euler",
    heads: int | None = None,
    constant: str = "",
    seq_idx: Sequence[Sequence[int]] | None = None,
    cu_seqlens: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Arguments of `selective_scan_fn` as a trained model has them: step sizes from 1e-3 to 1, Re A < 0.

    Args:
        batch: Size B; `dim`, `length`, `state` and `groups` are D, L, N and G. Without G, B and C are 3-D.
        dtype: Of the sequences u, delta, z.
        delta_dtype: Of delta, and
        z_dtype: of z, when that is another one.
        weight_dtype: Of real A, B, C, D, delta_bias, decay_gate; when None float64 beside float64 sequences,
            else float32, which is also the dtype of the state and of complex pairs.
        layout: Memory of everything with a length: "seq" and "channel" are dense, "sliced" is part of a wider
            sequence-last tensor, "strided" every second step of one.
        is_complex: Whether A, B, C and the state are complex; Im A is pi n (S4D-Lin).
        interleaved: Whether complex B and C are passed as real ones with a last dim of 2L.
        heads: Rows of delta and delta_bias, or None for one per channel.
        constant: Which of B and C are [dim, state]: "", "B", "C" or "BC".
        seq_idx: Lengths of the sequences packed in each batch row, which make up `batch` and `length`; a
            negative one is that many steps of padding.
        cu_seqlens: Lengths of the sequences packed in one row.
    """
    random = Random(seed)
    batch, length, rows, packing = _packed(batch, length, seq_idx, cu_seqlens, device)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    weight = wide if weight_dtype is None else weight_dtype
    state_like = wide.to_complex() if is_complex else wide
    bc_dtype = weight if interleaved or not is_complex else state_like
    bc_shape = (batch, state, length) if groups is None else (batch, groups, state, length)
    if interleaved:
        bc_shape = (*bc_shape[:-1], 2 * length)

    heads = dim if heads is None else heads
    bias = random.log_uniform(1e-3, 1e-1, heads)
    delta = random.log_uniform(1e-3, 1, batch, heads, length)
    if delta_softplus:
        bias = _inverse_softplus(bias)
        delta = _inverse_softplus(delta) - (bias[:, None] if delta_bias else 0)
    A = -random.log_uniform(0.5, max(1, state), dim, state)
    if is_complex:
        A = torch.complex(A, math.pi * torch.arange(state, dtype=torch.float64).expand(dim, state))

    def sequence(values: Tensor, of: torch.dtype) -> Tensor:
        return place(values.to(of).to(device), layout)

    def weights(name: str) -> Tensor:
        if name in constant:
            return random.normal(dim, state, of=bc_dtype).to(bc_dtype).to(device)
        return sequence(random.normal(*bc_shape, of=bc_dtype), bc_dtype)

    inputs: dict[str, Any] = {
        "u": sequence(random.normal(batch, dim, length), dtype),
        "delta": sequence(delta, delta_dtype or dtype),
        "A": A.to(state_like if is_complex else weight).to(device),
        "B": weights("B"),
        "C": weights("C"),
        "D": random.normal(dim).to(weight).to(device) if D else None,
        "z": sequence(random.normal(batch, dim, length), z_dtype or dtype) if z else None,
        "delta_bias": bias.to(weight).to(device) if delta_bias else None,
        "delta_softplus": delta_softplus,
        "discretization": discretization,
    }
    gate = torch.sigmoid(random.normal(batch, state, length) + 2)
    inputs["decay_gate"] = sequence(gate, weight) if decay_gate else None
    h = random.normal(rows, dim, state, of=state_like).to(state_like).to(device)
    inputs["initial_state"] = h if initial_state else None
    return inputs | packing


def make_state_update_inputs(
    batch: int = 2,
    dim: int = 8,
    state: int = 16,
    *,
    state_dtype: torch.dtype | None = None,
    slots: int | None = None,
    targets: bool = False,
    steps: int | None = None,
    heads: int | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Arguments of `selective_state_update`: the first steps of `make_scan_inputs(..., **options)`.

    Args:
        state_dtype: Of the state when it is not that of a scan.
        slots: Number of states kept; batch rows then use distinct slots, drawn from `options["seed"]`.
        targets: Whether new states go to slots of their own, distinct from those they are read from.
        steps: Number of steps, or None for an x without that dimension.
        heads: Number of heads that the channels are, or None for an x without that dimension.
    """
    scan = make_scan_inputs(batch, dim, 2 if steps is None else steps, state, initial_state=True, **options)
    h = scan["initial_state"]
    indices, written = None, None
    if slots is not None:
        random = Random(options.get("seed", 0))
        order = torch.randperm(slots, generator=random.generator).to(torch.int32).to(h.device)
        indices, written = order[:batch], order[batch : 2 * batch]
        h = random.normal(slots, dim, state, of=h.dtype).to(h)

    def step(tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        return tensor[..., 0] if steps is None else tensor.movedim(-1, 1)

    def split(tensor: Tensor | None, axis: int) -> Tensor | None:
        return tensor if tensor is None or heads is None else tensor.unflatten(axis, (heads, dim // heads))

    return {
        "state": split(h.clone() if state_dtype is None else h.to(state_dtype), 1),
        "x": split(step(scan["u"]), -1),
        "dt": split(step(scan["delta"]), -1),
        "A": split(scan["A"], 0),
        "B": step(scan["B"]),
        "C": step(scan["C"]),
        "D": split(scan["D"], 0),
        "z": split(step(scan["z"]), -1),
        "dt_bias": split(scan["delta_bias"], 0),
        "dt_softplus": scan["delta_softplus"],
        "state_batch_indices": indices,
        "decay_gate": step(scan["decay_gate"]),
        "discretization": scan["discretization"],
        **({"dst_state_batch_indices": written} if targets else {}),
    }


def make_conv_inputs(
    batch: int = 2,
    dim: int = 8,
    length: int = 63,
    width: int = 4,
    *,
    dtype: torch.dtype = torch.float32,
    weight_dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    seed: int = 0,
    layout: str = "seq",
    bias: bool = True,
    initial_states: bool = False,
    activation: str | None = "silu",
    seq_idx: Sequence[Sequence[int]] | None = None,
    cu_seqlens: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Arguments of `causal_conv1d_fn`; dtypes and layouts as in `make_scan_inputs`.

    Args:
        seq_idx: Lengths of the sequences packed in each batch row, which make up `batch` and `length`; a
            negative one is that many steps of padding.
        cu_seqlens: Lengths of the sequences packed in one row.
    """
    random = Random(seed)
    weight = dtype if weight_dtype is None else weight_dtype
    batch, length, rows, packing = _packed(batch, length, seq_idx, cu_seqlens, device)
    before = place(random.normal(rows, dim, width - 1).to(dtype).to(device), layout)
    return {
        **packing,
        "x": place(random.normal(batch, dim, length).to(dtype).to(device), layout),
        "weight": random.normal(dim, width).to(weight).to(device),
        "bias": random.normal(dim).to(weight).to(device) if bias else None,
        "initial_states": before if initial_states else None,
        "activation": activation,
    }


def make_linear_recurrence_inputs(
    *shape: int,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    seed: int = 0,
    layout: str = "seq",
    initial_state: bool = False,
    reverse: bool = False,
) -> dict[str, Any]:
    """Arguments of `linear_recurrence` for a `shape` [..., length], [2, 8, 63] when there is none: decays of
    magnitude 0.3 to 1, of any sign or phase; a complex `dtype` makes all complex. Layouts as in
    `make_scan_inputs`.
    """
    shape = shape or (2, 8, 63)
    random = Random(seed)
    decay = random.normal(*shape, of=dtype)
    decay = decay / decay.abs().clamp(min=1e-6) * random.log_uniform(0.3, 1, *shape)
    wide = torch.promote_types(dtype, torch.float32)
    b, h = random.normal(*shape, of=dtype), random.normal(*shape[:-1], of=dtype)
    return {
        "a": place(decay.to(dtype).to(device), layout),
        "b": place(b.to(dtype).to(device), layout),
        "initial_state": h.to(wide).to(device) if initial_state else None,
        "reverse": reverse,
    }


def make_conv_update_inputs(
    batch: int = 2,
    dim: int = 8,
    width: int = 4,
    *,
    steps: int | None = None,
    kept: int | None = None,
    slots: int | None = None,
    ring: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Arguments of `causal_conv1d_update`.

    Args:
        steps: Length of x, or None for a two-dimensional x.
        kept: Steps the state holds, width - 1 when None.
        slots: Number of states kept; batch rows then use distinct slots, drawn from `options["seed"]`.
        ring: Whether the state is one, of which each sequence has seen another number of steps.
        options: Those of `make_conv_inputs`.
    """
    kept = width - 1 if kept is None else kept
    conv = make_conv_inputs(batch, dim, 1 if steps is None else steps, width, **options)
    options |= {"seed": options.get("seed", 0) + 1}
    states = make_conv_inputs(batch if slots is None else slots, dim, kept, width, **options)
    indices = None
    if slots is not None:
        generator = Random(options.get("seed", 0)).generator
        indices = torch.randperm(slots, generator=generator)[:batch].to(torch.int32).to(conv["x"].device)
    seen = 7 * torch.arange(batch, dtype=torch.int32, device=conv["x"].device) + 2
    return {
        "x": conv["x"] if steps is not None else conv["x"][..., 0],
        "conv_state": states["x"],
        "weight": conv["weight"],
        "bias": conv["bias"],
        "activation": conv["activation"],
        "cache_seqlens": seen if ring else None,
        "conv_state_indices": indices,
    }


def make_norm_inputs(
    batch: int = 2,
    rows: int = 63,
    channels: int = 24,
    *,
    dtype: torch.dtype = torch.float32,
    weight_dtype: torch.dtype | None = None,
    residual_dtype: torch.dtype | None = None,
    z_dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    seed: int = 0,
    layout: str = "channel",
    bias: bool = True,
    residual: bool = False,
    z: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Arguments of `rms_norm_fn` (with `residual`) or `rmsnorm_fn` (with `z`); `options` are passed on.

    Args:
        layout: Memory of x, residual and z as [batch, channels, rows]: rows lie dense in "channel" only.
    """
    random = Random(seed)
    weight = dtype if weight_dtype is None else weight_dtype

    def sequence(of: torch.dtype) -> Tensor:
        values = random.normal(batch, channels, rows) + 0.5
        return place(values.to(of).to(device), layout).transpose(1, 2)

    inputs = {
        "x": sequence(dtype),
        "weight": (1 + 0.5 * random.normal(channels)).to(weight).to(device),
        "bias": random.normal(channels).to(weight).to(device) if bias else None,
    }
    if residual:
        inputs["residual"] = sequence(dtype if residual_dtype is None else residual_dtype)
    if z:
        inputs["z"] = sequence(z_dtype or dtype)
    return inputs | options


def _packed(
    batch: int,
    length: int,
    seq_idx: Sequence[Sequence[int]] | None,
    cu_seqlens: Sequence[int] | None,
    device: str | torch.device,
) -> tuple[int, int, int, dict[str, Tensor]]:
    """Batch, length, rows of states and index arguments of what is packed, if anything is."""
    if seq_idx is not None:
        steps = [[i if n > 0 else -1 for i, n in enumerate(row) for _ in range(abs(n))] for row in seq_idx]
        index = torch.tensor(steps, dtype=torch.int32, device=device)
        batch, length = index.shape
        return batch, length, batch, {"seq_idx": index}
    if cu_seqlens is not None:
        ends = torch.tensor([0, *itertools.accumulate(cu_seqlens)], dtype=torch.int32, device=device)
        return 1, sum(cu_seqlens), len(cu_seqlens), {"cu_seqlens": ends}
    return batch, length, batch, {}


def place(tensor: Tensor, layout: str) -> Tensor:
    """The values of `tensor` [batch, ..., length] in one of the `LAYOUTS`; see `make_scan_inputs`."""
    if layout == "seq":
        return tensor.contiguous()
    if layout == "channel":
        return tensor.movedim(-1, 1).contiguous().movedim(1, -1)
    if layout == "sliced":
        wide = tensor.new_zeros(*tensor.shape[:-2], tensor.shape[-2] + 2, tensor.shape[-1] + 3)
        view = wide[..., 1 : tensor.shape[-2] + 1, 1 : tensor.shape[-1] + 1]
        return view.copy_(tensor)
    if layout == "strided":
        wide = tensor.new_zeros(*tensor.shape[:-1], 2 * tensor.shape[-1])
        return wide[..., ::2].copy_(tensor)
    raise ValueError(f"place: layout must be one of {LAYOUTS}, got {layout!r}")


def _inverse_softplus(y: Tensor) -> Tensor:
    return y + torch.log(-torch.expm1(-y))
