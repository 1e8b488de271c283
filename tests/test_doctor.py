"""The doctor: facts are facts, a wrong op is found and named, a broken probe is a sentence."""

import pytest
import torch

from mamba_aot import _native, doctor


def test_everything_works_here() -> None:
    checks = doctor.run_checks()
    assert len(checks) > 6
    assert all(check.passed for check in checks), doctor.format_checks(checks)
    assert doctor.format_checks(checks).endswith("everything works")


def test_a_wrong_result_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from mamba_aot.ops import causal_conv1d

    right = causal_conv1d.causal_conv1d_fn

    def wrong(*args, **options) -> torch.Tensor:
        result = right(*args, **options)
        assert isinstance(result, torch.Tensor)
        return result + 1e-3

    monkeypatch.setattr(causal_conv1d, "causal_conv1d_fn", wrong)
    failed = [check for check in doctor.run_checks() if not check.passed]
    assert failed
    assert all(check.name.startswith("causal_conv1d_fn") for check in failed)
    report = doctor.format_checks(failed)
    assert "FAIL" in report
    assert "reinstall mamba-aot" in report


def test_facts_count_the_images() -> None:
    facts = doctor.collect_facts()
    assert facts["torch"] == torch.__version__
    assert facts["images"]["count"] == len(_native.variants())
    text = doctor.format_facts(facts)
    assert facts["library"]["sha256"] in text
    assert facts["library"]["path"] in text


def test_a_probe_that_fails_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ImportError("mamba_aot: the op library is not there; run pip install")

    monkeypatch.setattr(_native, "library", fail)
    monkeypatch.setattr(_native, "variants", fail)
    monkeypatch.setattr(_native, "build_info", fail)
    facts = doctor.collect_facts()
    assert "run pip install" in doctor.format_facts(facts)
    (check,) = doctor.run_checks()
    assert not check.passed
    assert "run pip install" in check.detail
