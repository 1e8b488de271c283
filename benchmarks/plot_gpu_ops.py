"""Draws the scan's times of a record of `benchmarks/gpu_ops.py`, and prints its rows as tables.

python benchmarks/plot_gpu_ops.py benchmarks/results/h200/ops.json benchmarks/results/h200/scan.png
"""

import json
import sys
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def shape_name(row: dict) -> str:
    return " ".join(f"{letter}{size}" for letter, size in zip("BDL", row["shape"], strict=False))


def tables(rows: list[dict]) -> str:
    lines = [
        "| op | shape | layout | us | host us a call | peak memory / u | mamba_ssm us |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [row["op"], shape_name(row), row.get("layout", ""), f"{row['us']:.1f}"]
        cells.append(f"{row['host_us']:.0f}" if "host_us" in row else "")
        cells.append(f"{row['peak_memory_of_u']:.1f}" if "peak_memory_of_u" in row else "")
        cells.append(f"{row.get('mamba_ssm_us', '')}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(record: dict, path: Path) -> None:
    rows = [r for r in record["rows"] if "mamba_ssm_us" in r and r["layout"] == "seq-last"]
    figure = Figure(figsize=(7, 3.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for offset, key, label, color in (
        (-0.2, "us", "mamba_aot", "#1f4e8c"),
        (0.2, "mamba_ssm_us", "mamba_ssm (CUDA C++, another run)", "#b8c4d6"),
    ):
        places = [place + offset for place in range(len(rows))]
        bars = axes.barh(places, [row[key] for row in rows], height=0.36, color=color, label=label)
        axes.bar_label(bars, fmt="%.0f", padding=3, fontsize=8)
    names = [f"{row['op'].removeprefix('selective_scan ')}, {shape_name(row)}" for row in rows]
    axes.set_yticks(range(len(rows)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.margins(x=0.12)
    axes.set_xlabel("microseconds a call, median")
    axes.set_title(
        f"Selective scan on one {record['gpu']}: bfloat16, N = {record['state']}, z, D, bias, softplus",
        fontsize=9,
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="upper right")
    figure.savefig(path)


if __name__ == "__main__":
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    record = json.loads(source.read_text())
    draw(record, target)
    print(tables(record["rows"]))
