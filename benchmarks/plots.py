"""Plots of the records that `mamba-aot bench` writes."""

from pathlib import Path
from typing import Any

import tables
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

Row = dict[str, Any]
_OURS, _PEER, _FLOOR = "#1f4e8c", "#b8c4d6", "#d98b3a"


def draw(records: dict[str, Row], folder: Path) -> None:
    """Writes scan.png and lengths.png into the folder, of the records that are there."""
    if "kernels" in records:
        _scan(records["kernels"], folder / "scan.png")
    if "sweep" in records:
        _lengths(records["sweep"], folder / "lengths.png")


def _figure(height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(7, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _scan(record: Row, path: Path) -> None:
    rows = [
        row
        for row in record["rows"]
        if row["layout"] == "seq" and tables.goal_of(row, record["rows"])[1] and row["op"] == "selective_scan"
    ]
    figure, axes = _figure(3.6)
    peers = [tables.goal_of(row, record["rows"])[1] for row in rows]
    for offset, times, label, color in (
        (-0.2, [row["ms"] * 1e3 for row in rows], "mamba_aot", _OURS),
        (0.2, peers, "mamba_ssm (CUDA C++, another run)", _PEER),
    ):
        bars = axes.barh(
            [place + offset for place in range(len(rows))], times, height=0.36, color=color, label=label
        )
        axes.bar_label(bars, fmt="%.0f", padding=3, fontsize=8)
    floors = [row["floor_ms"] * 1e3 for row in rows]
    axes.plot(floors, range(len(rows)), "|", color=_FLOOR, markersize=14, label="floor")
    axes.set_yticks(
        range(len(rows)), [f"{row['direction']}, {tables.shape_of(row)}" for row in rows], fontsize=8
    )
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.margins(x=0.12)
    axes.set_xlabel("microseconds a call, median")
    axes.set_title(
        f"Selective scan on one {record['machine']['device']}: bfloat16, N = 16, z, D, bias, softplus",
        fontsize=9,
    )
    # Below the axes: bars may end anywhere inside.
    axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.4, -0.14), ncols=3)
    figure.savefig(path)


def _lengths(record: Row, path: Path) -> None:
    figure, axes = _figure(2.8)
    for direction, color in (("forward", _OURS), ("backward", _FLOOR)):
        rows = [row for row in record["rows"] if row["direction"] == direction and row["shape"]["B"] == 1]
        lengths = [row["shape"]["L"] for row in rows]
        axes.plot(lengths, [row["ms"] for row in rows], "o-", color=color, label=direction, markersize=4)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set(xlabel="length of the sequence", ylabel="milliseconds")
    axes.set_title(f"Selective scan of B1 D1024 on one {record['machine']['device']}", fontsize=9)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path)
