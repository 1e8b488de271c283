"""The README is true: its Python prints what it says, the files and commands that it names exist."""

import contextlib
import io
import json
import re
import runpy
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mamba_aot import MambaLM, MambaLMConfig, SSMConfig, save_pretrained
from mamba_aot.cli import app
from mamba_aot.trainer import read_config

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
# A block of Python, and the block of text right after it, if there is one, which is what it prints.
BLOCKS = re.findall(r"```python\n(.*?)```(?:\n+```text\n(.*?)```)?", README, re.DOTALL)


def test_there_is_something_to_run() -> None:
    assert BLOCKS
    assert BLOCKS[0][1], "the first example shows what it prints"


@pytest.mark.parametrize("index", range(len(BLOCKS)))
def test_python_prints_what_the_readme_says(
    index: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, expected = BLOCKS[index]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, f"README.md block {index}", "exec"), {})
    if expected:
        assert printed.getvalue().strip() == expected.strip()


@pytest.mark.parametrize(
    "document", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda p: p.name
)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
        assert target.startswith("http") or (document.parent / target).exists(), target


def test_commands_exist() -> None:
    for command in set(re.findall(r"mamba-aot ([a-z]+)", README)):
        assert CliRunner().invoke(app, [command, "--help"]).exit_code == 0, command
    for script in set(re.findall(r"bash (\S+\.sh)", README)):
        assert (ROOT / script).is_file(), script


def test_the_example_of_a_run_is_what_the_readme_says() -> None:
    config = read_config(json.loads((ROOT / "examples/run.json").read_text()), "run.json")
    numel = sum(p.numel() for p in MambaLM(config.model, device="meta").parameters())
    training = config.training
    assert f"{numel / 1e6:.1f} million parameters" in README
    assert f"{training.steps} steps of {training.batch} x {training.length} bytes" in README


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_examples_run(
    example: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    save_pretrained(MambaLM(MambaLMConfig(n_layer=1, ssm=SSMConfig(d_model=16, d_state=4))), tmp_path)
    monkeypatch.setattr("sys.argv", [str(example), str(tmp_path), "The statement"])
    runpy.run_path(str(example), run_name="__main__")
    assert capfd.readouterr().out
