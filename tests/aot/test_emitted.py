"""The generated C++: what it says, that a compiler takes it, and that it looks the same every time."""

import subprocess
import sys
from pathlib import Path

import fake_kernels

from tools.aot import tree
from tools.aot.emit import directory, launchers
from tools.aot.spec import Config

TARGETS = tree.targets([80, 90])


def emitted() -> tuple[str, str]:
    return launchers("scan", [fake_kernels.scan()], TARGETS, {})


def test_the_header_reads_like_the_table():
    header, _ = emitted()
    for line in (
        "// Made by tools/aot from csrc/kernels/scan.py; edit that file and run: python -m tools.aot build",
        "struct Scan {",
        "    void* u = nullptr;  // T",
        "    int64_t length = 0;",
        "    float scale = 0;",
        "  enum class Layout { seq, strided };",
        "    DType T;",
        "    bool COMPLEX;",
        "    Layout LAYOUT;",
        "    int64_t B = 0;",
        "    int32_t TILE;",
        "  static const Config& pick(const Key& key, const Shape& shape);",
    ):
        assert line in header.splitlines(), line


def test_the_source_holds_rules_and_table():
    _, source = emitted()
    for line in (
        "  if (((shape.B * shape.D) < 4096) && (key.T != DType::f16)) return kScanConfigs[0];  // few",
        "  if (key.COMPLEX && ((shape.L / 2) >= 100)) return kScanConfigs[1];  // tall",
        "  return kScanConfigs[2];  // many",
        '    {0, "few", 16, 4},',
        "    {-1, -1, -1},  // T=f16, COMPLEX=True, LAYOUT=seq",
        '    {"scan-bf16-complex-seq-tall", &kScanFamily, 17, kScanLoaded[17]},',
        "      &arguments.u, &arguments.out, &arguments.length, &arguments.scale, &kNoScratch, &kNoScratch,",
    ):
        assert line in source.splitlines(), f"{line}\n{source}"


def test_a_rule_asks_for_the_number_of_the_device():
    configs = [Config("few", when="B * D < FEW", TILE=16), Config("many", TILE=8)]
    kernel = fake_kernels.scan(configs=configs, tuned=["FEW"])
    header, source = launchers("scan", [kernel], TARGETS, {90: {"scan.FEW": 7}, 80: {"scan.FEW": 5}})
    assert "  static int64_t FEW(int32_t device);" in header.splitlines()
    assert "    int32_t device = 0;" in header.splitlines()
    assert 'runtime::TunedNumber kScanFew("scan.FEW", {{80, 5}, {90, 7}});' in source.splitlines()
    assert (
        "  if ((shape.B * shape.D) < FEW(shape.device)) return kScanConfigs[0];  // few"
        in source.splitlines()
    )


def test_a_compiler_takes_it_without_a_warning(tmp_path: Path):
    header, source = emitted()
    folder = tmp_path / "generated"
    folder.mkdir()
    (folder / "scan.gen.h").write_text(header)
    (folder / "scan.gen.cpp").write_text(source)
    (folder / "library.gen.cpp").write_text(directory(["scan"], {"version": "1"}))
    (folder / "empty.gen.cpp").write_text(directory([], {}))
    for name in ("scan.gen.cpp", "library.gen.cpp", "empty.gen.cpp"):
        includes = [f"-I{tmp_path}", f"-I{tree.ROOT / 'csrc'}"]
        command = [
            "g++",
            "-std=c++17",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-fsyntax-only",
            *includes,
            folder / name,
        ]
        subprocess.run(command, check=True)


def test_the_same_table_gives_the_same_text():
    assert emitted() == emitted()


def run_aot(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tools.aot", *arguments]
    return subprocess.run(command, cwd=tree.ROOT, capture_output=True, text=True, check=False)


def test_check_finds_nothing_wrong_in_the_tables():
    result = run_aot("check")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("nothing wrong") == len(tree.stems(tree.ROOT))


def test_list_names_every_image_once():
    lines = run_aot("list").stdout.split()
    assert lines
    assert len(lines) == len(set(lines))


def test_preview_shows_variants_and_launcher():
    stem = tree.stems(tree.ROOT)[0]
    result = run_aot("preview", stem)
    assert result.returncode == 0, result.stderr
    assert "signature" in result.stdout
    assert "static const Config& pick" in result.stdout


def test_preview_of_an_unknown_kernel_says_which_there_are():
    result = run_aot("preview", "nothing")
    assert result.returncode == 1
    assert "no kernel is called nothing; there are " in result.stderr
