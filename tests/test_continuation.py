"""`mamba-aot generate` and `mamba-aot train` as people run them, and the text between tokens and people."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from typer.testing import CliRunner

from mamba_aot import MambaLM, MambaLMConfig, SSMConfig, from_pretrained, save_pretrained
from mamba_aot.cli import app
from mamba_aot.text import Bytes, Tokenized, text_of

ROOT = Path(__file__).parent.parent
WORDS = ["<end>", "to", "be", "or", "not", "é"]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = MambaLM(MambaLMConfig(2, 256, SSMConfig(d_model=16, d_state=4), layers="m"))
    torch.nn.init.normal_(model.embedding.weight, std=0.3)
    save_pretrained(model, tmp_path / "model")
    return tmp_path / "model"


def tokenizer() -> Tokenizer:
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<end>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return made


def run(*arguments: str):
    return CliRunner().invoke(app, ["generate", *arguments])


def test_text_goes_to_stdout_and_figures_to_stderr(saved: Path) -> None:
    arguments = ["--model", str(saved), "--prompt", "-", "--max-new-tokens", "30", "--temperature", "0"]
    process = subprocess.run(
        [sys.executable, "-m", "mamba_aot", "generate", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        input=b"to be",
        capture_output=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    drawn = from_pretrained(saved).generate(torch.tensor(list(b"to be")), 30, temperature=0)[5:]
    assert process.stdout.decode() == bytes(drawn.tolist()).decode(errors="replace") + "\n"
    lines = process.stderr.decode().splitlines()
    assert [line.split(":")[0] for line in lines] == ["Prompt", "Generation", "Peak memory"]
    assert lines[0].startswith("Prompt: 5 tokens, ")
    assert lines[1].startswith("Generation: 30 tokens, ")
    assert lines[1].endswith(" tokens-per-sec")
    assert lines[2].endswith(" GB")


def test_interrupt_ends_cleanly_with_the_figures(saved: Path) -> None:
    arguments = ["--model", str(saved), "--prompt", "to be", "--max-new-tokens", "100000000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "mamba_aot", "generate", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A test run in the background ignores SIGINT, and its children would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    assert process.stdout.read(20)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=120)[1].decode()
    assert process.returncode == 130, said
    assert [line.split(":")[0] for line in said.splitlines()] == ["Prompt", "Generation", "Peak memory"]


def test_a_seed_repeats_the_text(saved: Path) -> None:
    options = ["--model", str(saved), "--prompt", "to", "--max-new-tokens", "20", "--top-k", "50"]
    texts = [run(*options, "--top-p", "0.9", "--seed", seed).stdout for seed in ("1", "1", "2")]
    assert texts[0] == texts[1] != texts[2]


def test_a_tokenizer_beside_the_model_is_used_and_its_end_stops(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = MambaLM(MambaLMConfig(1, 6, SSMConfig(d_model=16, d_state=4), layers="m"))
    save_pretrained(model, tmp_path)
    tokenizer().save(str(tmp_path / "tokenizer.json"))
    free = model.eval().generate(torch.tensor([1, 2]), 12, temperature=0)[2:].tolist()
    config = json.loads((tmp_path / "config.json").read_text())
    for end in (free[3], [free[3], 0]):
        (tmp_path / "config.json").write_text(json.dumps(config | {"eos_token_id": end}))
        got = run(
            "--model", str(tmp_path), "--prompt", "to be", "--max-new-tokens", "12", "--temperature", "0"
        )
        assert got.exit_code == 0, got.stderr
        expected = [WORDS[i] for i in free[: free.index(free[3])] if i != 0]
        assert got.stdout.split() == expected


def test_a_tokenizer_may_be_given(tmp_path: Path) -> None:
    save_pretrained(MambaLM(MambaLMConfig(1, 8, SSMConfig(d_model=16, d_state=4), layers="m")), tmp_path)
    missing = run("--model", str(tmp_path), "--prompt", "to")
    assert missing.exit_code == 2
    assert "comes without a tokenizer.json and has 8 tokens" in missing.stderr
    tokenizer().save(str(tmp_path / "other.json"))
    given = run("--model", str(tmp_path), "--prompt", "to", "--tokenizer", str(tmp_path / "other.json"))
    assert given.exit_code == 0, given.stderr
    for name, content, sentence in (
        ("broken.json", "{", "must be a tokenizer of the package tokenizers"),
        ("missing.json", None, "missing.json is no file"),
        ("folder", None, "folder is no file"),
    ):
        path = tmp_path / name
        if content is not None:
            path.write_text(content)
        elif not path.suffix:
            path.mkdir()
        refused = run("--model", str(tmp_path), "--prompt", "to", "--tokenizer", str(path))
        assert refused.exit_code == 2
        assert sentence in refused.stderr
        assert refused.stdout == ""


def test_bytes_come_out_as_whole_characters() -> None:
    text = "aé—"
    ids = Bytes().encode(text)
    assert ids.dtype == torch.int64
    assert list(Bytes().decode(ids.tolist())) == ["a", "é", "—"]
    assert list(Bytes().decode([97, 0xC3])) == ["a", "�"]
    # What the system hands over of bytes that are no UTF-8.
    assert Bytes().encode(os.fsdecode(b"\xff\xfea")).tolist() == [0xFF, 0xFE, 97]


def test_tokens_come_out_as_text() -> None:
    text = Tokenized(tokenizer())
    assert text.encode("to be or").tolist() == [1, 2, 3]
    assert "".join(text.decode([1, 2, 5])) == "to be é"


def test_a_tokenizer_that_is_too_large_is_refused(tmp_path: Path) -> None:
    tokenizer().save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="at most the 4 tokens of here, got 6"):
        text_of("here", tmp_path, 4, None)


def test_without_tokenizers_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer().save(str(tmp_path / "tokenizer.json"))
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImportError, match=r'needs the package tokenizers: pip install "mamba-aot\[hf\]"'):
        text_of("here", tmp_path, 6, None)


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["--prompt", ""], 2, "--prompt must not be empty"),
        (["--prompt", "x", "--top-p", "2"], 2, r"top_p must be in (0, 1], got 2.0"),
        (["--prompt", "x", "--dtype", "int8"], 2, 'must be float32, bfloat16 or float16, got "int8"'),
        (["--prompt", "x", "--device", "tpu"], 2, 'generate: --device must be "cpu" or "cuda", got "tpu"'),
        (["--prompt", "x", "--model", "nothing"], 1, "there is no such directory"),
    ],
)
def test_bad_input_is_a_sentence(saved: Path, arguments: list[str], code: int, sentence: str) -> None:
    done = run("--model", str(saved), *arguments)
    assert done.exit_code == code
    assert sentence in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "pass --config FILE.json, or --resume"),
        (["--config", "nothing.json"], "--config must be a file that can be read"),
        (["--config", "bad.json"], "--config must be JSON"),
        (["--config", "list.json"], "--config must be a JSON object, got list"),
        (["--config", "unknown.json"], "does not know: speed"),
        (["--config", "good.json", "--resume"], "leave --config out"),
        (["--resume"], "--resume needs a run in"),
        (["--config", "good.json", "--device", "tpu"], 'train: --device must be "cpu" or "cuda"'),
        (["--config", "good.json", "--out", "file"], "--out must be a directory that can be written"),
    ],
)
def test_bad_input_to_train_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    texts = {"bad.json": "{", "list.json": "[]", "unknown.json": '{"speed": 3}', "good.json": "{}"}
    for name, text in {**texts, "data": "word " * 2000, "file": ""}.items():
        (tmp_path / name).write_text(text)
    done = CliRunner().invoke(app, ["train", "--data", "data", *arguments])
    assert done.exit_code == 2, done.stderr
    assert sentence in done.stderr
