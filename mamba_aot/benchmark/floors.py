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
from mamba_aot.benchmark.timing import Call, on_one_thread, time_replays

# Exponentials that a streaming multiprocessor's special-function unit makes in a clock.
_EXPONENTIALS_A_CLOCK = 16


@dataclass(frozen=True)
class Chip:
    """Speeds of a device a second, None where one isn't known.

    Args:
        bandwidth: Bytes that a copy reads and writes; on a CPU one into new memory.
        exponentials: Of float32.
        operations: Multiplications and additions of a large product of bfloat16 matrices.
        threads_gain: Of a CPU: how much faster all its threads make exponentials than one does.
    """

    bandwidth: float
    exponentials: float | None = None
    operations: float | None = None
    threads_gain: float | None = None


@dataclass(frozen=True)
class Cost:
    """What a piece of work must at least do."""

    bytes: int
    exponentials: int = 0
    operations: int = 0

    def floor_ms(self, chip: Chip) -> float:
        seconds = self.bytes / chip.bandwidth
        if chip.exponentials is not None:
            seconds = max(seconds, self.exponentials / chip.exponentials)
        if chip.operations is not None:
            seconds = max(seconds, self.operations / chip.operations)
        return seconds * 1e3


def measure_chip(device: torch.device, clock_mhz: float | None) -> Chip:
    """Times a copy far larger than any cache, and what else floors need.

    On a GPU exponentials are counted, at `clock_mhz`, its highest clock, if that is known.
    """
    if device.type == "cpu":
        return _measure_cpu()
    source, target = torch.ones(2**28, device=device), torch.zeros(2**28, device=device)
    copied = _median_s(lambda: target.copy_(source), device)
    size = 8192
    matrix = source[: size * size].view(size, size).bfloat16()
    multiplied = _median_s(lambda: matrix @ matrix, device)
    units = torch.cuda.get_device_properties(device).multi_processor_count
    rate = units * _EXPONENTIALS_A_CLOCK * clock_mhz * 1e6 if clock_mhz else None
    return Chip(2 * source.nbytes / copied, rate, 2 * size**3 / multiplied)


def _measure_cpu() -> Chip:
    """By the fastest of many short rounds: what other programs take is no floor."""
    source = torch.ones(2**24)
    # Into new memory, as results are: the system hands that out page by page, longer than a copy takes.
    copied = _least_s(source.clone, 10)
    # In the cache of one core.
    values, results = torch.linspace(-8, 0, 2**15), torch.zeros(2**15)
    threads = torch.get_num_threads()
    alone = _least_s(on_one_thread(lambda: torch.exp(values, out=results)), 200)
    many = values.repeat(threads)
    together = _least_s(lambda: torch.exp(many, out=results.resize_(len(many))), 200)
    gain = threads * alone / together
    return Chip(2 * source.nbytes / copied, gain * len(values) / alone, threads_gain=gain)


def _least_s(call: Call, rounds: int) -> float:
    call()
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return min(times)


def _median_s(call: Call, device: torch.device) -> float:
    return time_replays(call, device, calls=4) / 1e3


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


def block_ms(work: Work, chip: Chip, *, backward: bool) -> float | None:
    """The floor of a published block: its products, convolution and scan one after the other.

    None where the speed of products isn't known: on a CPU, and in float32.
    """
    if chip.operations is None or work.dtype == "float32":
        return None
    d = work.dims
    return sum(cost.floor_ms(chip) for cost in _layer_costs(d["B"] * d["L"], d["M"], backward=backward))


def prefill_ms(work: Work, chip: Chip) -> float | None:
    """The floor of reading a prompt: that of its layers."""
    if chip.operations is None or work.dtype == "float32":
        return None
    d = work.dims
    layer = sum(cost.floor_ms(chip) for cost in _layer_costs(d["B"] * d["L"], d["M"], backward=False))
    return d["layers"] * layer


def _layer_costs(tokens: int, width: int, *, backward: bool) -> list[Cost]:
    """Of each kernel that a block needs, in sixteen bits: expansion 2, 16 states, rank width / 16."""
    inner, state, rank, item = 2 * width, 16, -(-width // 16), 2
    passes = 3 if backward else 1
    costs = []
    for rows, columns in ((width, 2 * inner), (inner, rank + 2 * state), (rank, inner), (inner, width)):
        moved = item * (tokens * (rows + columns) + rows * columns)
        costs.append(Cost(passes * moved, operations=passes * 2 * tokens * rows * columns))
    element = tokens * inner
    # The convolution reads x and writes one; the scan reads x, delta and z, and writes one.
    costs += [Cost(2 * item * element, element), Cost(4 * item * element, (state + 2) * element)]
    if backward:
        # Beside what the forward read, the gradients of results; written are those of arguments.
        costs += [Cost(3 * item * element, element), Cost(7 * item * element, (state + 2) * element)]
    return costs
