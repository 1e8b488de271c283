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


IMAGES = [
    {"variant": f"scan_fwd-{dtype}-few", "arch": arch, "ptx": ptx, "size": 2**20}
    for arch, ptx in ((80, False), (90, False), (80, True))
    for dtype in ("f32", "bf16")
] + [{"variant": "sum_partials-only", "arch": 90, "ptx": False, "size": 2**20}]


def test_images_are_counted_by_kernel_architecture_and_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "variants", lambda: IMAGES)
    facts = doctor.collect_facts()
    each = {"f32": 1, "bf16": 1}
    assert facts["images"] == {
        "count": 7,
        "bytes": 7 * 2**20,
        "kernels": {
            "scan_fwd": {"sm_80": each, "sm_90": each, "ptx_80": each},
            "sum_partials": {"sm_90": {"any": 1}},
        },
    }
    lines = [" ".join(line.split()) for line in doctor.format_facts(facts).splitlines()]
    assert "scan_fwd bf16: 1 f32: 1 on sm_80 sm_90 ptx_80" in lines
    assert "sum_partials any: 1 on sm_90" in lines


@pytest.mark.parametrize(
    ("cuda", "fix"),
    [(None, "is a build without CUDA: install one with it"), ("14.0", "too new for this driver (CUDA 12.4)")],
)
def test_a_gpu_that_torch_does_not_use_is_found(
    monkeypatch: pytest.MonkeyPatch, cuda: str | None, fix: str
) -> None:
    count = torch.cuda.device_count() + 1
    monkeypatch.setattr(doctor, "_driver_facts", lambda: {"version": "550", "cuda": "12.4", "gpus": count})
    monkeypatch.setattr(torch.version, "cuda", cuda)
    (check,) = [check for check in doctor.run_checks() if not check.passed]
    assert check.name == "torch can use the GPUs"
    assert fix in check.detail


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
