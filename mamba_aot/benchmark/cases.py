"""Arguments of every op at the size to be timed, and the function and reference that take them.

A few channels are drawn and repeated until there are enough: that is quick for any size, and those channels
can be computed alone, by the reference.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mamba_aot import reference, testing
from mamba_aot.benchmark.shapes import Work
from mamba_aot.ops.causal_conv1d import causal_conv1d_fn, causal_conv1d_update
from mamba_aot.ops.linear_recurrence import linear_recurrence
from mamba_aot.ops.rms_norm import rms_norm_fn
from mamba_aot.ops.selective_scan import selective_scan_fn
from mamba_aot.ops.state_update import selective_state_update

# The most that are drawn.
SAMPLED = 8


@dataclass(frozen=True)
class Op:
    """How an op is called.

    Args:
        function: The op.
        reference: Its eager truth, with the same arguments.
        axes: Which axis of an argument is the one that is sampled; the others are passed whole.
        letter: The dimension that is sampled: the op does the same along it everywhere.
        written: The argument that the op writes into, which then has no backward.
    """

    function: Callable[..., Any]
    reference: Callable[..., Any]
    axes: Mapping[str, int]
    letter: str = "D"
    written: str = ""


_TABLE = {
    "selective_scan": Op(
        selective_scan_fn,
        reference.selective_scan_ref,
        dict(u=1, delta=1, A=0, D=0, z=1, delta_bias=0),
    ),
    "causal_conv1d": Op(causal_conv1d_fn, reference.causal_conv1d_ref, dict(x=1, weight=0, bias=0)),
    "state_update": Op(
        selective_state_update,
        reference.selective_state_update_ref,
        dict(state=1, x=1, dt=1, A=0, D=0, z=1, dt_bias=0),
        written="state",
    ),
    "causal_conv1d_update": Op(
        causal_conv1d_update,
        reference.causal_conv1d_update_ref,
        dict(x=1, conv_state=1, weight=0, bias=0),
        written="conv_state",
    ),
    "linear_recurrence": Op(linear_recurrence, reference.linear_recurrence_ref, dict(a=1, b=1)),
    "rms_norm": Op(rms_norm_fn, reference.rms_norm_ref, dict(x=1, residual=1), letter="L"),
}


def op_of(work: Work) -> Op:
    return _TABLE[work.op]


def sample(work: Work) -> dict[str, Any]:
    """Arguments on the CPU for at most `SAMPLED` channels (rows of a norm)."""
    d, dtype = work.dims, getattr(torch, work.dtype)
    few = min(SAMPLED, d[op_of(work).letter])
    if work.op == "selective_scan":
        inputs = testing.make_scan_inputs(
            d["B"],
            few,
            d["L"],
            d["N"],
            dtype=dtype,
            is_complex=work.is_complex,
            decay_gate=work.gated,
            discretization="zoh" if work.gated else "euler",
        )
        if not work.is_complex:
            # As the published block passes them.
            inputs |= {"B": inputs["B"].to(dtype), "C": inputs["C"].to(dtype)}
        return inputs
    if work.op == "causal_conv1d":
        return testing.make_conv_inputs(d["B"], few, d["L"], d["W"], dtype=dtype, weight_dtype=torch.float32)
    if work.op == "state_update":
        inputs = testing.make_state_update_inputs(d["B"], few, d["N"], dtype=dtype)
        return inputs | {"B": inputs["B"].to(dtype), "C": inputs["C"].to(dtype)}
    if work.op == "causal_conv1d_update":
        return testing.make_conv_update_inputs(
            d["B"], few, d["W"], kept=d["W"], dtype=dtype, weight_dtype=torch.float32
        )
    if work.op == "linear_recurrence":
        return testing.make_linear_recurrence_inputs(d["B"], few, d["L"], dtype=dtype)
    return testing.make_norm_inputs(
        d["B"],
        few,
        d["D"],
        dtype=dtype,
        weight_dtype=torch.float32,
        residual=True,
        residual_dtype=torch.float32,
        bias=False,
        prenorm=True,
        residual_in_fp32=True,
    )


def positions(work: Work) -> Tensor:
    """Where the sampled channels stand among all: spread over them, each where a copy of it is."""
    size = work.dims[op_of(work).letter]
    few = min(SAMPLED, size)
    last = size // few - 1
    return torch.tensor([k * last // max(few - 1, 1) * few + k for k in range(few)])


def enlarge(work: Work, inputs: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """The arguments at full size on `device`; gradients flow back to the channels at `positions` alone."""
    size, where = work.dims[op_of(work).letter], positions(work).to(device)
    axes, large = op_of(work).axes, {}
    for name, value in inputs.items():
        if not isinstance(value, Tensor):
            large[name] = value
            continue
        value = value.to(device)
        if name in axes:
            index = torch.arange(size, device=device) % len(where)
            copies = value.detach().index_select(axes[name], index)
            value = copies.index_copy(axes[name], where, value)
        ordered = work.layout == "channel" and name in axes and value.dim() == 3
        large[name] = testing.place(value, "channel") if ordered else value
    return large
