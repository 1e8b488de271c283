"""The command `mamba-aot`, run as people run it: in a process of its own."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(*arguments: str, module: str = "mamba_aot", **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_help_names_the_commands() -> None:
    done = run("--help")
    assert done.returncode == 0
    for command in ("demo", "train", "generate", "export", "info", "doctor", "bench"):
        assert command in done.stdout


def test_info_is_json_when_asked() -> None:
    facts = json.loads(run("info", "--json").stdout)
    assert len(facts["library"]["sha256"]) == 64
    assert facts["images"]["count"] == sum(
        count
        for archs in facts["images"]["kernels"].values()
        for dtypes in archs.values()
        for count in dtypes.values()
    )
    assert isinstance(facts["gpus"], list)
    assert {"triton", "ptxas", "compiler", "torch_headers"} <= set(facts["library"]["build"])
    assert "error" in facts["driver"] or re.fullmatch(r"\d+\.\d+", facts["driver"]["cuda"])


def test_a_missing_library_is_a_sentence_and_not_a_traceback(tmp_path: Path) -> None:
    missing = str(tmp_path / "libmamba_aot.so")
    for command in (["doctor"], ["demo", "--out", str(tmp_path / "out")]):
        done = run(*command, MAMBA_AOT_LIBRARY=missing)
        assert done.returncode == 1
        assert missing in done.stdout + done.stderr
        assert "pip install" in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
    assert run("info", MAMBA_AOT_LIBRARY=missing).returncode == 0
    assert not (tmp_path / "out").exists()


def test_a_broken_library_is_a_sentence(tmp_path: Path) -> None:
    broken = tmp_path / "libmamba_aot.so"
    broken.write_bytes(b"not a library")
    done = run("doctor", "--json", MAMBA_AOT_LIBRARY=str(broken))
    assert done.returncode == 1
    (check,) = json.loads(done.stdout)["checks"]
    assert not check["passed"]
    assert "reinstall mamba-aot" in check["detail"]


def test_an_old_torch_is_a_sentence() -> None:
    pretend = "import sys, torch; torch.__version__ = '2.9.1+cpu'; sys.argv = ['mamba-aot', *sys.argv[1:]]; "
    for command, code in (("info", 0), ("doctor", 1)):
        done = subprocess.run(
            [sys.executable, "-c", f"{pretend} from mamba_aot.cli import main; main()", command],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == code
        assert "needs torch 2.10 or newer, got 2.9.1+cpu; run: pip install 'torch>=2.10'" in done.stdout
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--device", "tpu"], 'demo: --device must be "cpu" or "cuda", got "tpu"'),
        (["--text", "/no/such/file"], "demo: --text must be a file that can be read, got /no/such/file"),
        (["--steps", "0"], "--steps"),
        (["--seed", "-1"], "--seed"),
    ],
)
def test_bad_input_to_demo_is_a_sentence_and_writes_nothing(
    tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    done = run("demo", "--out", str(tmp_path / "out"), *arguments, COLUMNS="200", NO_COLOR="1")
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_text_that_is_too_short(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("word " * 20)
    done = run("demo", "--text", str(tmp_path / "short.txt"), "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert "at least 10000 bytes, short.txt has 100" in done.stderr


def test_out_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    done = run("demo", "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert "--out must be a directory" in done.stderr
    assert (tmp_path / "out").read_text() == "mine"
