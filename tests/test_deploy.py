"""docs/deploy.md is true: its commands lead from a checkpoint to a C++ program that says what Python says."""

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.export import ExportedProgram
from typer.testing import CliRunner

from mamba_aot import (
    AttentionConfig,
    MambaLM,
    MambaLMConfig,
    SSMConfig,
    _native,
    generate,
    save_pretrained,
)
from mamba_aot.cli import app
from mamba_aot.export import export_programs

# Dynamo and Inductor warn about themselves, differently in every version of torch.
pytestmark = pytest.mark.filterwarnings("default")

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/deploy.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
PYTHON = re.findall(r"```python\n(.*?)```(?:\n+```text\n(.*?)```)?", PAGE, re.DOTALL)
PROMPT = b"The statement"


def make_model(layers: str = "M", **options: Any) -> MambaLM:
    """A model that does not repeat itself, as an untrained one with a tied head would."""
    torch.manual_seed(0)
    ssm = SSMConfig(d_model=32, d_state=4, **options)
    attention = AttentionConfig(n_heads=4, n_kv_heads=2)
    model = MambaLM(MambaLMConfig(2, 256, ssm, layers=layers, attention=attention, tie_embeddings=False))
    torch.nn.init.normal_(model.embedding.weight)
    torch.nn.init.normal_(model.lm_head.weight)
    return model.eval()


@dataclass(frozen=True)
class Deployed:
    """What the commands of the page have made."""

    folder: Path
    model: MambaLM

    def run(self, prompt: bytes, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        command = [str(self.folder / "build-deploy/mamba_continue"), *arguments]
        return subprocess.run(command, cwd=self.folder, input=prompt, capture_output=True, timeout=300)

    def continued(self, prompt: bytes, count: int) -> bytes:
        ids = torch.tensor(list(prompt), device=self.model.embedding.weight.device)
        return bytes(generate(self.model, ids, count, temperature=0).tolist()[len(prompt) :])


def follow(page: list[str], folder: Path) -> bytes:
    """Runs commands of the page in `folder`; returns what the last one printed."""
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "CMAKE_GENERATOR": "Ninja",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    output = b""
    for command in page:
        command = command.replace("mamba-aot ", f"{sys.executable} -m mamba_aot ")
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command], cwd=folder, env=environment, capture_output=True
        )
        assert done.returncode == 0, done.stderr.decode()
        output = done.stdout
    return output


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def deployed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    folder = tmp_path_factory.mktemp("deploy")
    (folder / "examples").symlink_to(ROOT / "examples")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(PYTHON[0][0], {})
    model = make_model()
    save_pretrained(model, folder / "my-model")
    export, cmake, compiler, run = COMMANDS
    build = cmake if shutil.which("cmake") else compiler
    follow([export.replace("--out", f"--device {request.param} --out"), build], folder)
    deployed = Deployed(folder, model.to(request.param))
    assert follow([run], folder) == deployed.continued(PROMPT, 64)
    yield deployed
    shutil.rmtree(folder)


def library() -> str:
    return str(_native.library_path())


@pytest.mark.parametrize("prompt", [b"a", b"ab", b"abc", bytes(range(256)) * 3], ids=len)
def test_it_says_what_python_says(deployed: Deployed, prompt: bytes) -> None:
    done = deployed.run(prompt, library(), "model.pt2", "30")
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout == deployed.continued(prompt, 30)
    assert len(set(done.stdout)) > 1


def test_no_tokens(deployed: Deployed) -> None:
    done = deployed.run(PROMPT, library(), "model.pt2", "0")
    assert (done.returncode, done.stdout) == (0, b"")


def test_there_is_no_python_in_the_process(deployed: Deployed) -> None:
    program = deployed.folder / "build-deploy/mamba_continue"
    linked = subprocess.run(["ldd", program, library()], capture_output=True, text=True, check=True).stdout
    command = [str(program), library(), "model.pt2", "1000000000"]
    with subprocess.Popen(
        command, cwd=deployed.folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(PROMPT)
        process.stdin.close()
        # It is decoding when the second byte comes.
        assert len(process.stdout.read(2)) == 2
        mapped = Path(f"/proc/{process.pid}/maps").read_text()
        process.kill()
    assert "libtorch_cpu" in linked
    assert library() in mapped
    for text in (linked, mapped):
        assert not re.findall(r"\S*(?:libpython|torch_python|libtriton|mamba_aot/_C)\S*", text)


@pytest.mark.parametrize(
    ("prompt", "arguments", "code", "sentence"),
    [
        (PROMPT, [], 2, "usage: mamba_continue LIBRARY PACKAGE COUNT < PROMPT"),
        (b"", ["LIBRARY", "model.pt2", "5"], 1, "standard input must hold a prompt of at least one byte"),
        (PROMPT, ["LIBRARY", "model.pt2", "-1"], 1, "COUNT must be a number of bytes of at least 0, got -1"),
        (
            PROMPT,
            ["LIBRARY", "model.pt2", "many"],
            1,
            "COUNT must be a number of bytes of at least 0, got many",
        ),
        (
            PROMPT,
            ["nothing.so", "model.pt2", "5"],
            1,
            "the op library must be a libmamba_aot.so, but nothing.so",
        ),
        (PROMPT, ["LIBRARY", "nothing.pt2", "5"], 1, "there is no package nothing.pt2"),
    ],
)
def test_bad_input_is_a_sentence(
    deployed: Deployed, prompt: bytes, arguments: list[str], code: int, sentence: str
) -> None:
    done = deployed.run(prompt, *[library() if word == "LIBRARY" else word for word in arguments])
    assert done.returncode == code
    assert sentence in done.stderr.decode()
    assert done.stdout == b""


@pytest.mark.parametrize("size", [0, 10, 5000, -1])
def test_a_library_that_was_cut_short_is_a_sentence(deployed: Deployed, size: int) -> None:
    (deployed.folder / "short.so").write_bytes(Path(library()).read_bytes()[:size])
    done = deployed.run(PROMPT, str(deployed.folder / "short.so"), "model.pt2", "5")
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"short.so cannot be loaded" in done.stderr


def run_with_facts(deployed: Deployed, **facts: str) -> subprocess.CompletedProcess[bytes]:
    """Runs a copy of the package that says other things about itself."""
    with (
        zipfile.ZipFile(deployed.folder / "model.pt2") as package,
        zipfile.ZipFile(deployed.folder / "other.pt2", "w") as other,
    ):
        for entry in package.infolist():
            data = package.read(entry)
            if entry.filename.endswith("metadata.json"):
                data = json.dumps({**json.loads(data), **facts}).encode()
            other.writestr(entry, data)
    return deployed.run(PROMPT, library(), "other.pt2", "5")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_package_for_a_gpu_says_that_there_is_none(deployed: Deployed) -> None:
    done = run_with_facts(deployed, device="cuda")
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"mamba_continue: mamba_aot: CUDA ops need NVIDIA's driver, but libcuda.so.1" in done.stderr


def test_more_than_the_package_has_room_for_is_a_sentence(deployed: Deployed) -> None:
    done = run_with_facts(deployed, max_length="16")
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"other.pt2 was exported for at most 16 bytes of prompt and continuation" in done.stderr
    assert run_with_facts(deployed, max_length="17").returncode == 0


def test_a_package_for_other_tokens_is_a_sentence(deployed: Deployed) -> None:
    done = run_with_facts(deployed, vocab_size="50280")
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"other.pt2 must hold a model whose tokens are bytes (vocab_size 256)" in done.stderr


def test_python_runs_the_package_too(deployed: Deployed, monkeypatch: pytest.MonkeyPatch) -> None:
    if deployed.model.embedding.weight.is_cuda:
        pytest.skip("torch's Python loader of CUDA packages may crash; C++ runs them")
    monkeypatch.chdir(deployed.folder)
    code, expected = PYTHON[1]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, {})
    assert printed.getvalue() == expected


@pytest.mark.parametrize(
    ("ids", "sentence"),
    [
        (torch.zeros(1, 3, dtype=torch.int32), "unmatched dtype"),
        (torch.zeros(3, dtype=torch.int64), "input_handles[0]: "),
        (torch.zeros(1, 0, dtype=torch.int64), "dim value is too small at 1"),
    ],
    ids=["dtype", "dimensions", "length"],
)
def test_other_inputs_are_refused(
    deployed: Deployed,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    ids: torch.Tensor,
    sentence: str,
) -> None:
    # The loader of torch 2.10 forgets to import the first.
    import torch._inductor.codecache  # noqa: F401
    from torch._inductor.package import load_package

    if deployed.model.embedding.weight.is_cuda:
        pytest.skip("torch's Python loader of CUDA packages may crash; C++ runs them")
    monkeypatch.setenv("AOTI_RUNTIME_CHECK_INPUTS", "1")
    prefill = load_package(str(deployed.folder / "model.pt2"), "prefill")
    with pytest.raises(RuntimeError) as raised:
        prefill(ids)
    # Some versions of torch raise the reason, others print it.
    assert sentence in str(raised.value) + capfd.readouterr().err


class Doubled(torch.nn.Module):
    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor]:
        return (2 * ids,)


@pytest.mark.parametrize(
    ("ids", "sentence"),
    [
        (torch.zeros(1, 13, dtype=torch.int32), b"unmatched dtype"),
        (torch.zeros(1, 5, dtype=torch.int64), b"unmatched dim value at 1, expected: 5, but got: 13"),
    ],
    ids=["dtype", "length"],
)
def test_cpp_refuses_a_program_for_other_inputs(
    deployed: Deployed, ids: torch.Tensor, sentence: bytes
) -> None:
    from torch._inductor import aot_compile
    from torch._inductor.package.package import package_aoti

    metadata = {"vocab_size": "256", "device": "cpu"}
    program = torch.export.export(Doubled(), (ids,)).module()
    options = {"aot_inductor.package": True, "aot_inductor.metadata": metadata}
    files = aot_compile(program, (ids,), options=options)
    package_aoti(str(deployed.folder / "fixed.pt2"), {"prefill": files, "step": files})
    done = deployed.run(PROMPT, library(), "fixed.pt2", "5")
    assert (done.returncode, done.stdout) == (1, b"")
    assert sentence in done.stderr


def test_the_page_compiles_a_step(deployed: Deployed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(deployed.folder)
    names: dict[str, Any] = {}
    exec(PYTHON[2][0], names)
    assert callable(names["step"])


KINDS: dict[str, dict[str, Any]] = {
    "published": {"A_real": True, "discretization": "euler", "decay_gate": False},
    "complex hybrid": {"layers": "Ma"},
}


@pytest.fixture(scope="module", params=KINDS)
def exported(request: pytest.FixtureRequest) -> tuple[MambaLM, dict[str, ExportedProgram]]:
    model = make_model(**KINDS[request.param])
    return model, export_programs(model, max_length=71 if "a" in model.config.pattern else None)


def test_programs_keep_the_ops_and_are_real(exported: Any, tmp_path: Path) -> None:
    model, programs = exported
    scans = {"prefill": "selective_scan_fwd", "step": "state_update"}
    for name, program in programs.items():
        torch.export.save(program, tmp_path / "program.pt2")
        loaded = torch.export.load(tmp_path / "program.pt2")
        for stage in (loaded, loaded.run_decompositions()):
            assert str(stage.graph).count(f"mamba_aot.{scans[name]}") == model.config.pattern.count("M")
            values = [node.meta.get("val") for node in stage.graph.nodes]
            assert not [v for v in values if isinstance(v, torch.Tensor) and v.is_complex()]


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (1, 2), (2, 70), (7, 3)])
def test_programs_compute_what_the_model_does(exported: Any, batch: int, length: int) -> None:
    model, programs = exported
    ids = torch.randint(256, (batch, length + 1), generator=torch.Generator().manual_seed(length))
    with torch.no_grad():
        logits, *state = programs["prefill"].module()(ids[:, :-1])
        following = programs["step"].module()(ids[:, -1], state)
        wanted = model(ids)
    torch.testing.assert_close(logits, wanted[:, -2], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(following, wanted[:, -1], rtol=1e-4, atol=1e-4)


def test_a_given_batch_is_the_only_one_and_takes_the_fused_step() -> None:
    torch.manual_seed(0)
    config = MambaLMConfig(2, 256, SSMConfig(d_model=256), layers="m", tie_embeddings=False)
    model = MambaLM(config, dtype=torch.bfloat16).eval()
    programs = export_programs(model, batch=1)
    ops = [str(node.target) for node in programs["step"].graph.nodes]
    assert ops.count("mamba_aot.mamba1_step.default") == 2
    assert "mamba_aot.state_update.default" not in ops
    ids = torch.tensor([list(PROMPT)])
    with torch.no_grad():
        wanted_state = model.allocate_state(1)
        wanted = model(ids, wanted_state, last_only=True)
        logits, *state = programs["prefill"].module()(ids)
        torch.testing.assert_close(logits, wanted)
        torch.testing.assert_close(
            programs["step"].module()(ids[:, 0].contiguous(), state), model.step(ids[:, 0], wanted_state)
        )
        with pytest.raises((RuntimeError, AssertionError), match="== 1"):
            programs["prefill"].module()(ids.repeat(2, 1))
    assert not [
        str(n.target) for n in export_programs(model)["step"].graph.nodes if "mamba1" in str(n.target)
    ]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--model", "{}/none"], "none must be a directory"),
        (["--model", "{}/model", "--out", "{}/model.so"], "export: --out must end in .pt2"),
        (["--model", "{}/model", "--out", "{}/none/model.pt2"], "a file in a directory that exists"),
        (["--model", "{}/model", "--device", "tpu"], 'export: --device must be "cpu" or "cuda", got "tpu"'),
        (["--model", "{}/model", "--max-length", "1"], "export: the max length must be at least 2, got 1"),
        (["--model", "{}/model", "--batch", "0"], "export: the batch must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_exported_is_a_sentence(tmp_path: Path, arguments: list[str], sentence: str) -> None:
    save_pretrained(make_model(), tmp_path / "model")
    done = CliRunner().invoke(app, ["export", *[argument.format(tmp_path) for argument in arguments]])
    assert done.exit_code == 2
    assert sentence in done.output
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_attention_needs_a_max_length() -> None:
    with pytest.raises(ValueError, match="export: attention keeps keys and values of every token"):
        export_programs(make_model(layers="a"))


def test_a_sequence_longer_than_the_max_length_is_refused() -> None:
    prefill = export_programs(make_model(layers="a"), max_length=8)["prefill"].module()
    assert prefill(torch.zeros(1, 8, dtype=torch.int64))[0].shape == (1, 256)
    with pytest.raises((RuntimeError, AssertionError), match="8"):
        prefill(torch.zeros(1, 9, dtype=torch.int64))
