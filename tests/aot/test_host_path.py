"""The CUDA half of every op without a GPU: what it checks, allocates and launches, while nothing runs.

Results are whatever memory held, so only their shapes and dtypes are looked at.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mamba_aot import _native

# A CUDA build of torch brings the real libraries, and a GPU runs these halves in the other tests.
pytestmark = pytest.mark.skipif(torch.version.cuda is not None, reason="torch is built with CUDA")

TESTS = Path(__file__).parent.parent
FIXTURES = Path(__file__).parent / "fixtures"

# Puts the CUDA halves in the place of the CPU ones. `launches(call)` is how many kernels a call launches.
PROGRAM = """
import ctypes, sys
torch_cuda, tests = sys.argv[1:3]
ctypes.CDLL(torch_cuda)
import torch
import mamba_aot
from torch import Tensor
sys.path.insert(0, tests + "/ops")
import cases

fake = ctypes.CDLL("libcuda.so.1")
fake.fake_journal.restype = ctypes.c_char_p
library = torch.library.Library("mamba_aot", "IMPL", "CPU")
def replace(op):
    cuda = torch._C.DispatchKey.CUDA
    library.impl(op, lambda *args: op._op_dk(cuda, *args), allow_override=True)
for name in torch._C._dispatch_get_all_op_names():
    if name.startswith("mamba_aot::"):
        replace(getattr(torch.ops.mamba_aot, name.removeprefix("mamba_aot::")).default)

def launches(call):
    before = fake.fake_journal().count(b"launch ")
    call()
    return fake.fake_journal().count(b"launch ") - before

def differentiable(value):
    is_number = isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())
    return value.detach().requires_grad_() if is_number else value

def run(case):
    op, inputs = cases.OPS[case.op], case.inputs("cpu")
    if not op.written:
        inputs = {name: differentiable(value) for name, value in inputs.items()}
    result = op.function(**inputs)
    results = [r for r in (result if isinstance(result, tuple) else (result,)) if isinstance(r, Tensor)]
    results = [r for r in results if r.requires_grad]
    if results:
        torch.autograd.backward(results, [torch.ones_like(r) for r in results])
    for name, value in inputs.items():
        if isinstance(value, Tensor) and value.grad is not None:
            assert (value.grad.shape, value.grad.dtype) == (value.shape, value.dtype), name

exec(sys.argv[3])
"""


@pytest.fixture(scope="session")
def device_zero(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("preloaded") / "device_zero.so"
    subprocess.run(["g++", "-shared", "-fPIC", FIXTURES / "device_zero.cpp", "-o", made], check=True)
    return made


def run(fakes: Path, device_zero: Path, program: str) -> list[str]:
    paths = [str(Path(torch.__file__).parent / "lib"), str(fakes)]
    environment = {
        "LD_LIBRARY_PATH": os.pathsep.join(paths),
        "LD_PRELOAD": str(device_zero),
        "MAMBA_AOT_LIBRARY": str(_native.library_path()),
        # torch says of every op that it is overridden.
        "PYTHONWARNINGS": "ignore",
    }
    command = [sys.executable, "-c", PROGRAM, str(fakes / "libtorch_cuda.so"), str(TESTS), program]
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, cwd=TESTS.parent, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_every_case_finds_its_kernels(fakes: Path, device_zero: Path) -> None:
    program = """
count = 0
for name in cases.OPS:
    for case in cases.cases_of(name):
        # A GPU has no float64.
        if case.dtype in (torch.float64, torch.complex128):
            continue
        try:
            run(case)
        except Exception as error:
            raise RuntimeError(str(case)) from error
        count += 1
print(count)
"""
    assert int(run(fakes, device_zero, program)[0]) > 1500


def test_calls_launch_no_more_kernels_than_they_did(fakes: Path, device_zero: Path) -> None:
    program = """
ones = torch.ones
D, L, N = 64, 128, 16
rows, A, B, vector, token = ones(1, D, L), -ones(D, N), ones(1, N, L), ones(D), ones(1, D)
weight, state, conv_state = ones(D, 4), ones(1, D, N), ones(1, D, 3)
step = ones(1, N)
def scan(rows=rows):
    return mamba_aot.selective_scan_fn(rows, rows, A, B, B, vector, rows, vector, True)
def conv(rows=rows):
    return mamba_aot.causal_conv1d_fn(rows, weight, vector, activation="silu")
def update():
    mamba_aot.selective_state_update(state, token, token, A, step, step, vector, token, vector, True)
wanted = rows.clone().requires_grad_()
after_scan, after_conv = scan(wanted).sum(), conv(wanted).sum()
for call in (
    scan,
    after_scan.backward,
    conv,
    after_conv.backward,
    lambda: mamba_aot.causal_conv1d_update(token, conv_state, weight, vector, "silu"),
    update,
    lambda: mamba_aot.rms_norm_fn(token, vector, None),
):
    print(launches(call))
"""
    # A scan packs B and C, and so does its backward, which has spans' adjoints to find, planes of sums to add
    # up and totals to end with; a convolution's has planes alone.
    names = ("scan", "its backward", "convolution", "its backward", "its update", "state update", "norm")
    found = dict(enumerate(map(int, run(fakes, device_zero, program))))
    assert [f"{name}: {found[i]}" for i, name in enumerate(names)] == [
        "scan: 2",
        "its backward: 5",
        "convolution: 1",
        "its backward: 2",
        "its update: 1",
        "state update: 1",
        "norm: 1",
    ]


def test_sixteen_bits_take_the_shared_memory_that_the_device_has(fakes: Path, device_zero: Path) -> None:
    program = """
import re
for dtype in (torch.bfloat16, torch.float32):
    begun = len(fake.fake_journal())
    rows, A, B = torch.ones(1, 64, 128, dtype=dtype), -torch.ones(64, 16), torch.ones(1, 16, 128)
    mamba_aot.selective_scan_fn(rows.requires_grad_(), rows, A, B, B).sum().backward()
    print(max(map(int, re.findall(rb" shared (\\d+)", fake.fake_journal()[begun:]))))
"""
    narrow, wide = map(int, run(fakes, device_zero, program))
    assert narrow > 100 * 1024 > wide


def test_which_scans_take_warps_of_two_kinds(fakes: Path, device_zero: Path) -> None:
    """Programs of 256 threads: of 16 channels where they are few, for bfloat16 B and C, else of 32."""
    program = """
import re
def programs(D, L=256, N=16, dtype=torch.bfloat16, of_B=torch.bfloat16, groups=1, channel_last=False):
    begun = len(fake.fake_journal())
    rows = torch.ones(1, D, L, dtype=dtype)
    if channel_last:
        rows = rows.transpose(1, 2).contiguous().transpose(1, 2)
    B = torch.ones(1, groups, N, L, dtype=of_B)
    mamba_aot.selective_scan_fn(rows, rows, -torch.ones(D, N), B, B)
    journal = fake.fake_journal()[begun:]
    return " ".join(m.decode() for m in re.findall(rb"launch (\\d+),1,1 block 256,", journal)) or "none"
half, single = torch.float16, torch.float32
for options in (
    dict(D=2048), dict(D=2048, channel_last=True), dict(D=2048, dtype=half), dict(D=2040, groups=2),
    dict(D=4096), dict(D=4096, of_B=single), dict(D=4096, of_B=half, channel_last=True), dict(D=4112, N=5),
    dict(D=2048, of_B=half), dict(D=1024), dict(D=2048, L=240), dict(D=2048, L=257), dict(D=2048, N=4),
    dict(D=2048, N=17), dict(D=2048, dtype=single), dict(D=2040, channel_last=True),
    dict(D=2064, groups=688, channel_last=True),
):
    print(programs(**options))
"""
    found = run(fakes, device_zero, program)
    assert found[:8] == ["128", "128", "128", "128", "128", "128", "128", "129"]
    assert found[8:] == ["none"] * 9


def test_which_backwards_take_warps_of_two_kinds(fakes: Path, device_zero: Path) -> None:
    """Programs of 256 threads and 32 channels, in as many spans as the plain kernel has."""
    program = """
import re
def programs(D=64, L=64, N=16, dtype=torch.bfloat16, groups=1, channel_last=False, batch=1):
    rows = torch.ones(batch, D, L, dtype=dtype)
    if channel_last:
        rows = rows.transpose(1, 2).contiguous().transpose(1, 2)
    u = rows.detach().requires_grad_()
    B = torch.ones(batch, groups, N, L)
    out = mamba_aot.selective_scan_fn(u, rows, -torch.ones(D, N), B, B)
    begun = len(fake.fake_journal())
    out.backward(torch.ones_like(out))
    journal = fake.fake_journal()[begun:]
    return " ".join(m.decode() for m in re.findall(rb"launch (\\d+),1,1 block 256,", journal)) or "none"
half, single = torch.float16, torch.float32
for options in (
    dict(), dict(channel_last=True), dict(dtype=half), dict(D=80, groups=2), dict(N=5, batch=3),
    dict(D=80, L=65, channel_last=True), dict(D=4224, batch=2, L=128),
    dict(L=48), dict(L=65), dict(N=4), dict(N=17), dict(dtype=single), dict(D=60, channel_last=True),
    dict(D=48, groups=4, channel_last=True),
):
    print(programs(**options))
"""
    found = run(fakes, device_zero, program)
    assert found == ["2", "2", "2", "4", "6", "6", "264", *["none"] * 7]
