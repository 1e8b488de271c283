"""A checkout of its own for the build tests: the real runtime, with the small kernels of fixtures/."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tools.aot import tree, tuned
from tools.aot.build import build

FIXTURES = Path(__file__).parent / "fixtures"
ARCHS = [80, 90]


def _make_checkout(folder: Path) -> Path:
    """Lays out the sources of a small library under `folder`."""
    shutil.copytree(
        FIXTURES / "kernels", folder / "csrc/kernels", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("runtime", "prefixes"):
        shutil.copytree(tree.ROOT / "csrc" / name, folder / "csrc" / name)
    shutil.copy(FIXTURES / "probe.cpp", folder / "csrc")
    shutil.copy(tree.ROOT / "pyproject.toml", folder)
    tuned.save(folder, 90, {"reverse.FILLING": 132}, {"device": "none"})
    return folder


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A built checkout; tests must not change it."""
    root = _make_checkout(tmp_path_factory.mktemp("checkout"))
    build(root, ARCHS)
    return root


@pytest.fixture
def fresh_checkout(tmp_path: Path) -> Path:
    """A checkout that was never built."""
    return _make_checkout(tmp_path / "fresh")


@pytest.fixture
def own_checkout(checkout: Path, tmp_path: Path) -> Path:
    """A copy of the built checkout, for a test to change."""
    return shutil.copytree(checkout, tmp_path / "own")


@pytest.fixture(scope="session")
def fakes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a driver that only keeps a journal, and what the launcher asks of torch for CUDA."""
    folder = tmp_path_factory.mktemp("fakes")
    for name in ("libcuda.so.1", "libtorch_cuda.so"):
        flags = ["-std=c++17", "-shared", "-fPIC", f"-Wl,-soname,{name}"]
        subprocess.run(["g++", *flags, FIXTURES / "fake_driver.cpp", "-o", folder / name], check=True)
    return folder
