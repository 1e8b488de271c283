"""Clocks: CUDA graphs between events on a GPU, the wall clock on a CPU; medians of interleaved rounds."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

Call = Callable[[], Any]
# A round of one contender on a GPU lasts at least this long.
_ROUND_MS = 3.0
_ROUNDS = 7
_WARM_UPS = 3


def time_interleaved(contenders: Mapping[str, Sequence[Call]], device: torch.device) -> dict[str, float]:
    """Median milliseconds a call of each contender, whose calls are alike but for the memory that they use.

    On a GPU the calls are captured in one CUDA graph, in turn, until a replay is long enough.
    """
    prepared = {name: _prepare(calls, device) for name, calls in contenders.items()}
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(_ROUNDS):
        for name, round_of in prepared.items():
            times[name].append(round_of())
    return {name: sorted(found)[_ROUNDS // 2] for name, found in times.items()}


def time_replays(replay: Call, device: torch.device, calls: int = 20) -> float:
    """Median milliseconds of a call as it is, without capturing it: a graph already, or a long one."""
    replay()
    if device.type == "cpu":
        return sorted(_wall_ms([replay]) for _ in range(_ROUNDS))[_ROUNDS // 2]
    rounds = sorted(_event_ms(lambda: [replay() for _ in range(calls)], calls) for _ in range(_ROUNDS))
    return rounds[_ROUNDS // 2]


def host_us(call: Call, calls: int = 100) -> float:
    """Microseconds that an eager call keeps the host busy: many of them, and no waiting for the GPU."""
    for _ in range(_WARM_UPS):
        call()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(calls):
        call()
    spent = time.perf_counter() - begin
    torch.cuda.synchronize()
    return spent / calls * 1e6


def peak_mib(call: Call, device: torch.device) -> float:
    """The most memory that a call takes beyond what is there before it."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def on_one_thread(call: Call) -> Call:
    """The call with one thread of torch's."""

    def limited() -> None:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            call()
        finally:
            torch.set_num_threads(threads)

    return limited


def _prepare(calls: Sequence[Call], device: torch.device) -> Callable[[], float]:
    if device.type == "cpu":
        calls[0]()
        return lambda: _wall_ms(calls)
    for call in calls[:_WARM_UPS] or calls:
        call()
    once = _event_ms(calls[0], calls=1)
    count = max(len(calls), 2, min(200, int(_ROUND_MS / max(once, 1e-3))))
    stream, graph = torch.cuda.current_stream(), torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        for index in range(count):
            calls[index % len(calls)]()
    graph.replay()
    return lambda: _event_ms(graph.replay, calls=count)


def _event_ms(run: Call, calls: int) -> float:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / calls


def _wall_ms(calls: Sequence[Call]) -> float:
    begin = time.perf_counter()
    for call in calls:
        call()
    return (time.perf_counter() - begin) / len(calls) * 1e3
