"""The library that is installed: what it links, what it holds, and what it does not give away."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mamba_aot import _native
from tools.aot import cubin, tree

SYSTEM = {
    "libtorch_cpu.so",
    "libc.so.6",
    "libm.so.6",
    "libstdc++.so.6",
    "libgcc_s.so.1",
    "ld-linux-x86-64.so.2",
}
# What torch's stable interface consists of; anything else would tie the file to one torch.
SHIM = re.compile(r"(aoti_)?torch_\w+|_ZN5torch\w+")


def tool_output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def rows() -> list[dict]:
    return _native.variants()


def test_it_needs_libtorch_cpu_and_the_system_alone():
    dynamic = tool_output("readelf", "-d", str(_native.library_path()))
    needed = set(re.findall(r"NEEDED.*\[(.*)\]", dynamic))
    assert "libtorch_cpu.so" in needed
    assert needed <= SYSTEM
    assert "RPATH" not in dynamic
    assert "RUNPATH" not in dynamic


def test_it_uses_only_what_torch_2_10_has():
    """The oldest torch it loads with: the list is the C interface that libtorch_cpu.so of 2.10.0 exports."""
    known = set((Path(__file__).parent / "fixtures/torch_2_10_shim.txt").read_text().split())
    symbols = tool_output("nm", "-D", "--undefined-only", str(_native.library_path()))
    used = {line.split()[-1] for line in symbols.splitlines()}
    assert {name for name in used if "torch" in name} <= known


@pytest.mark.parametrize(
    ("name", "newest"), [("GLIBC", (2, 34)), ("GLIBCXX", (3, 4, 29)), ("CXXABI", (1, 3, 13))]
)
def test_it_needs_no_newer_system_library(name: str, newest: tuple[int, ...]):
    """Those of Debian 12 and Ubuntu 22.04."""
    symbols = tool_output("objdump", "-T", str(_native.library_path()))
    needed = {tuple(map(int, found.split("."))) for found in re.findall(rf"\b{name}_([\d.]+)", symbols)}
    assert needed
    assert max(needed) <= newest


def test_it_uses_only_the_stable_interface_of_torch():
    symbols = tool_output("nm", "-D", "--undefined-only", str(_native.library_path()))
    names = [line.split()[-1] for line in symbols.splitlines()]
    foreign = [n for n in names if "@GLIBC" not in n and "@GCC" not in n and "@CXXABI" not in n]
    weak = {"_ITM_deregisterTMCloneTable", "_ITM_registerTMCloneTable", "__gmon_start__", "__cxa_finalize"}
    assert not [n for n in foreign if not re.fullmatch(r"(aoti_)?torch_\w+", n) and n not in weak]


def test_it_exports_its_c_interface_alone():
    symbols = tool_output("nm", "-D", "--defined-only", "--extern-only", str(_native.library_path()))
    assert {line.split()[-1] for line in symbols.splitlines()} == {
        "mamba_aot_api_version",
        "mamba_aot_build_info",
        "mamba_aot_get_image",
        "mamba_aot_image_count",
        "mamba_aot_preload",
        "mamba_aot_set_tuned",
    }


def test_every_variant_has_an_image_for_every_target():
    targets = _native.build_info()["architectures"]
    archs = [int(target[2:]) for target in targets if target.startswith("sm")]
    assert len({row["id"] for row in rows()}) == len(rows())
    for stem in tree.stems(tree.ROOT):
        kernels = tree.kernels(tree.ROOT, stem)
        expected = {v.id(t.name) for k in kernels for v in k.variants for t in tree.targets_of(v, archs)}
        assert expected == {row["id"] for row in rows() if row["stem"] == stem}


def test_images_are_what_their_row_says():
    for row in rows():
        data = _native.image(row["id"])
        assert len(data) == row["size"]
        assert hashlib.sha256(data).hexdigest() == row["sha256"]
        if row["ptx"]:
            assert data.startswith(b".version 8.0\n.target sm_80\n")
            assert data.endswith(b"\0")
        else:
            facts = cubin.facts(data)
            assert (facts.arch, facts.registers, facts.spill_bytes) == (
                row["arch"],
                row["registers"],
                row["spill_bytes"],
            )
            # ABI 8 wants a newer driver; Triton's assembler writes it from sm_100 on only.
            assert (data[8] >= 8) == (row["arch"] >= 100)


def test_the_python_module_sees_the_same():
    from mamba_aot import _C  # pyright: ignore[reportAttributeAccessIssue]

    assert _C.build_info() == _native.build_info()
    assert _C.variants() == rows()
    if rows():
        assert _C.image(rows()[0]["id"]) == _native.image(rows()[0]["id"])
    with pytest.raises(KeyError, match="must be one of"):
        _C.image("nothing")


def test_no_path_of_this_machine_is_inside():
    data = _native.library_path().read_bytes()
    places = {str(tree.ROOT), str(Path.home()), str(Path(sys.prefix)), "site-packages", "/tmp/"}
    for place in places - {"/", "/root"}:
        assert place.encode() not in data, place
    for row in rows():
        image = _native.image(row["id"])
        found = [word for word in re.findall(rb"/[\w.-]+/[\w./-]+", image) if len(word) > 8]
        assert not found, f"{row['id']}: {found[:3]}"


def cubins(kernel: str = "") -> list[dict]:
    return [row for row in rows() if not row["ptx"] and row["variant"].startswith(kernel)]


def test_registers_and_spills_are_recorded():
    for row in cubins():
        assert 0 < row["registers"] <= 255, row["id"]
        assert row["spill_bytes"] >= 0, row["id"]


def test_the_scan_does_not_spill():
    """A thread holds 16 steps of a real state, 8 or 4 of a complex one: every state size takes this code."""
    spilling = {row["id"]: row["spill_bytes"] for row in cubins("selective_scan") if row["spill_bytes"] > 0}

    # The backward of packed sequences, which holds two ways through a tile, needs more registers than there
    # are before sm_90, and so does that of complex states for sm_80; most of what they keep in memory they
    # read once a chunk.
    def most_bytes(row: dict) -> int:
        if "packed" in row["id"]:
            return 16 if row["arch"] >= 90 else 304
        if "complex" in row["id"]:
            return 208 if row["arch"] == 80 else 0
        return 16 if row["arch"] in (86, 89) else 0

    allowed = {
        row["id"] for row in cubins("selective_scan_plain_bwd") if row["spill_bytes"] <= most_bytes(row)
    }
    # In warps of two kinds some keep a few numbers of a whole span in memory.
    allowed |= {row["id"] for row in cubins("selective_scan_specialized_bwd") if row["spill_bytes"] <= 24}
    # For five programs a multiprocessor, which newer architectures miss by two registers.
    allowed |= {
        row["id"]
        for row in cubins("selective_scan_adjoint")
        if row["arch"] >= 100 and row["spill_bytes"] <= 8
    }
    assert not spilling.keys() - allowed


def test_two_programs_of_warps_of_two_kinds_fit_a_multiprocessor():
    """Of 228 KiB a program takes one itself, of 65536 registers each thread as many as it begins with."""
    programs = [row for row in cubins("selective_scan_specialized_bwd") if row["arch"] == 90]
    assert programs or all(row["arch"] != 90 for row in cubins())
    for row in programs:
        assert 2 * (row["shared_bytes"] + 1024) <= 228 * 1024, row["id"]
        assert 2 * 32 * row["num_warps"] * row["registers"] <= 65536, row["id"]


def test_the_linear_recurrence_does_not_spill():
    # For sm_120 the assembler stops at 96 registers and keeps two numbers of one kernel in memory.
    spilling = {row["id"]: row["spill_bytes"] for row in cubins("linear_recurrence") if row["spill_bytes"]}
    assert not {name: size for name, size in spilling.items() if "sm120" not in name or size > 8}


def test_build_facts_are_complete():
    info = _native.build_info()
    assert info["torch_minimum"] == "2.10"
    assert re.match(r"\d+\.\d+", info["torch_headers"])
    assert info["compiler"]
    if rows():
        assert set(info["ptxas"]) == {"ptxas", "ptxas-blackwell"}
        assert info["triton"]


def test_preload_without_a_driver_is_a_sentence():
    import torch

    if torch.cuda.is_available():
        _native.preload(0)
    else:
        with pytest.raises(RuntimeError, match="CUDA ops need"):
            _native.preload(0)
