"""A rule means the same in Python, where variants are counted, and in C++, where one is picked."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tools.aot import rules

NAMES = {"B": "B", "L": "L", "COMPLEX": "COMPLEX", "T": "T"}
RULES = [
    "B * L < 4096",
    "B + 1 <= L - 2",
    "L % 16 == 0 and L // 16 > B",
    "not COMPLEX",
    "T == 'bf16' or B == 1",
    "T in ('f16', 'bf16')",
    "T not in ('f16', 'bf16')",
    "1 < B <= 8",
    "not (B == 1 or COMPLEX) and L > 4",
]
POINTS = [
    (b, length, c, t)
    for b in (1, 2, 8)
    for length in (4, 16, 8192)
    for c in (False, True)
    for t in ("f32", "bf16")
]


@pytest.mark.parametrize("rule", RULES)
def test_python_and_cpp_agree(rule: str, tmp_path: Path):
    written = rules.to_cpp(rule, NAMES, {"T": "DType"})
    lines = [
        f"  {{ int64_t B = {b}, L = {length}; bool COMPLEX = {str(c).lower()}; DType T = DType::{t};"
        f" (void)B; (void)L; (void)COMPLEX; (void)T; std::putchar(({written}) ? '1' : '0'); }}"
        for b, length, c, t in POINTS
    ]
    source = tmp_path / "rule.cpp"
    source.write_text(
        "#include <cstdint>\n#include <cstdio>\nenum class DType { f32, f16, bf16 };\nint main() {\n"
        + "\n".join(lines)
        + "\n}\n"
    )
    compiler = shutil.which("g++")
    assert compiler is not None
    subprocess.run([compiler, "-std=c++17", "-Wall", "-Werror", source, "-o", tmp_path / "rule"], check=True)
    answers = subprocess.run([tmp_path / "rule"], capture_output=True, text=True, check=True).stdout
    expected = [
        rules.evaluate(rule, {"B": b, "L": length, "COMPLEX": c, "T": t}) for b, length, c, t in POINTS
    ]
    assert [a == "1" for a in answers] == expected


@pytest.mark.parametrize(
    ("rule", "known", "expected"),
    [
        ("COMPLEX and B > 1", {"COMPLEX": False}, False),
        ("COMPLEX and B > 1", {"COMPLEX": True}, None),
        ("COMPLEX or B > 1", {"COMPLEX": True}, True),
        ("B > 1", {}, None),
        ("T == 'f32'", {"T": "f32"}, True),
        ("T in ('f16', 'bf16')", {"T": "f32"}, False),
    ],
)
def test_what_can_be_decided_early(rule: str, known: dict, expected: bool | None):
    assert rules.evaluate(rule, known) is expected


@pytest.mark.parametrize(
    "rule", ["B ** 2 > 4", "B if L else 1", "max(B, L) > 2", "B / 2 > 1", "'f32'", "B <"]
)
def test_other_expressions_are_refused(rule: str):
    with pytest.raises(rules.RuleError):
        rules.to_cpp(rule, NAMES, {"T": "DType"})
