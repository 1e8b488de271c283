"""The demo: what it trains on, what it writes, that a seed repeats it, and that it can be interrupted."""

import io
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from mamba_aot import MambaLMConfig, SSMConfig, demo, from_pretrained, training

SMALL = MambaLMConfig(n_layer=1, ssm=SSMConfig(d_model=16, d_state=4))


@pytest.fixture(autouse=True)
def small_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "MODEL", SMALL)
    monkeypatch.setattr(demo, "SAMPLE_BYTES", 20)


def run(out: Path, seed: int = 0) -> dict:
    text = demo.Text("test", b"to be or not to be, that is the question. " * 400)
    return demo.run(text, torch.device("cpu"), 4, seed, out, Console(file=io.StringIO()))


def test_writes_all_files(tmp_path: Path) -> None:
    metrics = run(tmp_path / "a" / "out")
    out = tmp_path / "a" / "out"
    assert {path.name for path in out.iterdir()} == {
        "config.json",
        "loss.png",
        "metrics.json",
        "model.safetensors",
    }
    assert json.loads((out / "metrics.json").read_text()) == metrics
    assert metrics["steps"] == 4
    assert metrics["device"] == "cpu"
    assert metrics["seed"] == 0
    assert 0 < metrics["held_out_bits_per_byte"] < 8.5
    assert metrics["train_seconds"] > 0
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert from_pretrained(out).config == SMALL


def test_checkpoint_gives_the_recorded_bits(tmp_path: Path) -> None:
    metrics = run(tmp_path)
    data = b"to be or not to be, that is the question. " * 400
    held_out = torch.frombuffer(bytearray(data[-metrics["held_out_bytes"] :]), dtype=torch.uint8)
    bits = training.bits_per_token(from_pretrained(tmp_path), held_out, length=100)
    assert bits == pytest.approx(metrics["held_out_bits_per_byte"], rel=1e-4)


def test_a_seed_repeats_the_run(tmp_path: Path) -> None:
    first, again, other = run(tmp_path / "1"), run(tmp_path / "2"), run(tmp_path / "3", seed=1)
    assert first["held_out_bits_per_byte"] == again["held_out_bits_per_byte"]
    assert first["sample"] == again["sample"]
    assert first["held_out_bits_per_byte"] != other["held_out_bits_per_byte"]


def test_default_text_is_the_language_reference() -> None:
    text = demo.read_text(None)
    assert text.name == "pydoc_data.topics"
    assert len(text.data) > 300_000
    assert text.held_out == int(len(text.data) * 0.05)


def test_windows_cover_the_text_and_stay_inside() -> None:
    config = training.TrainingConfig(steps=1, batch=4, length=10)
    tokens = torch.arange(101)
    batches = training.windows(tokens, config)
    seen = torch.cat([next(batches).flatten() for _ in range(9)])
    assert set(range(5, 95)) <= set(seen.tolist())
    assert all((window.diff() == 1).all() for window in next(batches))


def test_schedule_rises_and_falls() -> None:
    config = training.TrainingConfig(steps=100, warmup=0.1)
    rates = [training.schedule(step, config) for step in range(1, 101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == 1.0
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[-1] == pytest.approx(0.05, abs=1e-3)


def test_interrupt_ends_cleanly_and_writes_nothing(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "mamba_aot", "demo", "--out", str(tmp_path / "out")],
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # A test run in the background ignores SIGINT, and its children would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    seen = ""
    # The sentence about the first step comes once training is under way.
    while "first step" not in seen:
        line = process.stderr.readline()
        assert line, seen
        seen += line
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=120)[1]
    assert process.returncode == 130
    assert "stopped; nothing was written" in rest
    assert "Traceback" not in rest
    assert not (tmp_path / "out").exists()


@pytest.mark.gpu
def test_runs_on_a_gpu(tmp_path: Path) -> None:
    text = demo.Text("test", b"to be or not to be, that is the question. " * 400)
    metrics = demo.run(text, torch.device("cuda"), 4, 0, tmp_path, Console(file=io.StringIO()))
    assert metrics["device"] == "cuda"
    assert 0 < metrics["held_out_bits_per_byte"] < 8.5
