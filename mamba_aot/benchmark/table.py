"""Rows of a benchmark, as a table for people and as values for JSON."""

from dataclasses import asdict, dataclass, field
from typing import Any

from rich.table import Table

from mamba_aot.benchmark.floors import Cost
from mamba_aot.benchmark.shapes import Work


@dataclass
class Row:
    """What was measured of one direction of one piece of work; None where it has no such figure."""

    work: Work
    direction: str
    ms: float
    error: float
    elements: int
    cost: Cost | None = None
    floor_ms: float | None = None
    host_us: float | None = None
    peak_mib: float | None = None
    peers_ms: dict[str, float] = field(default_factory=dict)

    def values(self) -> dict[str, Any]:
        """The row for JSON."""
        return {
            **_described(self.work),
            "direction": self.direction,
            "ms": self.ms,
            "ps_per_element": self.ms * 1e9 / self.elements,
            "least": asdict(self.cost) if self.cost else None,
            "floor_ms": self.floor_ms,
            "host_us": self.host_us,
            "peak_mib": self.peak_mib,
            "peers_ms": self.peers_ms,
            "max_error": self.error,
        }


@dataclass(frozen=True)
class Failure:
    """A piece of work that has no figures, and why."""

    work: Work
    reason: str

    def line(self) -> str:
        return f"FAILED {self.work.op} {self.work.label} {_how(self.work)}: {self.reason}"

    def values(self) -> dict[str, Any]:
        """The failure for JSON."""
        return {**_described(self.work), "failed": self.reason}


def _described(work: Work) -> dict[str, Any]:
    return {
        "op": work.op,
        "shape": work.dims,
        "dtype": work.dtype,
        "layout": work.layout,
        "complex": work.is_complex,
        "half_states": work.half_states,
        "gated": work.gated,
    }


def _how(work: Work) -> str:
    return work.dtype + (" channel-last" if work.layout == "channel" else "")


def make_table(rows: list[Row]) -> Table:
    """The columns: time, time an element, bytes that it must move over time, share of the floor, speed-up
    over each peer, largest error over largest value, host time, peak memory.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("op", no_wrap=True)
    table.add_column("shape", no_wrap=True)
    peers = list(dict.fromkeys(name for row in rows for name in row.peers_ms))
    heads = [
        "ms",
        "ps/elem",
        "GB/s",
        "% floor",
        *(f"x {name}" for name in peers),
        "max err",
        "host us",
        "peak MiB",
    ]
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        work = row.work
        name = work.op if row.direction == "step" else f"{work.op} {row.direction}"
        table.add_row(
            name,
            f"{work.label} {_how(work)}",
            f"{row.ms:.4f}",
            f"{row.ms * 1e9 / row.elements:.3g}",
            "" if row.cost is None else f"{row.cost.bytes / row.ms / 1e6:.0f}",
            "" if row.floor_ms is None else f"{100 * row.floor_ms / row.ms:.0f}",
            *(f"{row.peers_ms[peer] / row.ms:.2f}" if peer in row.peers_ms else "" for peer in peers),
            f"{row.error:.1e}",
            "" if row.host_us is None else f"{row.host_us:.1f}",
            "" if row.peak_mib is None else f"{row.peak_mib:.0f}",
        )
    return table
