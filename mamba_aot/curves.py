"""The loss curve of a training run, as a picture."""

from collections.abc import Sequence
from pathlib import Path


def draw_loss(
    steps: Sequence[int],
    bits: Sequence[float],
    title: str,
    path: Path,
    *,
    level: float | None = None,
    held_out: Sequence[tuple[int, float]] = (),
) -> None:
    """Draws the training loss over the steps, each and smoothed, as a PNG.

    Args:
        steps, bits: The curve, bits per byte.
        title: Above it.
        path: The file.
        level: The held-out result after training, drawn as a line.
        held_out: Results during training, (step, bits), drawn as points.
    """
    # The object interface, not pyplot: no display, no global state, and nothing imported before it is needed.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    window = max(1, len(bits) // 50)
    smooth = [
        sum(bits[max(0, i - window + 1) : i + 1]) / (i + 1 - max(0, i - window + 1)) for i in range(len(bits))
    ]
    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(steps, bits, color="#b8c4d6", linewidth=0.8, label="training, each step")
    axes.plot(steps, smooth, color="#1f4e8c", linewidth=1.8, label=f"training, mean of {window} steps")
    if level is not None:
        axes.axhline(level, color="#c2410c", linestyle="--", label=f"held out after training: {level:.3f}")
    if held_out:
        axes.plot(*zip(*held_out, strict=True), color="#c2410c", marker="o", markersize=3, label="held out")
    axes.set(xlabel="step", ylabel="bits per byte", title=title, ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path)
