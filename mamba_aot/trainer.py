"""A training run that lasts: checkpoints, resuming, evaluation, metrics; what `mamba-aot train` does.

Its directory holds `run.json` (the configuration and what it was trained on), `metrics.jsonl`, `loss.png`,
`checkpoints/step-…` (model, optimizer and place in the data) and at the end `model`.
"""

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mamba_aot.checkpoint import save_pretrained
from mamba_aot.config import MambaLMConfig, parse
from mamba_aot.curves import draw_loss
from mamba_aot.model import MambaLM
from mamba_aot.recompute import RECOMPUTE, Recompute
from mamba_aot.run_files import RunFiles
from mamba_aot.training import TrainingConfig, bits_per_token, make_optimizer, schedule, windows

_AUTOCAST = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """What to train and how; the JSON of `mamba-aot train --config` has these keys.

    Attributes:
        model: The model.
        training: Steps, batches, learning rate, clipping, seed.
        precision: "float32"; or "bfloat16" or "float16" for autocast, the latter with a scaled gradient.
        recompute: What layers compute again in the backward instead of keeping it; see `MambaLM.recompute`.
        compile: Whether the loss is compiled by torch.compile.
        held_out: Share of the data, at its end, that is never trained on.
        evaluate_every: Steps between two evaluations on it.
        evaluation_tokens: Most tokens of it that an evaluation reads.
        checkpoint_every: Steps between two checkpoints: the most that a crash can lose.
        keep: How many of the newest checkpoints are kept.
    """

    model: MambaLMConfig = dataclasses.field(default_factory=MambaLMConfig)
    training: TrainingConfig = dataclasses.field(default_factory=lambda: TrainingConfig(steps=1000))
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    recompute: Recompute = "none"
    compile: bool = False
    held_out: float = 0.05
    evaluate_every: int = 200
    evaluation_tokens: int = 2**18
    checkpoint_every: int = 200
    keep: int = 2

    def __post_init__(self) -> None:
        # Two tokens are one and what follows it.
        least = {"evaluate_every": 1, "evaluation_tokens": 2, "checkpoint_every": 1, "keep": 1}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(f"train: {name} must be at least {bound}, got {getattr(self, name)}")
        for name, allowed in (("precision", tuple(_AUTOCAST)), ("recompute", RECOMPUTE)):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"train: {name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}"
                )
        if not 0 < self.held_out < 1:
            raise ValueError(f"train: held_out must be between 0 and 1, got {self.held_out}")
        if self.model.vocab_size < 256:
            raise ValueError(
                f"train: model.vocab_size must be at least 256, one per byte, got {self.model.vocab_size}"
            )


def read_config(values: dict[str, Any], source: str) -> RunConfig:
    """A configuration from JSON; raises ValueError that names what is unknown or out of range."""
    values = dict(values)
    training = values.pop("training", {})
    steps = {"steps": 1000, **training} if isinstance(training, dict) else training
    return dataclasses.replace(
        parse(RunConfig, values, f"train: {source}"),
        training=parse(TrainingConfig, steps, f"train: {source}", "training."),
    )


def read_data(path: Path, out: Path | None = None) -> Tensor:
    """The bytes of a file, or of all files in a directory in the order of their names, uint8 [T].

    What lies in `out`, the directory of a run, is not text.

    Raises:
        ValueError: There is nothing to read.
    """
    files = [path]
    if path.is_dir():
        written = None if out is None else out.resolve()
        found = sorted(file for file in path.rglob("*") if file.is_file())
        files = [file for file in found if written is None or written not in file.resolve().parents]
    try:
        data = b"".join(file.read_bytes() for file in files)
    except OSError as error:
        raise ValueError(f"train: --data must be a file or directory that can be read: {error}") from None
    if not data:
        raise ValueError(f"train: --data must hold text, {path} is empty")
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


class Trainer:
    """One run, new or resumed, in a directory.

    Args:
        config: What to train and how.
        data: The text, uint8 [T].
        device: Where.
        out: The run's directory.
        report: Gets a sentence now and then.
        resume: Whether to go on from the newest checkpoint in `out`. On a CPU the run then ends with the bits
            that it would have had without the interruption.

    Raises:
        ValueError: There is too little text; `out` holds a run already, or none to resume, or one of another
            configuration or text.
    """

    def __init__(
        self,
        config: RunConfig,
        data: Tensor,
        device: torch.device,
        out: Path,
        report: Callable[[str], None],
        *,
        resume: bool = False,
    ) -> None:
        self.config, self.device, self.report = config, device, report
        count = int(data.numel() * config.held_out)
        if count < 2 or data.numel() - count <= config.training.length + 1:
            raise ValueError(
                f"train: the text must be longer than a window of {config.training.length} and its held-out "
                f"share, got {data.numel()} bytes"
            )
        self.tokens, held_out = data[:-count], data[-count:]
        self.held_out = held_out[: config.evaluation_tokens]
        identity = {
            "config": json.loads(json.dumps(dataclasses.asdict(config))),
            "data_sha256": hashlib.sha256(data.numpy().tobytes()).hexdigest(),
        }
        torch.manual_seed(config.training.seed)
        self.model = MambaLM(config.model).to(device).train()
        self.model.recompute = config.recompute
        self.optimizer = make_optimizer(self.model, config.training)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "float16")
        self.loss = torch.compile(self.model.loss) if config.compile else self.model.loss
        self.step = 0
        self.files = RunFiles(out, config.keep)
        if resume:
            self._load(self.files.resume(identity))
        else:
            self.files.begin(identity)

    def run(self, stop: Callable[[], bool] = lambda: False) -> bool:
        """Trains to the last step, or until `stop()` after some step; then saves.

        Returns:
            Whether the last step was reached.

        Raises:
            RuntimeError: Loss or gradient are no longer finite. The last checkpoint is from before that.
        """
        training = self.config.training
        begin, first = time.perf_counter(), self.step
        for window in windows(self.tokens, training, self.step):
            if self.step == training.steps or stop():
                break
            point = self._train(window.to(self.device))
            seconds = time.perf_counter() - begin
            point["seconds"] = seconds
            self.files.log(point)
            if self.step % self.config.evaluate_every == 0 or self.step == training.steps:
                held_out = bits_per_token(self.model, self.held_out)
                self.files.log({"step": self.step, "held_out_bits": held_out})
                speed = (self.step - first) * training.batch * training.length / seconds
                self.report(
                    f"step {self.step}/{training.steps}: {point['bits']:.3f} bits/byte, held out "
                    f"{held_out:.3f}, {speed:,.0f} bytes/s"
                )
            if self.step % self.config.checkpoint_every == 0:
                self._save()
        self._save()
        self._draw()
        done = self.step == training.steps
        if done:
            save_pretrained(self.model, self.files.model)
        return done

    def _train(self, window: Tensor) -> dict[str, float]:
        """One optimizer step on a window [batch, length + 1]; moves `step` on."""
        training, step = self.config.training, self.step + 1
        rate = training.learning_rate * schedule(step, training)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        dtype = _AUTOCAST[self.config.precision]
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
            loss = self.loss(window[:, :-1], window[:, 1:])
        value = loss.item()
        self._require_finite("loss", value)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), training.max_grad_norm).item()
        if not self.scaler.is_enabled():
            # A scaler looks for this itself, leaves such a step out and scales less.
            self._require_finite("gradient's norm", norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step = step
        return {"step": step, "bits": value / math.log(2), "gradient_norm": norm, "learning_rate": rate}

    def _require_finite(self, name: str, value: float) -> None:
        if not math.isfinite(value):
            newest = self.files.newest()
            kept = f"the last good checkpoint is {newest}" if newest else "there is no checkpoint before it"
            raise RuntimeError(
                f"train: the {name} of step {self.step + 1} is {value}, training cannot go on; {kept}. "
                "Try a lower training.learning_rate or another precision."
            )

    def _save(self) -> None:
        state = {
            "step": self.step,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        self.files.save(self.step, self.model, state)

    def _load(self, checkpoint: Path) -> None:
        weights, state = self.files.load(checkpoint, self.device)
        self.model.load_state_dict(weights)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]
        self.report(f"resuming after step {self.step}")

    def _draw(self) -> None:
        points = self.files.metrics()
        trained = [point for point in points if "bits" in point]
        if trained:
            draw_loss(
                [point["step"] for point in trained],
                [point["bits"] for point in trained],
                f"{self.model.num_parameters():,} parameters, {self.device.type}",
                self.files.plot,
                held_out=[(p["step"], p["held_out_bits"]) for p in points if "held_out_bits" in p],
            )
