"""The command `mamba-aot bench`, and the parts that its figures rest on."""

import dataclasses
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from mamba_aot.benchmark import cases, command, correctness, floors, runner, shapes, suites
from mamba_aot.benchmark.shapes import Work, make_work

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")
BENCH = runner.Bench(CPU, floors.Chip(1e10), {}, [], lambda _line: None)
SMALL = {
    "selective_scan": "B2 D24 L20 N4",
    "causal_conv1d": "B2 D24 L20",
    "state_update": "B2 D24",
    "causal_conv1d_update": "B2 D24",
    "linear_recurrence": "B2 D24 L20",
    "rms_norm": "B2 L24 D32",
}


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mamba_aot", "bench", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_run_prints_machine_rows_and_how_to_get_them_and_writes_them(tmp_path: Path) -> None:
    file = tmp_path / "record.json"
    arguments = ["--op", "causal_conv1d", "--shape", "B2 D24 L20", "--device", "cpu"]
    done = bench(*arguments, "--compare", "eager,mamba_ssm", "--json", str(file))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert f"torch {torch.__version__}" in lines[0]
    assert "library" in lines[0]
    assert any(line.startswith("mamba_ssm: has no causal_conv1d") for line in lines)
    assert lines[-1].startswith("reproduce: mamba-aot bench --op causal_conv1d --shape 'B2 D24 L20'")
    record = json.loads(file.read_text())
    assert [row["direction"] for row in record["rows"]] == ["forward", "backward"]
    for row in record["rows"]:
        assert row["ms"] > 0
        assert row["peers_ms"]["eager"] > 0
        assert 0 < row["max_error"] < 0.02
    assert len(record["machine"]["library_sha256"]) == 64


def test_suites_have_a_record_each_and_failures_are_in_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, wrong = (
        make_work("rms_norm", SMALL["rms_norm"]),
        make_work("causal_conv1d", SMALL["causal_conv1d"]),
    )
    monkeypatch.setitem(suites.SUITES, "kernels", lambda: [wrong, right])
    monkeypatch.setitem(suites.SUITES, "cpu", lambda: [right])
    conv = cases.op_of(wrong)
    broken = cases.Op(lambda **inputs: 2 * conv.function(**inputs), conv.reference, conv.axes)
    monkeypatch.setitem(cases._TABLE, "causal_conv1d", broken)
    request = command.make_request(
        [], ["kernels", "all"], "", "bfloat16", "seq", False, False, False, "one_thread", tmp_path, "cpu"
    )
    out = io.StringIO()
    assert not command.run(request, CPU, Console(file=out))
    assert "FAILED causal_conv1d B2 D24 L20 W4 bfloat16: AssertionError" in out.getvalue()
    assert out.getvalue().rstrip().endswith("--suite kernels --suite all --compare one_thread --device cpu")
    kernels, cpu = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("kernels", "cpu"))
    assert [failure["op"] for failure in kernels["failures"]] == ["causal_conv1d"]
    assert [row["op"] for row in kernels["rows"]] == ["rms_norm"] * 2
    assert not cpu["failures"]
    assert all(row["peers_ms"]["one_thread"] > 0 and row["floor_ms"] > 0 for row in cpu["rows"])
    assert cpu["machine"]["exponentials"] > 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--op", "scan"], "--op must be one of selective_scan,"),
        (["--shape", "B8 X3"], 'like "B8 D1024 L2048 N16", got "X3" in it'),
        (["--shape", "B0"], 'got "B0" in it'),
        (["--dtype", "int8"], "--dtype must be one of bfloat16, float16, float32"),
        (["--op", "rms_norm", "--layout", "channel"], "--layout is for"),
        (["--op", "rms_norm", "--complex"], "--complex is for --op selective_scan"),
        (["--op", "rms_norm", "--gated"], "--gated is for --op selective_scan"),
        (["--op", "block", "--half-states"], "--half-states is for --op decode in sixteen bits"),
        (["--op", "decode", "--dtype", "float32", "--half-states"], "got --op decode --dtype float32"),
        (["--compare", "numpy"], "--compare must name some of mamba_ssm,"),
        (["--suite", "everything"], "--suite must be one of kernels, models, sweep, cpu, all"),
        (["--suite", "all", "--json", "/tmp/no-folder"], "--json must be a directory for the records of 3"),
        (["--compare", "one_thread"], "--compare one_thread is for --device cpu"),
        (["--suite", "kernels", "--op", "rms_norm"], "--suite has its own ops"),
        (["--json", "/no/such/folder/file"], "--json must be a file in a directory that exists"),
        (["--device", "tpu"], '--device must be "cpu" or "cuda"'),
    ],
)
def test_bad_options_are_a_sentence(arguments: list[str], sentence: str) -> None:
    done = bench(*arguments)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("op", SMALL)
def test_every_op_is_checked(op: str) -> None:
    errors = correctness.check(make_work(op, SMALL[op]), CPU)
    assert set(errors) == ({"forward"} if "update" in op else {"forward", "backward"})
    assert all(0 < error < 0.02 for error in errors.values())


@pytest.mark.parametrize("op", SMALL)
def test_a_wrong_op_is_not_timed(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice too large in one of the sampled channels, the last."""
    right = cases.op_of(make_work(op))
    where = cases.positions(make_work(op, SMALL[op]))

    def wrong(**inputs):
        outputs = right.function(**inputs)
        first = outputs[0] if isinstance(outputs, tuple) else outputs
        factors = torch.ones(first.shape[1])
        factors[where[-1]] = 2
        first = (first.mT * factors if first.dim() == 3 else first * factors).to(first.dtype)
        first = first.mT if first.dim() == 3 else first
        return (first, *outputs[1:]) if isinstance(outputs, tuple) else first

    monkeypatch.setitem(
        cases._TABLE, op, cases.Op(wrong, right.reference, right.axes, right.letter, right.written)
    )
    said: list[str] = []
    rows, failures = runner.run(dataclasses.replace(BENCH, say=said.append), [make_work(op, SMALL[op])])
    assert not rows
    assert re.search(f"FAILED {op} .*: error against float64", said[0])
    assert failures[0].values()["failed"] in said[0]


@pytest.mark.parametrize(
    ("size", "expected"), [(8, list(range(8))), (3, [0, 1, 2]), (64, [0, 9, 18, 27, 36, 45, 54, 63])]
)
def test_sampled_channels_are_spread_and_copies_of_the_drawn_ones(size: int, expected: list[int]) -> None:
    work = make_work("causal_conv1d", f"B1 D{size} L4")
    assert cases.positions(work).tolist() == expected
    few = cases.sample(work)
    large = cases.enlarge(work, few, CPU)
    assert large["x"].shape == (1, size, 4)
    torch.testing.assert_close(large["x"][:, expected], few["x"], rtol=0, atol=0)


def test_floors_by_hand() -> None:
    work = make_work("selective_scan", "B8 D1024 L2048")
    cost = floors.Cost(bytes=8 * 1024 * 2048 * 8, exponentials=18 * 8 * 1024 * 2048)
    assert cost.floor_ms(floors.Chip(4e12, None)) == pytest.approx(0.03355, rel=1e-3)
    assert cost.floor_ms(floors.Chip(4e12, 4e12)) == pytest.approx(0.0755, rel=1e-3)
    assert floors.elements(work) == 8 * 1024 * 2048


def test_bytes_of_a_convolution_by_hand() -> None:
    work = make_work("causal_conv1d", "B2 D24 L20")
    inputs = cases.enlarge(work, cases.sample(work), CPU)
    out = cases.op_of(work).function(**inputs)
    sequence, weights = 2 * 24 * 20 * 2, 24 * 4 * 4 + 24 * 4
    found = floors.costs(work, inputs, [out], "")
    assert found["forward"] == floors.Cost(2 * sequence + weights, 2 * 24 * 20)
    assert found["backward"] == floors.Cost(3 * sequence + 2 * weights, 2 * 24 * 20)


def test_very_long_sequences_are_checked_at_a_shorter_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(correctness, "_CHECKED_STEPS", 16)
    op = cases.op_of(make_work("causal_conv1d"))
    lengths = []

    def noted(**inputs):
        lengths.append(inputs["x"].shape[2])
        return op.function(**inputs)

    monkeypatch.setitem(cases._TABLE, "causal_conv1d", cases.Op(noted, op.reference, op.axes))
    correctness.check(make_work("causal_conv1d", "B1 D8 L999999"), CPU)
    assert set(lengths) == {16}


def test_floor_of_a_block_by_hand() -> None:
    """Where memory and exponentials are free, its 4 products count, three times with the backward."""
    work = make_work("block", "B2 L16 M32")
    chip = floors.Chip(1e30, 1e30, 1e12)
    operations = 2 * 32 * (32 * 128 + 64 * (2 + 32) + 2 * 64 + 64 * 32)
    assert floors.block_ms(work, chip, backward=False) == pytest.approx(operations / 1e9)
    assert floors.block_ms(work, chip, backward=True) == pytest.approx(3 * operations / 1e9)
    assert floors.block_ms(work, floors.Chip(1e30), backward=False) is None
    prompt = make_work("prefill", "B1 L32 layers3 M32")
    assert floors.prefill_ms(prompt, chip) == pytest.approx(3 * operations / 1e9)


def test_suites_hold_what_is_recorded() -> None:
    kernels, models = suites.suite("kernels"), suites.suite("models")
    scan = Work("selective_scan", (("B", 1), ("D", 1536), ("L", 65536), ("N", 16)))
    assert scan in kernels
    assert len(set(kernels)) == len(kernels)
    assert {work.op for work in models} == set(shapes.MODELS)
    assert {work.op for work in [*kernels, *models]} == set(shapes.OPS)


def test_models_run_on_the_cpu() -> None:
    works = [make_work("block", "B2 L16 M32"), *(make_work(op, "B2 layers2 M32") for op in ("decode",))]
    works.append(make_work("prefill", "B1 L16 layers2 M32"))
    rows, failures = runner.run(BENCH, works)
    assert not failures
    assert [row.direction for row in rows] == ["forward", "forward + backward", "step", "step"]
    assert all(row.ms > 0 and 0 < row.error < 0.05 for row in rows)
