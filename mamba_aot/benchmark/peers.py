"""What the ops are compared with, if it is installed."""

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch

from mamba_aot.benchmark import cases
from mamba_aot.benchmark.shapes import Work

PEERS = ("mamba_ssm", "causal_conv1d", "eager", "compile", "one_thread")
# Ours with one thread, for its speed-up by more; it has calls of its own.
ONE_THREAD = "one_thread"

# Package, op: module, function and the arguments that it takes, in its order.
_PUBLISHED = {
    ("mamba_ssm", "selective_scan"): (
        "mamba_ssm.ops.selective_scan_interface",
        "selective_scan_fn",
        ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "delta_softplus"),
    ),
    ("mamba_ssm", "state_update"): (
        "mamba_ssm.ops.triton.selective_state_update",
        "selective_state_update",
        ("state", "x", "dt", "A", "B", "C", "D", "z", "dt_bias", "dt_softplus"),
    ),
    ("mamba_ssm", "rms_norm"): (
        "mamba_ssm.ops.triton.layer_norm",
        "rms_norm_fn",
        ("x", "weight", "bias", "residual"),
    ),
    ("causal_conv1d", "causal_conv1d"): (
        "causal_conv1d",
        "causal_conv1d_fn",
        ("x", "weight", "bias"),
    ),
    ("causal_conv1d", "causal_conv1d_update"): (
        "causal_conv1d",
        "causal_conv1d_update",
        ("x", "conv_state", "weight", "bias"),
    ),
}
# Its steps are a Python loop, which torch.compile unrolls.
_LOOPS = ("selective_scan", "linear_recurrence")


def require_peers(names: Sequence[str], device_type: str) -> None:
    """Raises ValueError for a peer that there is not."""
    for name in names:
        if name not in PEERS:
            raise ValueError(f'bench: --compare must name some of {", ".join(PEERS)}, got "{name}"')
        if name == ONE_THREAD and device_type != "cpu":
            raise ValueError(f"bench: --compare {ONE_THREAD} is for --device cpu, got --device {device_type}")


def peer(name: str, work: Work) -> Callable[..., Any] | str:
    """A function with the op's arguments, or why there is none."""
    reference = cases.op_of(work).reference
    if name == ONE_THREAD:
        return cases.op_of(work).function
    if name == "eager":
        return reference
    if name == "compile":
        if work.op in _LOOPS:
            return f"compile: not timed for {work.op}, whose steps torch.compile would unroll"
        return torch.compile(reference)
    if (name, work.op) not in _PUBLISHED:
        return f"{name}: has no {work.op}"
    module, function, arguments = _PUBLISHED[name, work.op]
    try:
        found = getattr(importlib.import_module(module), function)
    except ImportError as error:
        return f"{name}: not timed, it can't be imported ({error})"
    fixed = {"activation": "silu"} if name == "causal_conv1d" else {}
    if work.op == "rms_norm":
        fixed = {"prenorm": True, "residual_in_fp32": True}
    return lambda **inputs: found(*(inputs[argument] for argument in arguments), **fixed)
