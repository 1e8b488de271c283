"""Every mistake in a table is named with its fix, and all of them at once."""

import fake_kernels
import pytest

from tools.aot.check import problems
from tools.aot.spec import Config

LAST = Config("many", TILE=8)
CASES = [
    # what is changed in a sound table, and the sentence that it gives
    (
        dict(args=dict(u="*T", out="*f32", length="i64")),
        "parameter scale is claimed by nobody; add it to args",
    ),
    (
        dict(configs=[Config("many")]),
        "parameter TILE is claimed by nobody; add it to an axis or every config",
    ),
    (
        dict(args=dict(u="*T", out="*f32", length="i64", scale="f32", TILE="i32")),
        "parameter TILE is claimed by args and configs; keep one",
    ),
    (
        dict(args=dict(u="*T", out="*f32", length="i64", scale="f32", bias="*f32")),
        "args: bias is no parameter of the kernel; its parameters are COMPLEX, LAYOUT, TILE",
    ),
    (dict(configs=[Config("many", TILE=8, WIDTH=3)]), "configs: WIDTH is no parameter of the kernel"),
    (
        dict(configs=[Config("many", TILE=8, scale=2)]),
        "parameter scale is chosen at compile time; annotate it constexpr in the kernel",
    ),
    (
        dict(args=dict(u="*T", out="*fp16", length="i64", scale="f32")),
        "parameter out points to fp16, which is no",
    ),
    (
        dict(args=dict(u="*T", out="*f32", length="int", scale="f32")),
        "parameter length has the type int, which can",
    ),
    (
        dict(axes=dict(T=["f32"], COMPLEX=[True, 1], LAYOUT=["seq"])),
        "axis COMPLEX must have values of one kind",
    ),
    (
        dict(axes=dict(T=["f32"], COMPLEX=[], LAYOUT=["seq"])),
        "axis COMPLEX must have at least one value, got none",
    ),
    (dict(axes=dict(T=["f32", "f32"], COMPLEX=[True], LAYOUT=["seq"])), "axis T must have each value once"),
    (
        dict(axes=dict(T=["f32"], COMPLEX=[True], LAYOUT=["seq-last"])),
        "that are names in C++, got ['seq-last']",
    ),
    (
        dict(axes=dict(T=["f32", "fp8"], COMPLEX=[True], LAYOUT=["seq"])),
        "axis T must hold only element types",
    ),
    (dict(shape=["B", "D", "L", "T"]), "T is an axis and a shape name; rename one"),
    (dict(configs=[]), "configs must hold at least one Config, got none"),
    (dict(configs=[Config("many", TILE=8), LAST]), "config many is there 2 times; give each its own name"),
    (
        dict(configs=[Config("few", TILE=8), LAST]),
        "config few has no rule, so those after it are never picked",
    ),
    (dict(configs=[Config("few", when="B < 2", TILE=8)]), "config few is the last and must have no rule"),
    (dict(configs=[Config("Many!", TILE=8)]), "config 'Many!' must be named in lower-case letters"),
    (
        dict(configs=[Config("many", TILE=8, num_warps=3)]),
        "config many: num_warps must be a power of two, got 3",
    ),
    (dict(configs=[Config("many", TILE=8, num_stages=0)]), "num_stages must be a whole number from 1, got 0"),
    (
        dict(configs=[Config("few", when="B < 2", TILE="8"), LAST]),
        "config many: TILE must have one type in all",
    ),
    (dict(configs=[Config("few", when="B < 2"), LAST]), "config few: must set TILE, as the other configs do"),
    (
        dict(configs=[Config("few", when="X < 2", TILE=8), LAST]),
        "uses X, which is neither a shape name nor an axis",
    ),
    (
        dict(configs=[Config("few", when="B ** 2 < 2", TILE=8), LAST]),
        "the rule 'B ** 2 < 2' may not use 'B ** 2'",
    ),
    (dict(configs=[Config("few", when="B <", TILE=8), LAST]), "the rule 'B <' is not an expression"),
    (dict(arch=91), "arch must be one of 80, 86, 89, 90, 100, 120, or left out for all, got 91"),
    (dict(aligned=lambda v: ["z"]), "aligned names z, which is not in args"),
    (dict(aligned=lambda v: ["scale"]), "aligned names scale, a f32; only pointers and integers"),
    (dict(skip=lambda v: v["DTYPE"]), "skip, aligned or a rule fails: KeyError: 'DTYPE'"),
    (dict(skip=lambda v: True), "skip leaves nothing to build"),
]


@pytest.mark.parametrize(("changes", "sentence"), CASES, ids=range(len(CASES)))
def test_a_mistake_is_named(changes: dict, sentence: str):
    found = problems([fake_kernels.scan(**changes)])
    assert any(p.startswith("scan_kernel: ") and sentence in p for p in found), found


def test_a_sound_table_passes():
    assert problems([fake_kernels.scan()]) == []


def test_all_mistakes_come_at_once():
    found = problems(
        [
            fake_kernels.scan(
                args=dict(u="*U", length="int"), configs=[Config("many", num_warps=3)], shape=["T"]
            )
        ]
    )
    assert len(found) == 7, found


def test_colliding_ids_are_found():
    def copy_kernel(x, PAIR: fake_kernels.constexpr, pair: fake_kernels.constexpr): ...

    axes = dict(PAIR=[False, True], pair=[False, True])
    kernel = fake_kernels.Kernel(copy_kernel, args=dict(x="*f32"), axes=axes)
    assert problems([kernel]) == [
        "copy_kernel: 2 variants have the id copy-pair-only; rename the values of an axis, or a config"
    ]


def test_two_kernels_of_one_name():
    found = problems([fake_kernels.scan(), fake_kernels.scan()])
    assert found == ["scan_kernel: is in the table 2 times; give each Kernel its own function"]


def test_a_function_needs_the_ending():
    def scan(x): ...

    found = problems([fake_kernels.Kernel(scan, args=dict(x="*f32"))])
    assert found == ["scan: the function must be named <op>_kernel; rename it"]
