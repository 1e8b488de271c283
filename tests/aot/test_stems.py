"""An op has one stem, and every file about it bears it."""

import pytest

from tools.aot import tree

# Where each op has a file, and what is added to its stem there.
PLACES = {
    "csrc/kernels": ("", ".py"),
    "csrc/ops": ("", ".h"),
    "csrc/ops/": ("", ".cpp"),
    "csrc/ops//": ("", "_check.cpp"),
    "csrc/cpu": ("", ".cpp"),
    "mamba_aot/ops": ("", ".py"),
    "tests/ops": ("test_", ".py"),
}
# Ops that call others on each device and have no kernel.
COMPOSED = {"mamba1_sequence"}


@pytest.mark.parametrize("place", PLACES)
def test_every_stem_has_its_file(place: str):
    prefix, suffix = PLACES[place]
    stems = {*tree.stems(tree.ROOT), *(COMPOSED if place != "csrc/kernels" else ())}
    missing = [s for s in sorted(stems) if not (tree.ROOT / place / f"{prefix}{s}{suffix}").is_file()]
    assert not missing, f"{place} must have {prefix}<stem>{suffix} for {missing}"


def test_no_file_has_a_stem_of_its_own():
    assert not COMPOSED & set(tree.stems(tree.ROOT))
    stems = COMPOSED | set(tree.stems(tree.ROOT))
    python = {p.stem for p in (tree.ROOT / "mamba_aot/ops").glob("*.py") if not p.stem.startswith("_")}
    assert python == stems
    # Beside them lies what the checks of all ops are made of.
    of_cuda = {p.stem.removesuffix("_check") for p in (tree.ROOT / "csrc/ops").glob("*.cpp")}
    assert of_cuda == stems | {"check"}
