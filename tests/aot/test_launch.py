"""The launcher against a driver that only keeps a journal: image, context, arguments, sentences."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

PROGRAM = """
import ctypes, sys, threading
torch_cuda, driver, library = sys.argv[1:4]
if torch_cuda != "none":
    ctypes.CDLL(torch_cuda)
native = ctypes.CDLL(library)
message = ctypes.create_string_buffer(4096)
native.mamba_aot_probe_pick.restype = ctypes.c_char_p
def axpy(dtype=0, twice=0, set=0, device=0, grid=7, scale=1.5, n=1000):
    failed = native.mamba_aot_probe_axpy(
        dtype, twice, set, device, ctypes.c_uint64(grid), ctypes.c_void_p(11), ctypes.c_void_p(22),
        ctypes.c_float(scale), ctypes.c_int64(n), message, ctypes.c_uint64(4096))
    print("error " + message.value.decode() if failed else "ok")
def reverse(device=0):
    failed = native.mamba_aot_probe_reverse(device, ctypes.c_void_p(11), message, ctypes.c_uint64(4096))
    print("error " + message.value.decode() if failed else "ok")
def fill(device=0):
    failed = native.mamba_aot_probe_fill(device, ctypes.c_void_p(11), message, ctypes.c_uint64(4096))
    print("error " + message.value.decode() if failed else "ok")
def preload(device=0):
    failed = native.mamba_aot_preload(device, message, ctypes.c_uint64(4096))
    print("error " + message.value.decode() if failed else "ok")
exec(sys.argv[4])
if driver != "none":
    fake = ctypes.CDLL(driver)
    fake.fake_journal.restype = ctypes.c_char_p
    print(fake.fake_journal().decode(), end="")
"""


def run(
    checkout: Path,
    fakes: Path,
    program: str,
    driver: bool = True,
    torch_cuda: bool = True,
    **environment: str,
) -> list[str]:
    """Runs a few calls in a process of its own; gives what they printed, then the driver's journal."""
    torch_libraries = str(Path(torch.__file__).parent / "lib")
    paths = [torch_libraries, *([str(fakes)] if driver else [])]
    arguments = [
        str(fakes / "libtorch_cuda.so") if torch_cuda else "none",
        "libcuda.so.1" if driver else "none",
        str(checkout / "build/libmamba_aot.so"),
        program,
    ]
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        env={**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(paths), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_arguments_reach_the_kernel(checkout: Path, fakes: Path):
    lines = run(checkout, fakes, "axpy(dtype=2, scale=1.5, n=1 << 40)", FAKE_READ_AXPY="1")
    assert lines == [
        "ok",
        "init",
        "retain 0",
        "context 100",
        "load sm90",
        "kernel axpy_kernel",
        "function in context 100",
        "context 0",
        "context 100",
        "launch 7,1,1 block 128,1,1 shared 0 stream 7000 context 100"
        " x 11 y 22 scale 1.500000 n 1099511627776 scratch 0 0",
        "context 0",
    ]


@pytest.mark.parametrize(
    ("program", "setting", "overlaps"),
    [
        ("reverse()", {}, True),
        ("reverse()", dict(FAKE_CAPABILITY="80"), False),
        ("reverse()", dict(FAKE_CAPABILITY="100"), False),
        ("reverse()", dict(FAKE_DRIVER="12020"), False),
        ("axpy()", {}, False),
    ],
)
def test_kernels_that_wait_by_themselves_may_begin_early(
    checkout: Path, fakes: Path, program: str, setting: dict, overlaps: bool
):
    lines = [line for line in run(checkout, fakes, program, **setting) if line.startswith("launch")]
    # CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
    assert [line.endswith(" attribute 6=1") for line in lines] == [overlaps]


def test_a_second_launch_loads_nothing(checkout: Path, fakes: Path):
    lines = run(checkout, fakes, "axpy(); axpy(); axpy()")
    assert len([line for line in lines if line.startswith("load")]) == 1
    assert len([line for line in lines if line.startswith("launch")]) == 3


def test_a_current_context_is_left_alone(checkout: Path, fakes: Path):
    program = "ctypes.CDLL(driver).cuCtxSetCurrent(ctypes.c_void_p(100)); axpy(); axpy()"
    assert len([line for line in run(checkout, fakes, program) if line.startswith("context")]) == 1


def test_another_context_comes_back(checkout: Path, fakes: Path):
    program = "cuda = ctypes.CDLL(driver); cuda.cuCtxSetCurrent(ctypes.c_void_p(55)); axpy(device=1)"
    lines = run(checkout, fakes, program + "; print('current', cuda.fake_current_context())")
    assert "current 55" in lines
    assert any("stream 7001 context 101" in line for line in lines)


def test_two_devices_share_an_image(checkout: Path, fakes: Path):
    lines = run(checkout, fakes, "axpy(device=0); axpy(device=1)")
    assert len([line for line in lines if line.startswith("load")]) == 1
    assert "function in context 100" in lines
    assert "function in context 101" in lines


def test_many_threads_load_once(checkout: Path, fakes: Path):
    program = (
        "threads = [threading.Thread(target=axpy) for _ in range(16)]; "
        "[t.start() for t in threads]; [t.join() for t in threads]"
    )
    lines = run(checkout, fakes, program)
    assert len([line for line in lines if line.startswith("load")]) == 1
    assert len([line for line in lines if line.startswith("launch")]) == 16


def test_much_shared_memory_is_asked_for(checkout: Path, fakes: Path):
    lines = run(checkout, fakes, "reverse(device=3)")
    assert "attribute 8 65536 device 3" in lines
    assert any("block 128,1,1 shared 65536" in line for line in lines)


@pytest.mark.parametrize(
    ("capability", "expected"),
    [("90", "sm90"), ("80", "sm80"), ("86", "sm80"), ("89", "sm80"), ("100", "ptx"), ("121", "ptx")],
)
def test_the_image_fits_the_gpu(checkout: Path, fakes: Path, capability: str, expected: str):
    assert f"load {expected}" in run(checkout, fakes, "axpy()", FAKE_CAPABILITY=capability)


def test_no_programs_are_no_launch(checkout: Path, fakes: Path):
    assert run(checkout, fakes, "axpy(grid=0)", driver=False, torch_cuda=False) == ["ok"]


def test_preload_loads_all(checkout: Path, fakes: Path):
    lines = run(checkout, fakes, "preload()")
    assert len([line for line in lines if line.startswith("load sm90")]) == 12


@pytest.mark.parametrize(("capability", "is_for"), [("90", 1), ("80", 0), ("86", 0), ("100", 0)])
def test_a_kernel_for_one_architecture(checkout: Path, fakes: Path, capability: str, is_for: int):
    """Others know that they have none, and preload the rest."""
    program = "print('is for', native.mamba_aot_probe_fill_is_for(0)); fill(); preload()"
    lines = run(checkout, fakes, program, FAKE_CAPABILITY=capability)
    assert lines[0] == f"is for {is_for}"
    refused = "error fill-only: no image for CUDA device 0"
    assert lines[1] == "ok" if is_for else lines[1].startswith(refused)
    assert lines[2] == "ok"
    assert len([line for line in lines if line.startswith("load ")]) == 11 + is_for


def test_pick_follows_the_rules(checkout: Path, fakes: Path):
    names = "native.mamba_aot_probe_pick(t, ctypes.c_int64(n)).decode()"
    program = f"print(*({names} for t in (0, 2) for n in (9, 9999)))"
    assert run(checkout, fakes, program)[0] == "small large large large"


@pytest.mark.parametrize(
    ("capability", "expected"), [("90", 132), ("80", 108), ("87", 84), ("103", 148), ("75", 108)]
)
def test_a_tuned_number_is_that_of_the_gpu(checkout: Path, fakes: Path, capability: str, expected: int):
    """Or of the nearest older architecture; until it is set, and again after that."""
    read = "print('tuned', native.mamba_aot_probe_tuned(1))"
    setting = "native.mamba_aot_set_tuned(b'{}', ctypes.c_int64({}))"
    program = f"{read}; {setting.format('reverse.FILLING', 7)}; {read}; "
    program += f"{setting.format('reverse.FILLING', -1)}; {read}; "
    program += f"print('unknown', {setting.format('reverse.OTHER', 7)})"
    lines = run(checkout, fakes, program, FAKE_CAPABILITY=capability)
    told = [line for line in lines if line.startswith(("tuned", "unknown"))]
    assert told == [f"tuned {expected}", "tuned 7", f"tuned {expected}", "unknown 1"]


@pytest.mark.parametrize(
    ("program", "setting", "sentence"),
    [
        ("axpy()", dict(driver=False), "CUDA ops need NVIDIA's driver, but libcuda.so.1 could not be loaded"),
        (
            "axpy()",
            dict(torch_cuda=False),
            "CUDA ops need a CUDA build of torch >= 2.10, but this process has",
        ),
        ("preload()", dict(driver=False), "CUDA ops need NVIDIA's driver"),
        (
            "axpy()",
            dict(FAKE_CAPABILITY="75"),
            "axpy-f32-add-small: no image for CUDA device 0 (Fake GPU, compute capability 7.5); "
            "this library has sm_80, sm_90, PTX for sm_80 and newer; rebuild with MAMBA_AOT_ARCHS=",
        ),
        ("preload()", dict(FAKE_CAPABILITY="75"), "no image for CUDA device 0 (Fake GPU, compute"),
        ("preload()", dict(FAKE_FAIL="cuInit"), "the CUDA driver does not start"),
        (
            "axpy()",
            dict(FAKE_CAPABILITY="103", FAKE_FAIL_PTX="1"),
            "axpy-ptx80-f32-add-small: the driver (CUDA 12.4) cannot load this PTX for CUDA device 0 "
            "(Fake GPU, compute capability 10.3): CUDA_ERROR_ILLEGAL_ADDRESS (as the test wanted); "
            "it says: ptxas: unsupported",
        ),
        ("axpy()", dict(FAKE_FAIL="cuInit"), "the CUDA driver does not start: CUDA_ERROR_ILLEGAL_ADDRESS"),
        ("axpy()", dict(FAKE_FAIL="cuLibraryLoadData"), "cannot load this image for CUDA device 0"),
        (
            "reverse()",
            dict(FAKE_FAIL="cuKernelSetAttribute"),
            "asking for 65536 bytes of shared memory failed on",
        ),
        (
            "axpy()",
            dict(FAKE_FAIL="cuLaunchKernelEx"),
            "axpy-f32-add-small: launching 7 programs failed on CUDA device 0",
        ),
        (
            "axpy(grid=1 << 31)",
            {},
            "a launch has at most 2147483647 programs, got 2147483648; split the batch",
        ),
        ("axpy(device=64)", {}, "the device index must lie in [0, 64), got 64"),
        (
            "axpy(dtype=1)",
            {},
            "axpy: no kernel was built for T=f16 TWICE=0 MODE=add with config large; the table at",
        ),
        ("axpy(twice=1, set=1)", {}, "no kernel was built for T=f32 TWICE=1 MODE=set with config small"),
    ],
)
def test_what_cannot_be_launched_says_why(
    checkout: Path, fakes: Path, program: str, setting: dict, sentence: str
):
    first = run(checkout, fakes, program, **setting)[0]
    assert first.startswith("error ")
    assert sentence in first


def test_a_failure_is_tried_anew(checkout: Path, fakes: Path):
    program = "import os; axpy(); os.unsetenv('FAKE_FAIL'); axpy()"
    lines = run(checkout, fakes, program, FAKE_FAIL="cuLibraryLoadData")
    assert lines[0].startswith("error ")
    assert lines[1] == "ok"
