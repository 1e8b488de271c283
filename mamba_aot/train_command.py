"""Reads what `mamba-aot train` was given, and runs it so that Ctrl-C ends it between two steps."""

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mamba_aot.devices import require_device
from mamba_aot.run_files import read_run
from mamba_aot.trainer import RunConfig, Trainer, read_config, read_data


def run(
    data: Path, config: Path | None, out: Path, device: str, resume: bool, report: Callable[[str], None]
) -> bool:
    """Trains; returns whether the last step was reached.

    Raises:
        ValueError: An argument, the configuration or the run in `out` does not fit.
        RuntimeError: Loss or gradient are no longer finite.
    """
    target = require_device(device, "train")
    run_config = _read(config, out, resume)
    trainer = Trainer(run_config, read_data(data, out), target, out, report, resume=resume)
    report(
        f"{trainer.model.num_parameters():,} parameters on {device}, {trainer.tokens.numel():,} bytes to "
        f"train on, steps {trainer.step + 1} to {run_config.training.steps}"
    )
    with _interruption() as interrupted:
        return trainer.run(stop=interrupted)


def _read(config: Path | None, out: Path, resume: bool) -> RunConfig:
    if resume:
        if config is not None:
            raise ValueError("train: --resume goes on with the run's own configuration; leave --config out")
        return read_config(read_run(out)["config"], str(out / "run.json"))
    if config is None:
        raise ValueError("train: pass --config FILE.json, or --resume to go on with the run in --out")
    try:
        values = json.loads(config.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"train: --config must be a file that can be read: {error}") from None
    except ValueError as error:
        raise ValueError(f"train: --config must be JSON, {config} is not: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"train: --config must be a JSON object, got {type(values).__name__} in {config}")
    return read_config(values, str(config))


@contextmanager
def _interruption() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed; pressed again, it interrupts at once."""
    pressed = False

    def note(_signal: int, _frame: object) -> None:
        nonlocal pressed
        pressed = True
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)
