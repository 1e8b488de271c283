"""Tables in Markdown of the records that `mamba-aot bench` writes."""

import json
import math
from pathlib import Path
from typing import Any

Row = dict[str, Any]
GOALS = json.loads(Path(__file__).with_name("goals.json").read_text())


def shape_of(row: Row) -> str:
    """Without the dimensions that all rows of an op have alike."""
    sizes = {k: v for k, v in row["shape"].items() if k not in ("N", "W")}
    return " ".join(f"{name}{size}" for name, size in sizes.items())


def goal_of(row: Row, rows: list[Row]) -> tuple[float | None, float | None]:
    """Microseconds of the goal and of the peer, where there are any."""
    for goal in GOALS["rows"]:
        same = goal["op"] == row["op"] and goal["direction"] == row["direction"]
        same = same and goal["shape"] == shape_of(row) and goal.get("complex", False) == row["complex"]
        same = same and not row.get("gated", False)
        # A scan's goal is for either memory order.
        if not same or goal.get("layout", row["layout"]) != row["layout"] or row["dtype"] != "bfloat16":
            continue
        if "goal_times_real" not in goal:
            return goal.get("goal_us"), goal.get("peer_us")
        real = [
            other["ms"]
            for other in rows
            if not other["complex"]
            and all(other[key] == row[key] for key in ("op", "direction", "shape", "dtype", "layout"))
        ]
        return (goal["goal_times_real"] * real[0] * 1e3 if real else None), None
    return None, None


def works(record: Row) -> str:
    """A row for each direction of each piece of work, with floor, goal and peer."""
    heads = ["work", "shape", "us", "floor us", "% of floor", "goal us", "peer us", "host us", "peak MiB"]
    lines = []
    for row in record["rows"]:
        us = row["ms"] * 1e3
        floor = row["floor_ms"]
        goal, peer = goal_of(row, record["rows"])
        lines.append(
            [
                _name(row),
                shape_of(row) + _kind(row),
                _number(us),
                "" if floor is None else _number(floor * 1e3),
                "" if floor is None else f"{100 * floor / row['ms']:.0f}",
                "" if goal is None else f"{_number(goal)}{'' if us <= goal else ' (missed)'}",
                "" if peer is None else f"{_number(peer)} ({peer / us:.2f}x)",
                "" if row["host_us"] is None else f"{row['host_us']:.1f}",
                "" if row["peak_mib"] is None else f"{row['peak_mib']:.0f}",
            ]
        )
    return _markdown(heads, lines)


def sweep(record: Row) -> str:
    """Lengths, and the slope of time over length; numbers of states; dtypes."""
    pairs: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in record["rows"]:
        key = (shape_of(row), str(row["shape"]["N"]), row["dtype"])
        pairs.setdefault(key, {})[row["direction"]] = row
    lines = []
    for (shape, state, dtype), both in pairs.items():
        cells = [shape, state, dtype]
        for direction in ("forward", "backward"):
            row = both[direction]
            cells += [_number(row["ms"] * 1e3), f"{row['ps_per_element']:.1f}"]
            cells.append(f"{row['ps_per_element'] / int(state):.2f}")
        lines.append(cells)
    each = ["us", "ps/element", "ps/element and state"]
    heads = ["shape", "N", "dtype", *(f"{way} {head}" for way in ("forward", "backward") for head in each)]
    slopes = [f"{way} {slope(record['rows'], way):.3f}" for way in ("forward", "backward")]
    told = f"Slope of log time over log length from L 4096 to the longest: {', '.join(slopes)}."
    return f"{_markdown(heads, lines)}\n\n{told}"


def slope(rows: list[Row], direction: str) -> float:
    """Of log time over log length, least squares, from 4096 steps on; of rows that differ in length alone."""
    points = [
        (math.log(row["shape"]["L"]), math.log(row["ms"]))
        for row in rows
        if row["direction"] == direction and row["shape"]["B"] == 1 and row["shape"]["L"] >= 4096
    ]
    x_mean, y_mean = (sum(values) / len(points) for values in zip(*points, strict=True))
    above = sum((x - x_mean) * (y - y_mean) for x, y in points)
    return above / sum((x - x_mean) ** 2 for x, _ in points)


def cpu(record: Row) -> str:
    """Rows with the share of what exponentials or bytes alone take, and the gain by the second thread."""
    lines = [
        [
            _name(row),
            shape_of(row) + _kind(row),
            f"{row['ms']:.2f}",
            f"{row['floor_ms']:.2f}",
            f"{100 * row['floor_ms'] / row['ms']:.0f}",
            f"{row['peers_ms']['one_thread'] / row['ms']:.2f}" if "one_thread" in row["peers_ms"] else "",
        ]
        for row in record["rows"]
    ]
    return _markdown(["work", "shape", "ms", "floor ms", "% of floor", "times one thread"], lines)


def _name(row: Row) -> str:
    return row["op"] if row["direction"] == "step" else f"{row['op']} {row['direction']}"


def _kind(row: Row) -> str:
    words = ["complex"] * row["complex"] + ["channel-last"] * (row["layout"] == "channel")
    words += ["half states"] * row.get("half_states", False)
    words += ["gate and ZOH"] * row.get("gated", False)
    words += [row["dtype"]] * (row["dtype"] != "bfloat16")
    return "".join(f", {word}" for word in words)


def _number(us: float) -> str:
    return f"{us:.1f}" if us < 100 else f"{us:.0f}"


def _markdown(heads: list[str], lines: list[list[str]]) -> str:
    """Without the columns that no line fills."""
    used = [index for index in range(len(heads)) if any(line[index] for line in lines)]
    rows = [[line[index] for index in used] for line in [heads, ["---"] * len(heads), *lines]]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
