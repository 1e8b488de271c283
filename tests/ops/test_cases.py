"""Every op against float64 on all pairs of its options, forward and every gradient; and on any sizes."""

import itertools
import random

import cases
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mamba_aot.testing import assert_close_to_fp64

DOUBLE = (torch.float64, torch.complex128)
ALL = [case for name in cases.OPS for case in cases.cases_of(name)]
ON_CUDA = [case for case in ALL if case.dtype not in DOUBLE]
# The largest size that hypothesis tries.
LARGEST = {"batch": 4, "length": 90, "state": 40, "dim": 70, "rows": 40, "channels": 300, "group_size": 150}


def hold(case: cases.Case, device: str) -> None:
    for name, compared in case.compare(device).items():
        if case.dtype in DOUBLE:
            # The rule needs a truth that is wider than what it judges; a wrong formula shows without.
            step = max(1e-11, 4 * torch.finfo(compared.out.dtype).eps)
            size = compared.truth.abs().amax().item() if compared.truth.numel() else 0.0
            torch.testing.assert_close(compared.out, compared.eager, rtol=0, atol=step * max(1.0, size))
        else:
            assert_close_to_fp64(compared.out, compared.eager, compared.truth, name, compared.nudged)


@pytest.mark.parametrize("case", ALL, ids=str)
def test_on_the_cpu(case: cases.Case) -> None:
    hold(case, "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("case", ON_CUDA, ids=str)
def test_on_the_gpu(case: cases.Case) -> None:
    hold(case, "cuda")


@pytest.mark.parametrize("name", cases.OPS)
def test_any_size(name: str, device: str) -> None:
    op = cases.OPS[name]
    rows = cases.pairs_of(op, random.Random(name))
    if device == "cuda":
        rows = [row for row in rows if row["dtype"] not in DOUBLE]

    # The same examples in every run: which numbers come close to a limit is a matter of luck.
    @settings(
        max_examples=12,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(
        st.sampled_from(rows),
        st.fixed_dictionaries(
            {size: st.integers(min(op.sizes[size]), LARGEST.get(size, 20)) for size in op.sizes}
        ),
        st.integers(0, 1000),
    )
    def check(options: dict, sizes: dict, seed: int) -> None:
        hold(cases.Case(name, {**options, **sizes, "seed": seed}), device)

    check()


@pytest.mark.parametrize("name", cases.OPS)
def test_every_pair_of_options_is_there(name: str) -> None:
    op = cases.OPS[name]
    met = set()
    for case in cases.cases_of(name):
        chosen = [(option, case.arguments[option]) for option in op.options]
        met |= {frozenset(pair) for pair in itertools.combinations(chosen, 2)}
    values = [[(option, value) for value in op.options[option]] for option in op.options]
    for left, right in itertools.combinations(values, 2):
        for pair in itertools.product(left, right):
            assert frozenset(pair) in met or not op.fits(dict(pair)), pair


def test_there_are_enough() -> None:
    assert len(ALL) >= 2000
    assert len({str(case) for case in ALL}) == len(ALL)
