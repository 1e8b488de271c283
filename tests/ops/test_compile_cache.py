"""Graphs that torch.compile keeps on disk: used again by the same ops, never by ops whose formulas differ."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mamba_aot import _native
from mamba_aot.ops._compile_cache import ops_fingerprint

# Compiles a forward and a backward twice, and prints how often each was found on the disk.
TRAIN = """
import torch
from torch._dynamo.utils import counters
import mamba_aot

torch.manual_seed(0)
compiled = torch.compile(lambda a, b: mamba_aot.linear_recurrence(a, b).sum())
a, b = (torch.rand(1, 2, 8, requires_grad=True) for _ in range(2))
hits = []
for _ in range(2):
    torch._dynamo.reset()
    counters.clear()
    a.grad = None
    compiled(a, b).backward()
    hits.append(str(counters["aot_autograd"]["autograd_cache_hit"]))
print(*hits, a.grad.sum().item())
"""


def train(package: Path, cache: Path) -> list[str]:
    environment = os.environ | {
        "PYTHONPATH": str(package.parent),
        "TORCHINDUCTOR_CACHE_DIR": str(cache),
        "MAMBA_AOT_LIBRARY": str(_native.library_path()),
    }
    done = subprocess.run(
        [sys.executable, "-c", TRAIN], env=environment, capture_output=True, text=True, cwd=package.parent
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package's Python files, to be changed."""
    source = Path(_native.__file__).parent
    return Path(
        shutil.copytree(source, tmp_path / "mamba_aot", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    )


def test_stored_graphs_are_of_these_ops(package: Path, tmp_path: Path) -> None:
    first = train(package, tmp_path / "cache")
    assert first[:2] == ["0", "1"]
    # Another gradient, of the same forward: torch's own key sees no more than that.
    file = package / "ops" / "linear_recurrence.py"
    formula = file.read_text()
    call = "mamba_aot.linear_recurrence_bwd(dh,"
    assert formula.count(call) == 1
    file.write_text(formula.replace(call, "mamba_aot.linear_recurrence_bwd(2 * dh,"))
    changed = train(package, tmp_path / "cache")
    assert changed[:2] == ["0", "1"]
    assert float(changed[2]) == pytest.approx(2 * float(first[2]), rel=1e-5)


def test_a_fingerprint_sees_every_file(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x")
    one = ops_fingerprint(tmp_path)
    assert one == ops_fingerprint(tmp_path)
    (tmp_path / "b.py").write_text("")
    two = ops_fingerprint(tmp_path)
    (tmp_path / "b.py").write_text("y")
    assert len({one, two, ops_fingerprint(tmp_path)}) == 3
