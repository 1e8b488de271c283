"""The numbers that a GPU chose: which there are, how they are kept, and what is derived."""

import json
import re
from pathlib import Path

import fake_kernels
import pytest
import torch

from mamba_aot import _native
from mamba_aot.fused_step import MOST_WITHOUT_PARTS
from tools.aot import tree, tune, tuned
from tools.aot.check import problems


def all_names() -> set[str]:
    kernels = [kernel for stem in tree.stems(tree.ROOT) for kernel in tree.kernels(tree.ROOT, stem)]
    return set(tuned.names_of(kernels))


def test_every_number_can_be_tuned_and_has_a_value_everywhere():
    names = all_names()
    assert set(tune.PROBES) == names
    values = tuned.load(tree.ROOT)
    assert set(values) == set(tree.ARCHS)
    assert all(set(of) == names and min(of.values()) >= 0 for of in values.values())


def test_files_say_whether_they_were_measured():
    for arch in tree.ARCHS:
        content = json.loads(tuned.path(tree.ROOT, arch).read_text())
        assert ("measured" in content) != ("derived_from" in content)


def test_the_library_has_every_number():
    try:
        for name in all_names():
            _native.set_tuned(name, 1)
    finally:
        for name in all_names():
            _native.set_tuned(name, None)
    with pytest.raises(KeyError, match="name must be one of csrc/kernels/tuned, got"):
        _native.set_tuned("scan.MANY", 1)
    with pytest.raises(ValueError, match="value must be at least 0, got -2"):
        _native.set_tuned("scan.MANY", -2)


def test_what_was_not_measured_is_derived_and_what_was_is_kept(tmp_path: Path):
    tuned.save(tmp_path, 90, {"scan.FEW": 1320, "scan.NEVER": 0}, {"device": "one"})
    written = tuned.save(tmp_path, 80, {"scan.FEW": 540, "scan.NEVER": 0}, {"device": "two"})
    assert tuned.path(tmp_path, 90) not in written
    values = tuned.load(tmp_path)
    assert values[90]["scan.FEW"] == 1320
    assert values[86] == {"scan.FEW": 420, "scan.NEVER": 0}
    content = json.loads(tuned.path(tmp_path, 86).read_text())
    assert content["derived_from"] == "sm80, by the number of multiprocessors: 84 for 108"
    assert json.loads(tuned.path(tmp_path, 80).read_text())["measured"] == {"device": "two"}


def test_a_number_without_a_value_is_a_sentence():
    kernel = fake_kernels.scan(tuned=["FEW"])
    sentence = "scan.FEW must have a value for every architecture, but csrc/kernels/tuned has none for sm80, "
    with pytest.raises(tree.TableError, match=re.escape(sentence)):
        tuned.require([kernel], {90: {"scan.FEW": 1}})


def test_norms_lie_behind_the_steps_of_many_rows_alone():
    """Of few rows, whose kernels norm in front, `fused_step` must not ask for a norm behind."""
    few = [values["mamba1_step_in.FEW"] for values in tuned.load(tree.ROOT).values()]
    assert few
    assert max(few) <= MOST_WITHOUT_PARTS


@pytest.mark.parametrize("name", ["few", "B", "T"])
def test_a_bad_name_is_found(name: str):
    assert problems([fake_kernels.scan(tuned=[name])]) == [
        f"scan_kernel: tuned {name} must be in capitals, and no axis or shape name; rename it"
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so():
    with pytest.raises(tree.TableError, match="tune needs a GPU that torch can use"):
        tune.tune([])


@pytest.mark.gpu
def test_a_number_is_chosen_on_a_gpu(capsys: pytest.CaptureFixture[str]):
    best = tune.tune(["rms_norm_bwd.PROGRAMS"])
    assert best["rms_norm_bwd.PROGRAMS"] in tune.PROBES["rms_norm_bwd.PROGRAMS"].values
    assert f"takes {best['rms_norm_bwd.PROGRAMS']}" in capsys.readouterr().out
