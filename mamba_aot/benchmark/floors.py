"""The least time that a piece of work can take: its bytes at the speed of a copy, its exponentials at that of
their unit.
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mamba_aot.benchmark.shapes import Work

# Exponentials that a streaming multiprocessor's special-function unit makes in a clock.
_EXPONENTIALS_A_CLOCK = 16


@dataclass(frozen=True)
class Chip:
    """Speeds of a device: bytes and exponentials a second, the latter None where it isn't known."""

    bandwidth: float
    exponentials: float | None


@dataclass(frozen=True)
class Cost:
    """What a piece of work must at least do."""

    bytes: int
    exponentials: int = 0

    def floor_ms(self, chip: Chip) -> float:
        seconds = self.bytes / chip.bandwidth
        if chip.exponentials is not None:
            seconds = max(seconds, self.exponentials / chip.exponentials)
        return seconds * 1e3


def measure_chip(device: torch.device, clock_mhz: float | None) -> Chip:
    """Times a copy far larger than any cache; `clock_mhz` is the chip's highest clock, if known."""
    if device.type == "cpu":
        source = torch.ones(2**26)
        target = torch.zeros_like(source)
        times = []
        for _ in range(5):
            begin = time.perf_counter()
            target.copy_(source)
            times.append(time.perf_counter() - begin)
        return Chip(2 * source.nbytes / sorted(times)[2], None)
    source = torch.ones(2**28, device=device)
    target = torch.zeros_like(source)
    times = []
    for _ in range(7):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        target.copy_(source)
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    units = torch.cuda.get_device_properties(device).multi_processor_count
    rate = units * _EXPONENTIALS_A_CLOCK * clock_mhz * 1e6 if clock_mhz else None
    return Chip(2 * source.nbytes / sorted(times)[3], rate)


def costs(work: Work, inputs: Mapping[str, Any], outputs: Iterable[Tensor], written: str) -> dict[str, Cost]:
    """Of forward (every argument read, every result written) and backward (arguments and gradients of results
    read, gradients of arguments written); exponentials as one softplus, one SiLU and one decay a state.
    """
    read = sum(value.nbytes for value in inputs.values() if isinstance(value, Tensor))
    results = sum(out.nbytes for out in outputs) + (inputs[written].nbytes if written else 0)
    d = work.dims
    each = {
        "selective_scan": d.get("N", 0) * (3 if work.is_complex else 1) + 2,
        "state_update": d.get("N", 0) + 2,
        "causal_conv1d": 1,
        "causal_conv1d_update": 1,
    }.get(work.op, 0)
    count = each * elements(work)
    return {"forward": Cost(read + results, count), "backward": Cost(2 * read + results, count)}


def elements(work: Work) -> int:
    """Elements of the op's result."""
    d = work.dims
    return d["B"] * d["D"] * d.get("L", 1)
