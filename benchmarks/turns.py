"""Times of calls that take turns."""

import statistics
from collections.abc import Callable
from time import perf_counter


def in_turn(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median milliseconds after a warm-up; the calls take turns: a busy moment of the machine hits all."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            begin = perf_counter()
            call()
            times[name].append((perf_counter() - begin) * 1e3)
    return {name: statistics.median(values[1:]) for name, values in times.items()}
