"""Teaches DTensor to split the ops over devices; importing it is all there is to do.

Scan, convolution and their updates split over channels (tensor parallel), the recurrence over any leading
dimension, norms over rows; what has a batch splits over that too. Gradients of what every device holds whole
are sums over the devices.

    import mamba_aot.distributed
    u = distribute_tensor(u, mesh, [Shard(1)])          # [B, D, L]
    A = distribute_tensor(A, mesh, [Shard(0)])          # [D, N]
    y = selective_scan_fn(u, delta, A, B, C)            # B and C replicated: y is Shard(1)

What an update writes in place, `state`, `conv_state`, must be split over channels already.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.distributed.tensor import Partial, Placement, Replicate, Shard
from torch.distributed.tensor.experimental import register_sharding

from mamba_aot import _native

# Says why where the ops are not there to be split.
_native.library()
_ops = torch.ops.mamba_aot

# For every argument or result that is split the dimension, or "sum" for a result that has to be added up;
# what is not named is whole on every device.
Split = Mapping[str, int | str]
Ways = Iterator[tuple[Split, Split]]


def _register(op: Any, splits: Callable[[dict[str, Any]], Ways]) -> None:
    """Registers the ways to split `op`; `splits` makes pairs, for arguments and results, of its arguments."""
    names = [argument.name for argument in op._schema.arguments]
    results = [result.name or "out" for result in op._schema.returns]

    def rule(*args: Any) -> list[tuple[list[Placement | None], list[Placement | None]]]:
        given = dict(zip(names, args, strict=True))
        tensors = [hasattr(value, "placements") for value in args]

        def inputs(split: Split) -> list[Placement | None]:
            return [_placement(split.get(n)) if t else None for n, t in zip(names, tensors, strict=True)]

        def outputs(split: Split) -> list[Placement | None]:
            return [_placement(split.get(name)) for name in results]

        return [(outputs(out), inputs(arg)) for arg, out in [({}, {}), *splits(given)]]

    register_sharding(op)(rule)


def _placement(split: int | str | None) -> Placement:
    return Replicate() if split is None else Partial(split) if isinstance(split, str) else Shard(split)


def _scan_forward(given: dict[str, Any]) -> Ways:
    saves = given["save_states"]
    yield (
        _SCAN | _over_channels(given) | {"initial_state": 1},
        {"out": 1, "last_state": 1} | ({"chunk_states": 3} if saves else {}),
    )
    if given.get("cu_seqlens") is None:
        yield (
            _over_batch(given) | {"initial_state": 0},
            {"out": 0, "last_state": 0} | ({"chunk_states": 0} if saves else {}),
        )


def _scan_backward(given: dict[str, Any]) -> Ways:
    split = _over_channels(given)
    yield (
        _SCAN | split | {"dout": 1, "dlast_state": 1, "chunk_states": 3},
        {"du": 1, "dA": 0, "dinitial_state": 1}
        | {f"d{name}": split.get(name, "sum") for name in ("delta", "B", "C")}
        | _present(given, {"D": 0, "z": 1, "delta_bias": 0, "decay_gate": "sum"}),
    )
    if given.get("cu_seqlens") is None:
        split = _over_batch(given)
        yield (
            split | {"dout": 0, "dlast_state": 0, "chunk_states": 0},
            {"du": 0, "ddelta": 0, "dA": "sum", "dinitial_state": 0}
            | {f"d{name}": split.get(name, "sum") for name in ("B", "C")}
            | _present(given, {"D": "sum", "z": 0, "delta_bias": "sum", "decay_gate": 0}),
        )


_SCAN: dict[str, int | str] = {"u": 1, "A": 0, "D": 0, "z": 1, "delta_bias": 0}


def _over_channels(given: dict[str, Any]) -> dict[str, int | str]:
    """delta, B and C as the channels are split: what all of them share is whole."""
    dims = {name: 0 if _is_constant(given, name) else 1 for name in ("B", "C")} | {"delta": 1}
    return {name: dim for name, dim in dims.items() if given[name].shape[dim] > 1}


def _over_batch(given: dict[str, Any]) -> dict[str, int | str]:
    split: dict[str, int | str] = {"u": 0, "delta": 0, "z": 0, "decay_gate": 0, "runs": 1}
    return split | {name: 0 for name in ("B", "C") if not _is_constant(given, name)}


def _is_constant(given: dict[str, Any], name: str) -> bool:
    """Whether B or C is the same for all steps, [D, N] like A."""
    return given[name].ndim == given["A"].ndim


def _conv_forward(given: dict[str, Any]) -> Ways:
    yield {"x": 1, "weight": 0, "bias": 0, "initial_states": 1}, {"out": 1}
    # Packed sequences name rows of the initial states, which are others on every device.
    if given["sequences"] is None:
        yield {"x": 0, "initial_states": 0}, {"out": 0}


def _conv_backward(given: dict[str, Any]) -> Ways:
    yield (
        {"dout": 1, "x": 1, "weight": 0, "bias": 0, "initial_states": 1},
        {"dx": 1, "dweight": 0} | _present(given, {"bias": 0, "initial_states": 1}),
    )
    if given["sequences"] is None:
        yield (
            {"dout": 0, "x": 0, "initial_states": 0},
            {"dx": 0, "dweight": "sum"} | _present(given, {"bias": "sum", "initial_states": 0}),
        )


def _sequence_runs(given: dict[str, Any]) -> Ways:
    yield {"seq_idx": 0}, {"out": 1}


def _conv_sequences(given: dict[str, Any]) -> Ways:
    yield {"x": 1, "weight": 0, "initial_states": 1}, {}


def _conv_update(given: dict[str, Any]) -> Ways:
    _require_channels("causal_conv1d_update", "conv_state", given["conv_state"])
    yield {"x": 1, "conv_state": 1, "weight": 0, "bias": 0}, {"out": 1}


def _state_update(given: dict[str, Any]) -> Ways:
    _require_channels("selective_state_update", "state", given["state"])
    # [batch, (steps,) channels] or [batch, (steps,) heads, dim], as the state is [slots, channels, state]
    # or [slots, heads, dim, state]; complex ones have pairs behind that.
    heads = given["state"].ndim - (1 if given["is_complex"] else 0) == 4
    channels = given["x"].ndim - (2 if heads else 1)
    groups = _groups(given, channels)
    yield (
        {"state": 1, "x": channels, "dt": channels, "A": 0, "D": 0, "z": channels, "dt_bias": 0}
        | {"out": channels, "intermediate_states": 2}
        | groups,
        # Beside the argument `out` the result is empty.
        {"out": channels} if given["out"] is None else {},
    )


def _recurrence_forward(given: dict[str, Any]) -> Ways:
    for dim in range(given["b"].ndim - (2 if given["complex"] else 1)):
        chunks = {"chunk_states": dim + 1} if given["save_states"] else {}
        yield {"a": dim, "b": dim, "initial_state": dim}, {"h": dim, "last_state": dim} | chunks


def _recurrence_backward(given: dict[str, Any]) -> Ways:
    for dim in range(given["a"].ndim - (2 if given["complex"] else 1)):
        saved = {"a": dim, "b": dim, "h": dim, "initial_state": dim, "chunk_states": dim + 1}
        yield saved | {"dh": dim, "dlast_state": dim}, {"da": dim, "db": dim, "dinitial_state": dim}


def _norm_forward(given: dict[str, Any]) -> Ways:
    for dim in (0, 1):
        asked = ({"sum": dim} if given["keep_sum"] else {}) | ({"mean": dim} if given["centered"] else {})
        yield {"x": dim, "residual": dim, "z": dim}, {"out": dim, "rstd": dim} | asked


def _norm_backward(given: dict[str, Any]) -> Ways:
    for dim in (0, 1):
        rows = {"dout": dim, "dsum": dim, "x": dim, "residual": dim, "z": dim, "rstd": dim}
        residual = given["residual"]
        other = residual is not None and residual.tensor_meta.dtype != given["dout"].tensor_meta.dtype
        yield (
            rows | ({"mean": dim} if given["centered"] else {}),
            {"dx": dim, "dweight": "sum"}
            | _present(given, {"bias": "sum", "z": dim})
            | ({"dresidual": dim} if other else {}),
        )


def _groups(given: dict[str, Any], dim: int) -> dict[str, int | str]:
    """B and C over their groups where there are several: channels are split at the borders of groups."""
    rank = dim + (3 if given["is_complex"] else 2)
    return {n: dim for n in ("B", "C") if given[n].ndim == rank and given[n].shape[dim] > 1}


def _present(given: dict[str, Any], gradients: Split) -> dict[str, int | str]:
    """Gradients of the arguments that are there; the others are empty."""
    return {f"d{name}": split for name, split in gradients.items() if given[name] is not None}


def _require_channels(function: str, name: str, spec: Any) -> None:
    if not all(placement == Shard(1) for placement in spec.placements):
        raise ValueError(
            f"{function}: {name} is written in place, so it must be split over channels, Shard(1) on every "
            f"dimension of the mesh, got {list(spec.placements)}; redistribute it first"
        )


for _op, _splits in (
    (_ops.selective_scan_fwd, _scan_forward),
    (_ops.selective_scan_bwd, _scan_backward),
    (_ops.sequence_runs, _sequence_runs),
    (_ops.causal_conv1d_sequences, _conv_sequences),
    (_ops.causal_conv1d_fwd, _conv_forward),
    (_ops.causal_conv1d_bwd, _conv_backward),
    (_ops.causal_conv1d_update, _conv_update),
    (_ops.state_update, _state_update),
    (_ops.linear_recurrence_fwd, _recurrence_forward),
    (_ops.linear_recurrence_bwd, _recurrence_backward),
    (_ops.rms_norm_fwd, _norm_forward),
    (_ops.rms_norm_bwd, _norm_backward),
):
    _register(_op.default, _splits)
