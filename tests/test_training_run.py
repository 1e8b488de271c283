"""Training runs: resumed equals uninterrupted, kill -9 loses at most an interval, NaN stops, Ctrl-C saves."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mamba_aot import AttentionConfig, MambaLMConfig, SSMConfig, from_pretrained
from mamba_aot.run_files import RunFiles
from mamba_aot.trainer import RunConfig, Trainer, read_config, read_data
from mamba_aot.training import TrainingConfig, bits_per_token

ROOT = Path(__file__).parent.parent
MODEL = MambaLMConfig(n_layer=2, ssm=SSMConfig(d_model=16, d_state=4), layers="Mm")
RUN = RunConfig(
    MODEL,
    TrainingConfig(steps=8, batch=2, length=32, learning_rate=1e-2),
    evaluate_every=3,
    checkpoint_every=3,
)
DATA = torch.frombuffer(bytearray(b"to be or not to be, that is the question. " * 60), dtype=torch.uint8)


def trainer(out: Path, config: RunConfig = RUN, **options) -> Trainer:
    return Trainer(config, DATA, torch.device("cpu"), out, lambda line: None, **options)


def metrics(out: Path) -> list[dict]:
    points = RunFiles(out, 2).metrics()
    for point in points:
        point.pop("seconds", None)
    return points


def stop_after(step: int, run: Trainer):
    return lambda: run.step == step


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path, precision) -> None:
    config = dataclasses.replace(RUN, precision=precision)
    whole = trainer(tmp_path / "whole", config)
    assert whole.run()
    first = trainer(tmp_path / "parts", config)
    assert not first.run(stop=stop_after(4, first))
    torch.manual_seed(123)
    second = trainer(tmp_path / "parts", config, resume=True)
    assert second.step == 4
    assert second.run()
    for (name, a), b in zip(
        whole.model.state_dict().items(), second.model.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")


def test_what_a_run_writes(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    assert run.run()
    assert {path.name for path in tmp_path.iterdir()} == {
        "run.json",
        "metrics.jsonl",
        "loss.png",
        "checkpoints",
        "model",
    }
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000006", "step-00000008"]
    points = metrics(tmp_path)
    assert [p["step"] for p in points if "bits" in p] == list(range(1, 9))
    assert [p["step"] for p in points if "held_out_bits" in p] == [3, 6, 8]
    assert all(p["gradient_norm"] > 0 for p in points if "bits" in p)
    assert points[-2]["bits"] < points[0]["bits"]
    model = from_pretrained(tmp_path / "model")
    assert bits_per_token(model, DATA[-126:]) == pytest.approx(points[-1]["held_out_bits"], rel=1e-5)
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_metrics_after_the_checkpoint_are_cut(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.run(stop=stop_after(3, run))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "bits": 1.0}\n{"step": 5, "bi')
    again = trainer(tmp_path, resume=True)
    assert [p["step"] for p in metrics(tmp_path)] == [1, 2, 3, 3]
    assert again.run()


def test_a_half_written_checkpoint_is_not_used(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.run(stop=stop_after(3, run))
    (tmp_path / "checkpoints" / "step-00000006.partial").mkdir()
    assert trainer(tmp_path, resume=True).step == 3
    assert not (tmp_path / "checkpoints" / "step-00000006.partial").exists()


def test_a_loss_that_is_no_number_stops_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    poisoned = []

    def poison() -> bool:
        if run.step == 4 and not poisoned:
            poisoned.append(True)
            run.model.norm_f.weight.data.fill_(float("nan"))
        return False

    with pytest.raises(RuntimeError, match=r"the loss of step 5 is nan.*checkpoint is .*step-00000003"):
        run.run(stop=poison)
    assert trainer(tmp_path, resume=True).step == 3
    weights = from_pretrained(tmp_path / "checkpoints" / "step-00000003").state_dict()
    assert all(tensor.isfinite().all() for tensor in weights.values())


def test_a_gradient_that_is_no_number_stops(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.model.norm_f.weight.register_hook(lambda grad: grad * float("inf"))
    with pytest.raises(RuntimeError, match=r"gradient's norm of step 1 is (inf|nan).*there is no checkpoint"):
        run.run()


def test_models_with_attention_and_recomputing_train(tmp_path: Path) -> None:
    model = dataclasses.replace(MODEL, layers="ma", attention=AttentionConfig(n_heads=2))
    config = dataclasses.replace(
        RUN, model=model, recompute="selective", training=dataclasses.replace(RUN.training, steps=2)
    )
    assert trainer(tmp_path, config).run()
    assert "held_out_bits" in metrics(tmp_path)[-1]


def test_data_is_a_file_or_a_directory(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("world")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.txt").write_text("hello ")
    assert bytes(read_data(tmp_path).tolist()) == b"hello world"
    assert bytes(read_data(tmp_path / "b.txt").tolist()) == b"world"
    with pytest.raises(ValueError, match="--data must be a file or directory"):
        read_data(tmp_path / "nothing")
    (tmp_path / "empty").write_text("")
    with pytest.raises(ValueError, match="is empty"):
        read_data(tmp_path / "empty")


def test_what_the_run_writes_is_no_data(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("world")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "a.txt").write_text("written")
    assert bytes(read_data(tmp_path, tmp_path / "run").tolist()) == b"world"
    assert bytes(read_data(tmp_path / "run", tmp_path / "other").tolist()) == b"written"
    with pytest.raises(ValueError, match="is empty"):
        read_data(tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"modle": {}}, "does not know: modle"),
        ({"model": {"ssm": {"d_sate": 4}}}, r"does not know: model\.ssm\.d_sate"),
        ({"training": {"stepz": 3}}, r"does not know: training\.stepz"),
        ({"model": 3}, "model must be a JSON object, got 3"),
        ({"precision": "float8"}, "precision must be one of float32, bfloat16, float16, got 'float8'"),
        ({"recompute": "all"}, "recompute must be one of none, selective, full"),
        ({"held_out": 0}, "held_out must be between 0 and 1"),
        ({"keep": 0}, "keep must be at least 1"),
        ({"evaluation_tokens": 1}, "evaluation_tokens must be at least 2"),
        ({"training": {"batch": 0}}, "batch must be an integer of at least 1"),
        ({"model": {"vocab_size": 100}}, "vocab_size must be at least 256"),
        ({"evaluate_every": "1"}, "evaluate_every must be int, got '1'"),
        ({"compile": "no"}, "compile must be bool, got 'no'"),
        ({"training": {"seed": True}}, r"training\.seed must be int, got True"),
        ({"training": {"learning_rate": "a"}}, r"training\.learning_rate must be float, got 'a'"),
        ({"training": {"max_grad_norm": -1}}, "max_grad_norm must be above 0, got -1"),
        ({"training": {"warmup": 2}}, "warmup must be from 0 to 1, got 2"),
        ({"model": {"layers": 5}}, r"model\.layers must be str, got 5"),
        ({"model": {"ssm": {"dt_min": "a"}}}, r"model\.ssm\.dt_min must be float, got 'a'"),
        ({"model": {"ssm": {"dt_rank": 1.5}}}, r"dt_rank must be int or auto, got 1\.5"),
        ({"model": {"mamba1": {"dt_init": "x"}}}, "dt_init must be one of random, constant, got 'x'"),
    ],
)
def test_bad_configurations_are_a_sentence(values: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        read_config(values, "run.json")


def test_a_damaged_checkpoint_or_run_is_a_sentence(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.run(stop=stop_after(1, run))
    for name, damage in (("training.pt", b"PK"), ("model.safetensors", b""), ("training.pt", b"")):
        (tmp_path / "checkpoints" / "step-00000001" / name).write_bytes(damage)
        with pytest.raises(ValueError, match="step-00000001 is damaged; remove it"):
            trainer(tmp_path, resume=True)
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(ValueError, match="there is none that can be read"):
        trainer(tmp_path, resume=True)


def test_a_checkpoint_that_memory_is_too_small_for_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trainer(tmp_path)
    run.run(stop=stop_after(1, run))

    def load(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        trainer(tmp_path, resume=True)


def test_runs_that_do_not_fit_are_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--resume needs a run"):
        trainer(tmp_path, resume=True)
    run = trainer(tmp_path)
    with pytest.raises(ValueError, match="has no checkpoint yet"):
        trainer(tmp_path, resume=True)
    with pytest.raises(ValueError, match="holds a run already; pass --resume"):
        trainer(tmp_path)
    run.run(stop=stop_after(1, run))
    with pytest.raises(ValueError, match="one with another configuration"):
        trainer(tmp_path, dataclasses.replace(RUN, keep=5), resume=True)
    with pytest.raises(ValueError, match="one with another text"):
        Trainer(RUN, DATA[1:], torch.device("cpu"), tmp_path, lambda line: None, resume=True)
    with pytest.raises(ValueError, match="must be longer than a window of 32"):
        Trainer(RUN, DATA[:20], torch.device("cpu"), tmp_path / "other", lambda line: None)


@pytest.fixture
def command(tmp_path: Path):
    """Starts `mamba-aot train` on a long run of a small model."""
    (tmp_path / "data.txt").write_bytes(bytes(DATA.tolist()))
    long = dataclasses.replace(RUN, training=dataclasses.replace(RUN.training, steps=100_000))
    (tmp_path / "run.json").write_text(json.dumps(dataclasses.asdict(long)))
    paths = ["--data", str(tmp_path / "data.txt"), "--out", str(tmp_path / "out")]
    started = []

    def start(*arguments: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-m", "mamba_aot", "train", *paths, *arguments],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        started.append(process)
        return process

    yield start, tmp_path
    for process in started:
        process.kill()
        process.wait()


def wait_for_step(out: Path, step: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if (out / "metrics.jsonl").is_file() and any(p["step"] >= step for p in metrics(out)):
            return
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    raise AssertionError("the run does not get on")


def test_kill_loses_at_most_one_interval_and_ctrl_c_nothing(command) -> None:
    start, directory = command
    out = directory / "out"
    process = start("--config", str(directory / "run.json"))
    wait_for_step(out, 20, process)
    process.kill()
    process.communicate()
    reached = max(point["step"] for point in metrics(out))
    newest = RunFiles(out, 2).newest()
    assert newest is not None
    kept = int(newest.name.removeprefix("step-"))
    assert reached - kept <= RUN.checkpoint_every

    process = start("--resume")
    wait_for_step(out, reached + 5, process)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 130, said
    assert f"resuming after step {kept}" in said
    assert "stopped and saved; go on with --resume" in said
    assert "Traceback" not in said
    newest = RunFiles(out, 2).newest()
    assert newest is not None
    last = max(point["step"] for point in metrics(out))
    assert newest.name == f"step-{last:08}"
    steps = [point["step"] for point in metrics(out) if "bits" in point]
    assert steps == list(range(1, last + 1))


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Torchinductor does not support code generation for complex operators")
@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores")
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("compiled", [False, True])
def test_runs_on_a_gpu(tmp_path: Path, precision, compiled: bool) -> None:
    config = dataclasses.replace(RUN, precision=precision, compile=compiled, recompute="selective")
    run = Trainer(config, DATA, torch.device("cuda"), tmp_path, lambda line: None)
    assert run.run()
    points = [p["bits"] for p in metrics(tmp_path) if "bits" in p]
    assert points[-1] < points[0]
