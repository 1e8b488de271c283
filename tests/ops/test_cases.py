"""Every op against float64 on all pairs of its options, forward and every gradient."""

import itertools

import cases
import pytest
from held import DOUBLE, hold

ALL = [case for name in cases.OPS for case in cases.cases_of(name)]
ON_CUDA = [case for case in ALL if case.dtype not in DOUBLE]


@pytest.mark.parametrize("case", ALL, ids=str)
def test_on_the_cpu(case: cases.Case) -> None:
    hold(case, "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("case", ON_CUDA, ids=str)
def test_on_the_gpu(case: cases.Case) -> None:
    hold(case, "cuda")


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
