"""docs/numerics.md says what the records say, and the records say that every case holds."""

import json
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPT = runpy.run_path(str(ROOT / "benchmarks" / "numerics.py"))
RECORDS = sorted((ROOT / "benchmarks" / "results").glob("*/numerics.json"))


def test_the_page_is_made_from_the_records() -> None:
    assert RECORDS
    assert (ROOT / "docs" / "numerics.md").read_text(encoding="utf-8") == SCRIPT["page"]()


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.parent.name)
def test_records_are_of_all_ops_and_within_limits(path: Path) -> None:
    import mamba_aot

    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["cases"] >= 1500
    assert found["over"] == [row["case"] for row in found["rows"] if row["share"] > 1]
    assert all(row["op"] in mamba_aot.__all__ for row in found["rows"])
