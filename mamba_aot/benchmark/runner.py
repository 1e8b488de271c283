"""A benchmark from its first line to its last: machine, checks, times, record."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from mamba_aot.benchmark import cases, correctness, floors, machine, models, peers, timing
from mamba_aot.benchmark.shapes import MODELS, Work
from mamba_aot.benchmark.table import Failure, Row

Say = Callable[[str], None]
# A call finds its arguments in memory, not in the cache, when the calls between touch this much of it.
_CACHES = 3
_MOST_COPIES = 1024


# What a piece of work may end in without ending the others: wrong results, refusals, memory, a faulty kernel.
_FAILURES = (AssertionError, RuntimeError, ValueError, TypeError, NotImplementedError)


@dataclass(frozen=True)
class Bench:
    """What every row is measured on and beside.

    Args:
        device: Where it runs.
        chip: How fast that is at best.
        facts: The same and more for JSON.
        compare: Names of `peers.PEERS`.
        say: Takes the lines that are no rows.
    """

    device: torch.device
    chip: floors.Chip
    facts: dict[str, Any]
    compare: Sequence[str]
    say: Say


def prepare(device: torch.device, compare: Sequence[str], say: Say) -> Bench:
    """Measures the device and says what it is."""
    facts = machine.collect(device)
    chip = floors.measure_chip(device, facts.get("max_clock_mhz"))
    facts |= asdict(chip)
    say(machine.line(facts, chip.bandwidth))
    return Bench(device, chip, facts, compare, say)


def run(bench: Bench, works: Sequence[Work]) -> tuple[list[Row], list[Failure]]:
    """Checks and times every work in turn; one whose results are wrong is a failure, and not timed."""
    rows: list[Row] = []
    failures: list[Failure] = []
    for work in works:
        try:
            rows += _run_one(bench, work)
        except _FAILURES as error:
            failures.append(Failure(work, f"{type(error).__name__}: {error}"))
            bench.say(failures[-1].line())
    return rows, failures


def _run_one(bench: Bench, work: Work) -> list[Row]:
    one = _run_block if work.op == "block" else _run_model if work.op in MODELS else _run_op
    if bench.device.type == "cpu":
        return one(bench, work)
    # A stream of its own: graphs are captured on it, and a backward runs where its forward ran.
    with torch.cuda.device(bench.device), torch.cuda.stream(torch.cuda.Stream()):
        rows = one(bench, work)
    torch.cuda.empty_cache()
    return rows


def _run_op(bench: Bench, work: Work) -> list[Row]:
    device, say = bench.device, bench.say
    errors = correctness.check(work, device)
    op = cases.op_of(work)
    with torch.no_grad():
        inputs = cases.enlarge(work, cases.sample(work), device)
        outputs = _outputs(op.function(**inputs))
    cost = floors.costs(work, inputs, outputs, op.written)
    contenders: dict[str, Callable[..., Any]] = {"mamba_aot": op.function}
    for name in bench.compare:
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
                cost[direction].floor_ms(bench.chip),
                peers_ms=times,
            )
        )
    if device.type == "cuda":
        with torch.no_grad():
            rows[0].host_us = timing.host_us(lambda: op.function(**inputs))
        if len(rows) > 1:
            # A forward, the gradients that come in, a backward.
            rows[-1].peak_mib = timing.peak_mib(lambda: _backward_call(op.function, inputs)(), device)
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
        calls[name] = [timing.on_one_thread(call) for call in made] if name == peers.ONE_THREAD else made
    return calls


def timed_calls(
    function: Callable[..., Any], inputs: dict[str, Any], backward: bool, device: torch.device
) -> list[timing.Call]:
    """Calls of one direction, as many as it takes to find the arguments in memory and not in the cache."""
    touched = sum(value.nbytes for value in inputs.values() if isinstance(value, Tensor))
    make = _backward_call if backward else _forward_call
    return [make(function, copy) for copy in _copies(inputs, touched, device)]


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


def _run_model(bench: Bench, work: Work) -> list[Row]:
    for name in bench.compare:
        bench.say(f"{name}: not timed for {work.op}")
    error = models.check_model(work, bench.device)
    with models.prepared_model(work, bench.device) as prepared:
        # Reading a prompt is long enough for one call a round.
        ms = timing.time_replays(prepared.call, bench.device, calls=1 if work.op == "prefill" else 20)
        # A step reads every weight once; a prompt's tokens share them and are bound by arithmetic.
        cost = floors.Cost(prepared.weight_bytes)
    dims = work.dims
    elements = dims["B"] * dims.get("L", 1)
    if work.op == "decode":
        return [Row(work, "step", ms, error, elements, cost, cost.floor_ms(bench.chip))]
    floor_ms = floors.prefill_ms(work, bench.chip)
    return [Row(work, "step", ms, error, elements, floor_ms=floor_ms)]


def _run_block(bench: Bench, work: Work) -> list[Row]:
    device = bench.device
    error = models.check_block(work, device)
    ours = models.block_calls(work, device)
    contenders = {"mamba_aot": ours}
    for name in bench.compare:
        if name != "mamba_ssm":
            bench.say(f"{name}: not timed for block")
            continue
        try:
            from mamba_ssm import Mamba  # pyright: ignore[reportMissingImports]
        except ImportError as reason:
            bench.say(f"{name}: not timed, it can't be imported ({reason})")
            continue
        contenders[name] = models.block_calls(work, device, make=Mamba)
    rows = []
    for direction in ours:
        times = timing.time_interleaved(
            {name: [calls[direction]] for name, calls in contenders.items()}, device
        )
        floor_ms = floors.block_ms(work, bench.chip, backward=direction != "forward")
        ms = times.pop("mamba_aot")
        rows.append(Row(work, direction, ms, error, _entries(work), floor_ms=floor_ms, peers_ms=times))
    if device.type == "cuda":
        rows[-1].peak_mib = timing.peak_mib(ours["forward + backward"], device)
        rows[0].host_us = timing.host_us(ours["forward"], calls=20)
    return rows


def _entries(work: Work) -> int:
    return math.prod(itertools.islice(work.dims.values(), 3))
