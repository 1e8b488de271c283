"""What importing the package does and does not do, each checked in a process of its own."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import mamba_aot

PACKAGE = Path(mamba_aot.__file__).parent


def python(script: str, cwd: Path = PACKAGE.parent) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script], cwd=cwd, capture_output=True, text=True, timeout=300
    )


def test_public_ops() -> None:
    for name in ("causal_conv1d_fn", "causal_conv1d_update", "selective_scan_fn", "selective_state_update"):
        assert name in mamba_aot.__all__
    for name in mamba_aot.__all__:
        assert hasattr(mamba_aot, name), name


def test_import_needs_nothing_of_the_build() -> None:
    script = """
import sys
# Importing these raises.
sys.modules.update(dict.fromkeys(["triton", "tools", "csrc", "pybind11", "setuptools"]))
import torch, mamba_aot
from mamba_aot.testing import make_conv_inputs, make_scan_inputs
for function, inputs in (
    (mamba_aot.selective_scan_fn, make_scan_inputs(is_complex=True, decay_gate=True)),
    (mamba_aot.causal_conv1d_fn, make_conv_inputs()),
):
    leaves = {n: t.requires_grad_() if isinstance(t, torch.Tensor) else t for n, t in inputs.items()}
    function(**leaves).sum().backward()
    assert all(t.grad is not None for t in leaves.values() if isinstance(t, torch.Tensor))
"""
    done = python(script)
    assert done.returncode == 0, done.stderr


def test_import_loads_no_slow_package() -> None:
    slow = ("matplotlib", "safetensors", "transformers", "triton", "numpy.testing", "torch._inductor")
    script = f"""
import sys, torch
before = set(sys.modules)
import mamba_aot
loaded = set(sys.modules) - before
assert not [name for name in loaded if name.startswith({slow!r})], sorted(loaded)
"""
    done = python(script)
    assert done.returncode == 0, done.stderr


def test_missing_library_is_said_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(PACKAGE, tmp_path / "mamba_aot", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    monkeypatch.delenv("MAMBA_AOT_LIBRARY", raising=False)
    done = python("from mamba_aot import selective_scan_fn", cwd=tmp_path)
    assert done.returncode != 0
    last_line = done.stderr.strip().splitlines()[-1]
    assert last_line.startswith("ImportError: ")
    assert "libmamba_aot.so" in last_line
