"""The directory of a training run: what is written into it survives a crash at any moment."""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mamba_aot.checkpoint import from_pretrained, save_pretrained
from mamba_aot.model import MambaLM
from mamba_aot.weight_files import write_text

_STATE_FILE = "training.pt"
_PREFIX = "step-"


class RunFiles:
    """Files of one run in `out`; the newest `keep` checkpoints stay."""

    def __init__(self, out: Path, keep: int) -> None:
        self.out, self.keep = out, keep
        self.plot = out / "loss.png"
        self.model = out / "model"
        self._run, self._metrics, self._checkpoints = (
            out / "run.json",
            out / "metrics.jsonl",
            out / "checkpoints",
        )

    def begin(self, identity: dict[str, Any]) -> None:
        """Starts a new run; raises ValueError where there is one already."""
        if self._run.exists():
            raise ValueError(
                f"train: {self.out} holds a run already; pass --resume to go on with it, or another --out"
            )
        try:
            self._checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"train: --out must be a directory that can be written: {error}") from None
        self._metrics.write_text("", encoding="utf-8")
        write_text(json.dumps(identity, indent=2) + "\n", self._run)

    def resume(self, identity: dict[str, Any]) -> Path:
        """The checkpoint to go on from, with the metrics cut back to it.

        Raises:
            ValueError: There is none, or the run is another one than `identity` says.
        """
        saved = read_run(self.out)
        for name, what in (("config", "configuration"), ("data_sha256", "text")):
            if saved.get(name) != identity[name]:
                raise ValueError(f"train: the run in {self.out} is one with another {what}")
        newest = self.newest()
        if newest is None:
            raise ValueError(
                f"train: the run in {self.out} has no checkpoint yet; remove it and start again "
                "without --resume"
            )
        for half_written in self._checkpoints.glob("*.partial"):
            shutil.rmtree(half_written)
        step = _step_of(newest)
        lines = [json.dumps(point) for point in self.metrics() if point["step"] <= step]
        write_text("".join(line + "\n" for line in lines), self._metrics)
        return newest

    def log(self, point: dict[str, Any]) -> None:
        """Adds a line to the metrics."""
        with self._metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(point) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """Every line of the metrics; a last one that a crash cut short is left out."""
        text = self._metrics.read_text(encoding="utf-8")
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def newest(self) -> Path | None:
        """The last complete checkpoint."""
        complete = sorted(self._complete(), key=_step_of)
        return complete[-1] if complete else None

    def save(self, step: int, model: MambaLM, state: dict[str, Any]) -> None:
        """Writes a checkpoint, which appears whole or not at all, and then removes the oldest ones."""
        target = self._checkpoints / f"{_PREFIX}{step:08}"
        if target.exists():
            return
        partial = target.with_name(target.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        save_pretrained(model, partial, layout="mamba_aot")
        torch.save(state, partial / _STATE_FILE)
        partial.rename(target)
        for old in sorted(self._complete(), key=_step_of)[: -self.keep]:
            shutil.rmtree(old)

    def load(self, checkpoint: Path, device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The weights and the state that `save` wrote; raises ValueError where a file was damaged since."""
        try:
            weights = from_pretrained(checkpoint, device=device).state_dict()
            return weights, torch.load(checkpoint / _STATE_FILE, map_location=device, weights_only=True)
        except torch.OutOfMemoryError:
            raise
        except (ValueError, FileNotFoundError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise ValueError(
                f"train: the checkpoint {checkpoint} is damaged; remove it, and --resume goes on from the "
                f"one before it: {error}"
            ) from None

    def _complete(self) -> list[Path]:
        return [path for path in self._checkpoints.glob(_PREFIX + "*") if path.suffix != ".partial"]


def read_run(out: Path) -> dict[str, Any]:
    """What `run.json` holds; raises ValueError where there is no run."""
    try:
        run = json.loads((out / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        run = None
    if not isinstance(run, dict) or not isinstance(run.get("config"), dict):
        raise ValueError(f"train: --resume needs a run in {out}, there is none that can be read")
    return run


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix(_PREFIX))
