"""The tables of docs/performance.md, made of the records of `mamba-aot bench`."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch):
    """The folder's scripts, importable; tests see page.py and tables.py."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield
    for name in ("page", "tables"):
        sys.modules.pop(name, None)


def row(direction: str = "forward", ms: float = 0.1, **changes) -> dict:
    values = dict(
        op="selective_scan",
        shape=dict(B=8, D=1024, L=2048, N=16),
        dtype="bfloat16",
        layout="seq",
        complex=False,
        direction=direction,
        ms=ms,
        ps_per_element=ms * 1e9 / (8 * 1024 * 2048),
        floor_ms=0.05,
        host_us=None,
        peak_mib=None,
        peers_ms={},
    )
    return {**values, **changes}


def record(*rows: dict) -> dict:
    machine = dict(device="GPU", driver="1", torch="2", bandwidth=4e12, commit="a" * 40)
    return dict(command="mamba-aot bench", machine=machine, rows=list(rows), failures=[])


@pytest.mark.usefixtures("benchmarks")
def test_rows_have_their_goal_and_their_peer():
    import tables

    lines = tables.works(record(row(), row("backward", 0.5), row(ms=0.35, complex=True))).splitlines()
    assert lines[0] == "| work | shape | us | floor us | % of floor | goal us | peer us |"
    assert lines[2:] == [
        "| selective_scan forward | B8 D1024 L2048 | 100 | 50.0 | 50 | 110 | 304 (3.04x) |",
        "| selective_scan backward | B8 D1024 L2048 | 500 | 50.0 | 10 | 400 (missed) | 1184 (2.37x) |",
        "| selective_scan forward | B8 D1024 L2048, complex | 350 | 50.0 | 14 | 300 (missed) |  |",
    ]


@pytest.mark.usefixtures("benchmarks")
def test_every_goal_is_of_a_row_that_is_timed():
    import tables

    from mamba_aot.benchmark import suites

    timed = {
        (work.op, tables.shape_of(dict(shape=work.dims)), work.is_complex)
        for name in ("kernels", "models")
        for work in suites.suite(name)
    }
    for goal in tables.GOALS["rows"]:
        assert (goal["op"], goal["shape"], goal.get("complex", False)) in timed


@pytest.mark.usefixtures("benchmarks")
def test_the_slope_of_times_in_line_with_the_length_is_one():
    import tables

    rows = [
        row(way, length * factor, shape=dict(B=1, D=1024, L=length, N=16))
        for length in (1024, 4096, 16384, 65536)
        for way, factor in (("forward", 1e-5), ("backward", 4e-5))
    ]
    rows[0]["ms"] = 99.0
    text = tables.sweep(record(*rows))
    assert text.endswith("to the longest: forward 1.000, backward 1.000.")
    assert text.count("\n") == 2 + len(rows) // 2 + 1


@pytest.mark.usefixtures("benchmarks")
def test_a_record_goes_between_its_marks_with_its_conditions():
    import page

    text = "a\n<!-- bench kernels -->\nold\n<!-- end bench kernels -->\nb"
    made = page.put(text, "kernels", page.block(record(row()), "kernels", "gpu"))
    assert made.startswith("a\n<!-- bench kernels -->\n| work |")
    assert (
        "*GPU, driver 1, torch 2, copies move 4000 GB/s, commit aaaaaaaaaaaa; `mamba-aot bench`. Goals"
        in made
    )
    assert "](../benchmarks/results/gpu/scan.png)" in made
    assert made.endswith("<!-- end bench kernels -->\nb")
    assert "old" not in made
    with pytest.raises(ValueError, match="must have the lines <!-- bench models -->"):
        page.put(text, "models", "new")


@pytest.mark.usefixtures("benchmarks")
def test_the_page_shows_the_records_that_are_there():
    import page

    text = page.PAGE.read_text()
    for suite in page.TABLES:
        files = sorted((ROOT / "benchmarks/results").glob(f"*/{suite}.json"))
        blocks = [page.block(json.loads(file.read_text()), suite, file.parent.name) for file in files]
        assert not blocks or any(block in text for block in blocks), suite
