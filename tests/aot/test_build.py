"""A small library built from scratch: what lands in it, what a rebuild touches, how a failure reads."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from tools.aot import cubin
from tools.aot.build import BuildError, build
from tools.aot.compile import CompileError, check_launchable, ptx_for, waits_by_itself

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
    packed = images(checkout)["axpy-sm80-sm90.bin"]
    starts = [at for at in range(0, len(packed), 64) if packed[at : at + 4] == b"\x7fELF"]
    found = [cubin.facts(packed[at:]).arch for at in starts]
    # One of the eleven is for sm_90 alone.
    assert sorted(found) == [80] * 10 + [90] * 11


def test_ptx_is_for_any_newer_gpu(checkout: Path):
    text = images(checkout)["axpy-ptx80.bin"].decode()
    assert text.count(".version 8.0\n.target sm_80\n") == 10
    assert "//" not in text


def test_newer_instructions_are_for_newer_architectures_alone():
    text = ".version 8.0\n.target sm_80\n// from sm_90: griddepcontrol.wait;\nret;\n"
    assert ptx_for(text, 89) == text
    assert ptx_for(text, 90) == ".version 8.0\n.target sm_90\ngriddepcontrol.wait;\nret;\n"
    assert ptx_for(".target sm_80\nret;\n", 90) == ".target sm_80\nret;\n"
    assert waits_by_itself(text, 90)
    assert not waits_by_itself(text, 89)
    assert not waits_by_itself(text.replace("griddepcontrol.wait", "griddepcontrol.launch_dependents"), 90)


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
    assert {"scale-sm80-sm90.bin", "scale-sm80-sm90.cpp", "libmamba_aot.so"} <= changed
    assert not [name for name in changed if name.startswith("axpy")]
    assert "scale.gen.cpp" not in changed, "the launcher is the same"


def test_an_edited_helper_rebuilds_who_imports_it(own_checkout: Path):
    before = times(own_checkout)
    helper = own_checkout / "csrc/kernels/_double.py"
    helper.write_text(helper.read_text().replace("* 2", "* 3"))
    build(own_checkout, ARCHS)
    changed = changed_since(before, own_checkout)
    assert "axpy-sm80-sm90.bin" in changed
    assert "scale-sm80-sm90.bin" not in changed


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
    assert "scale-only: " in output
    assert "faktor is not defined" in output


def test_mistakes_in_a_table_stop_the_build_once(own_checkout: Path, capfd: pytest.CaptureFixture[str]):
    kernel = own_checkout / "csrc/kernels/scale.py"
    kernel.write_text(kernel.read_text().replace('factor="f32"', "").replace("BLOCK=128", ""))
    with pytest.raises(BuildError):
        build(own_checkout, ARCHS)
    output = capfd.readouterr().out
    assert output.count("csrc/kernels/scale.py: scale_kernel: parameter factor is claimed by nobody") == 1
    assert output.count("csrc/kernels/scale.py: scale_kernel: parameter BLOCK is claimed by nobody") == 1


@pytest.mark.parametrize(
    ("fact", "message"),
    [
        ({"global_scratch_size": 128}, "must not need scratch memory, got global_scratch_size = 128"),
        ({"num_ctas": 2}, "must run without clusters, got num_ctas = 2"),
        ({"launch_pdl": True}, "must start plainly, got launch_pdl"),
    ],
)
def test_what_the_launcher_could_not_start_is_refused(fact: dict[str, int], message: str):
    with pytest.raises(CompileError, match=f"scale-only: {message}"):
        check_launchable([], "scale-only", SimpleNamespace(**{"num_ctas": 1} | fact), "")


def test_a_kernel_with_more_parameters_than_arguments_is_refused():
    ptx = ".entry scale_kernel(.param .u64 x, .param .u32 n, .param .u64 scratch, .param .u64 profile) {}"
    meta = SimpleNamespace(num_ctas=1)
    check_launchable(["x", "n"], "scale-only", meta, ptx)
    with pytest.raises(CompileError, match="scale-only: must take 3 parameters, got 4"):
        check_launchable(["x"], "scale-only", meta, ptx)
