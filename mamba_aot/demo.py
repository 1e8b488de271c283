"""The demo: trains a byte-level `MambaLM` on a text, lets it write, and records what happened.

What it writes into its directory: `model.safetensors` and `config.json` (the model), `loss.png` (the loss
curve) and `metrics.json` (the figures and everything needed to get them again).
"""

import dataclasses
import hashlib
import json
import math
import os
import platform
import sys
from pathlib import Path
from time import perf_counter

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from mamba_aot import _native
from mamba_aot.checkpoint import save_pretrained
from mamba_aot.config import MambaLMConfig
from mamba_aot.curves import draw_loss
from mamba_aot.generation import stream
from mamba_aot.layers import SSMConfig
from mamba_aot.model import MambaLM
from mamba_aot.text import Bytes
from mamba_aot.training import TrainingConfig, TrainingStep, bits_per_token, train

MODEL = MambaLMConfig(n_layer=4, ssm=SSMConfig(d_model=192, d_state=8))
HELD_OUT_SHARE = 0.05
SAMPLE_BYTES = 400
# Enough for one window of training and for a held-out part that is more than a few words.
MIN_TEXT_BYTES = 10_000


@dataclasses.dataclass(frozen=True)
class Text:
    """A text to train on: its name, its bytes, and how many of them, at the end, are held out."""

    name: str
    data: bytes

    @property
    def held_out(self) -> int:
        """Bytes at the end that training never sees."""
        return int(len(self.data) * HELD_OUT_SHARE)


def read_text(path: Path | None) -> Text:
    """Reads the text of a file, or with None the Python language reference that CPython ships for `help()`.

    Raises:
        ValueError: There is no such file, or too little in it.
    """
    if path is None:
        try:
            from pydoc_data.topics import topics
        except ImportError:
            raise ValueError(
                "demo: this Python ships without pydoc_data.topics, the default text; pass --text FILE"
            ) from None
        text = Text("pydoc_data.topics", "\n".join(topics[name] for name in sorted(topics)).encode())
    else:
        try:
            text = Text(path.name, path.read_bytes())
        except OSError as error:
            raise ValueError(
                f"demo: --text must be a file that can be read, got {path}: {error.strerror}"
            ) from None
    if len(text.data) < MIN_TEXT_BYTES:
        raise ValueError(
            f"demo: the text must have at least {MIN_TEXT_BYTES} bytes, {text.name} has {len(text.data)}"
        )
    return text


def require_directory(out: Path) -> None:
    """Raises ValueError unless files can be written into `out`, existing or not."""
    nearest = next(parent for parent in (out, *out.absolute().parents) if parent.exists())
    if not nearest.is_dir():
        raise ValueError(f"demo: --out must be a directory, {nearest} is a file")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ValueError(f"demo: --out must be a directory that can be written, {nearest} cannot")


def run(text: Text, device: torch.device, steps: int, seed: int, out: Path, console: Console) -> dict:
    """Trains, generates, and writes the files; returns what `metrics.json` holds.

    Progress goes to `console`. Nothing is written before training has ended.

    Raises:
        RuntimeError: The loss is no longer finite.
    """
    torch.manual_seed(seed)
    tokens = torch.frombuffer(bytearray(text.data), dtype=torch.uint8)
    held_out = tokens[tokens.numel() - text.held_out :]
    training = TrainingConfig(steps=steps, seed=seed)
    model = MambaLM(MODEL).to(device)
    console.print(
        f"{text.name}: {len(text.data):,} bytes, the last {text.held_out:,} held out. "
        f"{model.num_parameters():,} parameters in {MODEL.n_layer} blocks of width {MODEL.ssm.d_model}, "
        f"on {device.type}."
    )
    curve = _train(model, tokens[: -text.held_out], training, console)
    held_out_bits = bits_per_token(model, held_out)
    console.print(f"held out: {held_out_bits:.3f} bits per byte; trained for {curve[-1].seconds:.0f} s")
    written, speed = _write(model, held_out[-64:].long(), seed, console)

    metrics = {
        "held_out_bits_per_byte": held_out_bits,
        "train_bits_per_byte": sum(point.bits for point in curve[-50:]) / len(curve[-50:]),
        "train_seconds": curve[-1].seconds,
        "steps": steps,
        "train_bytes_per_second": steps * training.batch * training.length / curve[-1].seconds,
        "generated_bytes_per_second": speed,
        "device": device.type,
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "seed": seed,
        "text": text.name,
        "text_bytes": len(text.data),
        "text_sha256": hashlib.sha256(text.data).hexdigest(),
        "held_out_bytes": text.held_out,
        "parameters": model.num_parameters(),
        "training": dataclasses.asdict(training),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "mamba_aot": _native.build_info()["version"],
        "sample": written,
    }
    out.mkdir(parents=True, exist_ok=True)
    save_pretrained(model, out)
    draw_loss(
        [point.step for point in curve],
        [point.bits for point in curve],
        f"{text.name}, {device.type}, seed {seed}",
        out / "loss.png",
        level=held_out_bits,
    )
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    console.print(f"wrote model.safetensors, config.json, loss.png and metrics.json into {out}")
    return metrics


def _train(model: MambaLM, tokens: Tensor, training: TrainingConfig, console: Console) -> list[TrainingStep]:
    columns = [
        TextColumn("step {task.completed}/{task.total}"),
        BarColumn(),
        TextColumn("loss {task.fields[nats]:.3f}  {task.fields[bits]:.3f} bits/byte"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    ]
    curve: list[TrainingStep] = []
    begin = perf_counter()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("train", total=training.steps, bits=math.nan, nats=math.nan)
        for point in train(model, tokens, training):
            if not math.isfinite(point.bits):
                raise RuntimeError(
                    f"demo: the loss of step {point.step} is {point.bits}, training cannot go on; "
                    "try another --seed"
                )
            if not curve:
                console.print(f"first step after {perf_counter() - begin:.1f} s")
            curve.append(point)
            recent = [p.bits for p in curve[-20:]]
            bits = sum(recent) / len(recent)
            progress.update(task, completed=point.step, bits=bits, nats=bits * math.log(2))
            if point.step % max(1, training.steps // 10) == 0 and not console.is_terminal:
                console.print(
                    f"step {point.step}/{training.steps}: {bits:.3f} bits/byte, {point.seconds:.0f} s"
                )
    return curve


def _write(model: MambaLM, prompt: Tensor, seed: int, console: Console) -> tuple[str, float]:
    """Streams a sample to standard output; returns it and the bytes generated a second."""
    console.print("\n[dim]The end of the held-out text, and how the model goes on:[/dim]")
    sys.stdout.write(bytes(prompt.tolist()).decode(errors="replace"))
    begin = perf_counter()
    tokens = stream(model, prompt, SAMPLE_BYTES, temperature=0.7, top_p=0.95, seed=seed)
    pieces = []
    for piece in Bytes().decode(int(token.ids) for token in tokens):
        sys.stdout.write(piece)
        sys.stdout.flush()
        pieces.append(piece)
    sys.stdout.write("\n")
    return "".join(pieces), SAMPLE_BYTES / (perf_counter() - begin)
