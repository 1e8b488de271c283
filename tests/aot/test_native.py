"""Each way in which the library can't be loaded is one sentence with the fix."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mamba_aot import _native

# A package of that name without its __init__, so that the loader alone is tested.
LOAD = """
import sys, types
import torch
package = types.ModuleType("mamba_aot")
package.__path__ = [sys.argv[1]]
sys.modules["mamba_aot"] = package
from mamba_aot import _native
exec(sys.argv[2])
try:
    _native.library()
    print("loaded")
except ImportError as error:
    print(error)
"""


def load(library: Path | None, before: str = "") -> str:
    environment = {k: v for k, v in os.environ.items() if k != "MAMBA_AOT_LIBRARY"}
    if library is not None:
        environment["MAMBA_AOT_LIBRARY"] = str(library)
    package = str(Path(_native.__file__).parent)
    command = [sys.executable, "-c", LOAD, package, before]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_it_loads_from_where_it_is_told(tmp_path: Path):
    copy = shutil.copy(_native.library_path(), tmp_path / "elsewhere.so")
    assert load(Path(copy)) == "loaded"


def test_a_missing_file(tmp_path: Path):
    assert "there is no such file; build it with `pip install .`" in load(tmp_path / "nothing.so")


@pytest.mark.parametrize("size", [0, 10, 5000, -1])
def test_a_truncated_file(tmp_path: Path, size: int):
    broken = tmp_path / "broken.so"
    broken.write_bytes(_native.library_path().read_bytes()[:size])
    said = load(broken)
    assert "is incomplete" in said
    assert "reinstall mamba-aot" in said


def test_a_file_that_may_not_be_read():
    # Not by the file's mode, which does not keep root from reading.
    before = """
def refuse(*_): raise PermissionError(13, "Permission denied")
_native.Path.open = refuse
"""
    said = load(_native.library_path(), before)
    assert "cannot be read (Permission denied); let this user read it" in said


def test_types_are_for_users_too():
    """A package without this file has no types, to whoever installs it."""
    assert (Path(_native.__file__).parent / "py.typed").is_file()


def test_a_file_for_another_machine(tmp_path: Path):
    other = bytearray(_native.library_path().read_bytes())
    other[0x12] = 0xF3  # e_machine: RISC-V
    (tmp_path / "other.so").write_bytes(other)
    assert "could not be loaded" in load(tmp_path / "other.so")


def test_a_foreign_library():
    said = load(Path(_native.torch.__file__).parent / "lib/libtorch_cpu.so")
    assert "must have C interface version 2, got none" in said


def test_an_old_torch():
    said = load(_native.library_path(), "torch.__version__ = '2.9.1+cu128'")
    assert said == "mamba_aot: needs torch 2.10 or newer, got 2.9.1+cu128; run: pip install 'torch>=2.10'"


def test_a_second_copy(tmp_path: Path):
    copy = shutil.copy(_native.library_path(), tmp_path / "second.so")
    said = load(_native.library_path(), f"torch.ops.load_library({str(copy)!r})")
    assert "another copy of the op library is registered in this process already" in said


@pytest.mark.parametrize("call", ["variants()", "build_info()"])
def test_reading_loads_it_first(call: str):
    assert load(None, f"assert _native.{call} is not None") == "loaded"
