"""Every op against float64 on any sizes."""

import random

import cases
import pytest
from held import DOUBLE, hold
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

# The largest size that hypothesis tries.
LARGEST = {"batch": 4, "length": 90, "state": 40, "dim": 70, "rows": 40, "channels": 300, "group_size": 150}


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
