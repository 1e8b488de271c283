"""A benchmark from its first line to its last: machine, checks, times, record."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mamba_aot.benchmark import cases, correctness, floors, machine, models, peers, timing
from mamba_aot.benchmark.shapes import MODELS, Work
from mamba_aot.benchmark.table import Row, floor_of

Say = Callable[[str], None]
# A call finds its arguments in memory, not in the cache, when the calls between touch this much of it.
_CACHES = 3
_MOST_COPIES = 1024


def run(
    works: Sequence[Work], device: torch.device, compare: Sequence[str], say: Say
) -> tuple[dict[str, Any], list[Row]]:
    """Checks and times every work in turn.

    Returns:
        What it was measured on, for JSON, and the rows.

    Raises:
        AssertionError: A result is wrong; nothing of it was timed.
    """
    facts = machine.collect(device)
    chip = floors.measure_chip(device, facts.get("max_clock_mhz"))
    facts |= {"copy_bytes_per_s": chip.bandwidth, "exponentials_per_s": chip.exponentials}
    say(machine.line(facts, chip.bandwidth))
    rows: list[Row] = []
    for work in works:
        one = _run_model if work.op in MODELS else _run_op
        if device.type == "cpu":
            rows += one(work, device, chip, compare, say)
            continue
        # A stream of its own: graphs are captured on it, and a backward runs where its forward ran.
        with torch.cuda.device(device), torch.cuda.stream(torch.cuda.Stream()):
            rows += one(work, device, chip, compare, say)
        torch.cuda.empty_cache()
    return facts, rows


def _run_op(
    work: Work, device: torch.device, chip: floors.Chip, compare: Sequence[str], say: Say
) -> list[Row]:
    errors = correctness.check(work, device)
    op = cases.op_of(work)
    with torch.no_grad():
        inputs = cases.enlarge(work, cases.sample(work), device)
        outputs = _outputs(op.function(**inputs))
    cost = floors.costs(work, inputs, outputs, op.written)
    contenders: dict[str, Callable[..., Any]] = {"mamba_aot": op.function}
    for name in compare:
        found = peers.peer(name, work)
        if isinstance(found, str):
            say(found)
        else:
            contenders[name] = found
    rows = []
    for direction, error in errors.items():
        copies = _copies(inputs, cost[direction].bytes, device)
        calls = _calls_that_run(contenders, copies, direction, say)
        times = timing.time_interleaved(calls, device)
        del calls, copies
        rows.append(
            Row(
                work,
                "step" if op.written else direction,
                times.pop("mamba_aot"),
                error,
                floors.elements(work),
                cost[direction],
                floor_of(cost[direction], chip),
                peers_ms=times,
            )
        )
    if device.type == "cuda":
        with torch.no_grad():
            rows[0].host_us = timing.host_us(lambda: op.function(**inputs))
    return rows


def _calls_that_run(
    contenders: Mapping[str, Callable[..., Any]], copies: list[dict[str, Any]], direction: str, say: Say
) -> dict[str, list[timing.Call]]:
    """The contenders' calls; of a peer whose first one fails, the reason instead."""
    make = _forward_call if direction == "forward" else _backward_call
    calls = {}
    for name, function in contenders.items():
        try:
            made = [make(function, copy) for copy in copies]
            made[0]()
        except (RuntimeError, TypeError, NotImplementedError) as error:
            if name == "mamba_aot":
                raise
            say(f"{name}: {direction} not timed, it fails here: {str(error).splitlines()[0]}")
            continue
        calls[name] = made
    return calls


def _forward_call(function: Callable[..., Any], inputs: dict[str, Any]) -> timing.Call:
    def call() -> None:
        with torch.no_grad():
            function(**inputs)

    return call


def _backward_call(function: Callable[..., Any], inputs: dict[str, Any]) -> timing.Call:
    leaves = {
        name: value.detach().requires_grad_() if isinstance(value, Tensor) else value
        for name, value in inputs.items()
    }
    outputs = _outputs(function(**leaves))
    wanted = [leaf for leaf in leaves.values() if isinstance(leaf, Tensor)]
    douts = [torch.randn_like(out) for out in outputs]
    return lambda: torch.autograd.grad(outputs, wanted, douts, retain_graph=True)


def _copies(inputs: dict[str, Any], touched: int, device: torch.device) -> list[dict[str, Any]]:
    """The arguments, and on a GPU as many copies of them as no cache holds."""
    if device.type == "cpu":
        return [inputs]
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    count = max(1, min(_MOST_COPIES, math.ceil(_CACHES * cache / touched)))
    return [inputs, *(_copy(inputs) for _ in range(count - 1))]


def _copy(inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: value.clone() if isinstance(value, Tensor) else value for name, value in inputs.items()}


def _outputs(result: Any) -> tuple[Tensor, ...]:
    return tuple(result) if isinstance(result, tuple | list) else (result,)


def _run_model(
    work: Work, device: torch.device, chip: floors.Chip, compare: Sequence[str], say: Say
) -> list[Row]:
    if work.op == "block":
        return _run_block(work, device, compare, say)
    for name in compare:
        say(f"{name}: not timed for {work.op}")
    error = models.check_model(work, device)
    with models.prepared_model(work, device) as prepared:
        # Reading a prompt is long enough for one call a round.
        ms = timing.time_replays(prepared.call, device, calls=1 if work.op == "prefill" else 20)
    dims = work.dims
    cost = floors.Cost(prepared.least_bytes) if prepared.least_bytes else None
    elements = dims["B"] * dims.get("L", 1)
    return [Row(work, "step", ms, error, elements, cost, floor_of(cost, chip))]


def _run_block(work: Work, device: torch.device, compare: Sequence[str], say: Say) -> list[Row]:
    error = models.check_block(work, device)
    ours = models.block_calls(work, device)
    contenders = {"mamba_aot": ours}
    for name in compare:
        if name != "mamba_ssm":
            say(f"{name}: not timed for block")
            continue
        try:
            from mamba_ssm import Mamba  # pyright: ignore[reportMissingImports]
        except ImportError as reason:
            say(f"{name}: not timed, it can't be imported ({reason})")
            continue
        contenders[name] = models.block_calls(work, device, make=Mamba)
    rows = []
    for direction in ours:
        times = timing.time_interleaved(
            {name: [calls[direction]] for name, calls in contenders.items()}, device
        )
        rows.append(Row(work, direction, times.pop("mamba_aot"), error, _entries(work), peers_ms=times))
    if device.type == "cuda":
        rows[-1].peak_mib = models.peak_mib(ours["forward + backward"], device)
        rows[0].host_us = timing.host_us(ours["forward"], calls=20)
    return rows


def _entries(work: Work) -> int:
    return math.prod(itertools.islice(work.dims.values(), 3))
