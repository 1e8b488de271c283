"""`preload`: what it takes, and on a GPU what it spares the first call."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mamba_aot

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu")])
def test_a_cpu_has_nothing_to_load(device: object) -> None:
    with pytest.raises(ValueError, match="preload: device must be a CUDA device, got cpu"):
        mamba_aot.preload(device)  # type: ignore[arg-type]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("device", [None, "cuda", "cuda:1", 0])
def test_without_a_gpu_it_says_why(device: object) -> None:
    with pytest.raises(RuntimeError, match="mamba_aot: CUDA ops need"):
        mamba_aot.preload(device)  # type: ignore[arg-type]


FIRST_LAUNCH = """
import torch, mamba_aot
from mamba_aot.testing import make_scan_inputs
if {preload}:
    mamba_aot.preload("cuda")
inputs = make_scan_inputs(device="cuda", is_complex=True, decay_gate=True)
inputs = {{n: t.requires_grad_() if isinstance(t, torch.Tensor) else t for n, t in inputs.items()}}
leaves = [t for t in inputs.values() if isinstance(t, torch.Tensor)]
def step():
    y = mamba_aot.selective_scan_fn(**inputs)
    return y, *torch.autograd.grad(y, leaves, torch.ones_like(y))
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    got = step()
graph.replay()
torch.cuda.synchronize()
for left, right in zip(got, step(), strict=True):
    assert torch.equal(left, right)
"""


@pytest.mark.gpu
@pytest.mark.parametrize("preload", [False, True], ids=["cold", "preloaded"])
def test_a_first_launch_may_be_inside_a_capture(preload: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FIRST_LAUNCH.format(preload=preload)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
def test_every_gpu_can_be_named() -> None:
    for device in (None, 0, "cuda", torch.device("cuda", torch.cuda.device_count() - 1)):
        mamba_aot.preload(device)
