"""A small library built from scratch: what lands in it, what a rebuild touches, how a failure reads."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from tools.aot import cubin
from tools.aot.build import BuildError, build

ARCHS = [80, 90]


def images(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((root / "build/images").glob("*.bin"))}


def changed_since(before: dict[Path, float], root: Path) -> set[str]:
    return {
        path.name for path in (root / "build").rglob("*.*") if before.get(path) != path.stat().st_mtime_ns
    }


def times(root: Path) -> dict[Path, float]:
    return {path: path.stat().st_mtime_ns for path in (root / "build").rglob("*.*")}


def test_cubins_are_for_their_architecture(checkout: Path):
    for arch in ARCHS:
        packed = images(checkout)[f"axpy-sm{arch}.bin"]
        starts = [at for at in range(0, len(packed), 64) if packed[at : at + 4] == b"\x7fELF"]
        assert len(starts) == 11
        assert {cubin.facts(packed[at:]).arch for at in starts} == {arch}


def test_ptx_is_for_any_newer_gpu(checkout: Path):
    text = images(checkout)["axpy-ptx80.bin"].decode()
    assert text.count(".version 8.0\n.target sm_80\n") == 11
    assert "//" not in text


def test_two_places_give_the_same_bytes(checkout: Path, fresh_checkout: Path):
    build(fresh_checkout, ARCHS)
    assert images(fresh_checkout) == images(checkout)
    first, second = ((root / "build/libmamba_aot.so").read_bytes() for root in (checkout, fresh_checkout))
    assert hashlib.sha256(first).hexdigest() == hashlib.sha256(second).hexdigest()


def test_no_path_of_this_machine_is_inside(checkout: Path):
    library = (checkout / "build/libmamba_aot.so").read_bytes()
    for place in (checkout, Path.home(), Path(shutil.__file__).parent):
        if len(str(place)) > 5:
            assert str(place).encode() not in library


def test_an_edit_rebuilds_only_its_own_images(own_checkout: Path):
    before = times(own_checkout)
    build(own_checkout, ARCHS)
    assert not changed_since(before, own_checkout), "nothing was edited"
    kernel = own_checkout / "csrc/kernels/scale.py"
    kernel.write_text(kernel.read_text().replace("* factor)", "* factor + 1.0)"))
    build(own_checkout, ARCHS)
    changed = changed_since(before, own_checkout)
    assert {"scale-sm90.bin", "scale-sm90.cpp", "libmamba_aot.so"} <= changed
    assert not [name for name in changed if name.startswith("axpy")]
    assert "scale.gen.cpp" not in changed, "the launcher is the same"


def test_an_edited_helper_rebuilds_who_imports_it(own_checkout: Path):
    before = times(own_checkout)
    helper = own_checkout / "csrc/kernels/_double.py"
    helper.write_text(helper.read_text().replace("* 2", "* 3"))
    build(own_checkout, ARCHS)
    changed = changed_since(before, own_checkout)
    assert "axpy-sm90.bin" in changed
    assert "scale-sm90.bin" not in changed


def test_a_library_without_gpu_images_builds(own_checkout: Path):
    build(own_checkout, [])
    assert "generated/axpy.gen.cpp" in (own_checkout / "build/build.ninja").read_text()
    assert "build/images/axpy-" not in (own_checkout / "build/build.ninja").read_text()
    assert b"sm_90" not in (own_checkout / "build/libmamba_aot.so").read_bytes()


def test_a_tree_without_kernels_builds(own_checkout: Path):
    shutil.rmtree(own_checkout / "csrc/kernels")
    (own_checkout / "csrc/probe.cpp").unlink()
    build(own_checkout, ARCHS)
    assert (own_checkout / "build/libmamba_aot.so").exists()


def test_a_kernel_that_does_not_compile_is_named(own_checkout: Path, capfd: pytest.CaptureFixture[str]):
    kernel = own_checkout / "csrc/kernels/scale.py"
    kernel.write_text(kernel.read_text().replace("* factor)", "* faktor)"))
    with pytest.raises(BuildError, match="the build failed"):
        build(own_checkout, [90])
    output = capfd.readouterr().out
    assert "scale-sm90-only: " in output
    assert "faktor is not defined" in output


def test_mistakes_in_a_table_stop_the_build_once(own_checkout: Path, capfd: pytest.CaptureFixture[str]):
    kernel = own_checkout / "csrc/kernels/scale.py"
    kernel.write_text(kernel.read_text().replace('factor="f32"', "").replace("BLOCK=128", ""))
    with pytest.raises(BuildError):
        build(own_checkout, ARCHS)
    output = capfd.readouterr().out
    assert output.count("csrc/kernels/scale.py: scale_kernel: parameter factor is claimed by nobody") == 1
    assert output.count("csrc/kernels/scale.py: scale_kernel: parameter BLOCK is claimed by nobody") == 1


def test_a_kernel_that_needs_scratch_is_refused(own_checkout: Path, capfd: pytest.CaptureFixture[str]):
    (own_checkout / "csrc/kernels/scale.py").write_text(
        """import triton
import triton.language as tl

from tools.aot.spec import Config, Kernel


@triton.jit
def scale_kernel(x, n):
    d = tl.make_tensor_descriptor(x, [n, 64], [64, 1], [16, 64])
    d.store([0, 0], d.load([0, 0]) * 2)


KERNELS = [Kernel(scale_kernel, args=dict(x="*f32", n="i32"), aligned=lambda v: ["x"])]
"""
    )
    with pytest.raises(BuildError):
        build(own_checkout, [90])
    assert "scale-sm90-only: must not need scratch memory, got global_scratch_size" in capfd.readouterr().out
