"""What follows from a variant table: ids, types, constants, promises, and which configs are built."""

import fake_kernels
import pytest

from tools.aot import tree
from tools.aot.spec import Config, camel


def variant(name: str):
    return next(v for v in fake_kernels.scan().variants if v.name == name)


def test_ids_read_as_sentences():
    kernel = fake_kernels.scan()
    assert kernel.op == "scan"
    assert kernel.struct == "Scan"
    assert [v.id("sm90") for v in kernel.variants][:5] == [
        "scan-sm90-f32-seq-few",
        "scan-sm90-f32-seq-many",
        "scan-sm90-f32-strided-few",
        "scan-sm90-f32-strided-many",
        "scan-sm90-f32-complex-seq-few",
    ]


def test_int_axes_show_their_name():
    def conv_kernel(x, W: fake_kernels.constexpr): ...

    kernel = fake_kernels.Kernel(conv_kernel, args=dict(x="*f32"), axes=dict(W=[2, 4]))
    assert [v.name for v in kernel.variants] == ["conv-w2-only", "conv-w4-only"]
    assert [v.constexprs for v in kernel.variants] == [{"W": 2}, {"W": 4}]


def test_configs_are_built_only_where_their_rule_can_hold():
    found = {v.name for v in fake_kernels.scan().variants}
    assert "scan-bf16-complex-seq-tall" in found
    assert "scan-bf16-seq-tall" not in found, "tall wants COMPLEX"
    assert "scan-f16-seq-few" not in found, "few refuses f16"
    assert "scan-f16-seq-many" in found


def test_skipped_combinations_are_not_built():
    assert not [v.name for v in fake_kernels.scan().variants if v.key["T"] == "f16" and v.key["COMPLEX"]]


def test_a_rule_that_always_holds_ends_the_list():
    kernel = fake_kernels.scan(
        configs=[Config("first", when="COMPLEX or not COMPLEX", TILE=1), Config("last", TILE=2)]
    )
    assert {v.config.name for v in kernel.variants} == {"first"}


def test_types_and_constants():
    chosen = variant("scan-bf16-complex-seq-few")
    assert chosen.signature == {
        "u": "*bf16",
        "out": "*fp32",
        "length": "i64",
        "scale": "fp32",
        "COMPLEX": "constexpr",
        "LAYOUT": "constexpr",
        "TILE": "constexpr",
    }
    assert chosen.constexprs == {"COMPLEX": True, "LAYOUT": "seq", "TILE": 16}
    assert chosen.config.options == {"num_warps": 4}


def test_promised_arguments_are_found_by_position():
    assert set(variant("scan-bf16-seq-few").attributes) == {(0,), (2,)}
    assert variant("scan-bf16-strided-few").attributes == {}


def test_options_can_be_parameters():
    def fill_kernel(y, num_warps: fake_kernels.constexpr): ...

    kernel = fake_kernels.Kernel(fill_kernel, args=dict(y="*f32"), configs=[Config("only", num_warps=2)])
    assert kernel.variants[0].constexprs == {"num_warps": 2}


@pytest.mark.parametrize(
    ("name", "expected"), [("selective_scan_fwd", "SelectiveScanFwd"), ("LAYOUT", "Layout")]
)
def test_camel(name: str, expected: str):
    assert camel(name) == expected


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("80;90", ["sm80", "sm90", "ptx80"]),
        ("90", ["sm90"]),
        (" 120, 80 ", ["sm80", "sm120", "ptx80"]),
        ("none", []),
        ("", ["sm80", "sm86", "sm89", "sm90", "sm100", "sm120", "ptx80"]),
    ],
)
def test_architectures_of_a_setting(setting: str, expected: list[str]):
    assert [target.name for target in tree.targets(tree.chosen_archs(setting))] == expected


def test_unused_combinations_have_no_image_there_but_their_ptx():
    kernel = fake_kernels.scan(unused=lambda values, arch: values["T"] == "f16" and arch in (80, 100))
    found = {(v.key["T"], tuple(t.name for t in tree.targets_of(v, [80, 90, 100]))) for v in kernel.variants}
    everywhere = ("sm80", "sm90", "sm100", "ptx80")
    assert found == {("f32", everywhere), ("bf16", everywhere), ("f16", ("sm90", "ptx80"))}


def test_combinations_that_are_not_portable_have_no_ptx_and_ask_for_their_image():
    kernel = fake_kernels.scan(portable=lambda values: values["T"] != "f16")
    found = {(v.key["T"], tuple(t.name for t in tree.targets_of(v, [80, 90]))) for v in kernel.variants}
    everywhere = ("sm80", "sm90", "ptx80")
    assert found == {("f32", everywhere), ("bf16", everywhere), ("f16", ("sm80", "sm90"))}
    assert kernel.asks_first
    assert not fake_kernels.scan().asks_first


def test_an_unknown_architecture_is_refused():
    with pytest.raises(tree.TableError, match=r"out of 80;86;89;90;100;120, got '75'"):
        tree.chosen_archs("75")
