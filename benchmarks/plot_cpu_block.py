"""Draws what `benchmarks/cpu_block.py` recorded.

python benchmarks/plot_cpu_block.py benchmarks/results/cpu/block.json benchmarks/results/cpu/block.png
"""

import json
import sys
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

result = json.loads(Path(sys.argv[1]).read_text())
rows = {"forward": result["forward"], "forward + backward": result["forward_backward"]}
figure = Figure(figsize=(7, 2.4), dpi=120, layout="constrained")
FigureCanvasAgg(figure)
axes = figure.add_subplot()
for place, (_name, row) in enumerate(rows.items()):
    for offset, package, color in ((0.2, "mamba_aot", "#1f4e8c"), (-0.2, "mambapy", "#b8c4d6")):
        label = package if place == 0 else None
        bar = axes.barh(place + offset, row[package], height=0.36, color=color, label=label)
        axes.bar_label(bar, fmt="%.0f ms", padding=3, fontsize=9)
axes.set_yticks(range(len(rows)), list(rows))
axes.invert_yaxis()
axes.margins(x=0.12)
axes.set(
    xlabel="milliseconds a call, median",
    title=f"One Mamba block: batch {result['batch']}, length {result['length']}, width {result['d_model']}, "
    f"float32, {result['threads']} threads",
)
axes.title.set_fontsize(10)
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False, loc="upper right")
figure.savefig(sys.argv[2])
