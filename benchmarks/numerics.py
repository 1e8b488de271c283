"""Records how near the ops come to their limits of error, and writes docs/numerics.md from the records.

    python benchmarks/numerics.py --out benchmarks/results/cpu/numerics.json
    python benchmarks/numerics.py --device cuda --out benchmarks/results/h200/numerics.json
    python benchmarks/numerics.py --page

from the root of the repository (`PYTHONPATH=.`), with the extra `dev`. The cases are those of
tests/ops/cases.py, the limits those of mamba_aot/testing/closeness.py.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from mamba_aot.testing import measure_against_fp64

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "numerics.md"
RECORDS = {"CPU": "cpu", "NVIDIA H200": "h200"}
DOUBLE = (torch.float64, torch.complex128)

INTRODUCTION = """# How exact the ops are

Every number here is measured: each op runs on all pairs of its options, dtypes and memory orders
(`tests/ops/cases.py`), and its results and every gradient are compared with the eager function in float64.
The limit of a result is

    2 max|eager - truth| + eps max|truth| + max|nudged - truth|

where eager is the plain PyTorch function in the same dtypes, eps that of the result's dtype, and nudged the
truth for inputs moved by one rounding step of the arithmetic (`mamba_aot/testing/closeness.py` says why).
There is no constant in it, and tests hold every case to it. A row shows the result and the gradient that come
nearest to their limits, of all cases of an op and a dtype: the error, what was allowed, and the share of it.
The error of eager itself is a share of at most 0.5.

This page is made by `python benchmarks/numerics.py --page` from the records under `benchmarks/results/`.
"""


def measured(device: str) -> Iterator[dict[str, Any]]:
    """One row for every op, dtype and kind of result: the one nearest to its limit."""
    # Not at the top: the page is made without the cases and what they need.
    from tests.ops import cases

    for name in cases.OPS:
        rows: dict[tuple[str, str], dict[str, Any]] = {}
        for case in cases.cases_of(name):
            if case.dtype in DOUBLE:
                # The truth is no wider than these.
                continue
            dtype = str(case.dtype).removeprefix("torch.")
            compared = case.compare(device)
            seen = set()
            for result, values in compared.items():
                kind = "gradients" if result.startswith("grad ") else "results"
                found = measure_against_fp64(*values)
                new = dict(op=name, dtype=dtype, kind=kind, cases=0, share=-1.0)
                row = rows.setdefault((dtype, kind), new)
                row["cases"] += kind not in seen
                seen.add(kind)
                # A NaN is over every limit.
                if not found.share <= row["share"]:
                    row |= dict(result=result, error=found.error, allowed=found.limit, share=found.share)
                    row |= dict(case=str(case))
        yield from (rows[key] for key in sorted(rows))


def record(device: str, machine: str) -> dict[str, Any]:
    rows = list(measured(device))
    for row in rows:
        row |= {name: float(f"{row[name]:.4g}") for name in ("error", "allowed", "share")}
    over = [row["case"] for row in rows if not row["share"] <= 1]
    facts = dict(machine=machine, device=device, torch=torch.__version__, threads=torch.get_num_threads())
    count = sum(row["cases"] for row in rows if row["kind"] == "results")
    return {**facts, "cases": count, "over": over, "rows": rows}


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    yield "| op | dtype | cases | result | error | allowed | share | gradient | error | allowed | share |"
    yield "|---|---|---|---|---|---|---|---|---|---|---|"
    keys = dict.fromkeys((row["op"], row["dtype"]) for row in rows)
    by_kind = {(row["op"], row["dtype"], row["kind"]): row for row in rows}
    for op, dtype in keys:
        cells = [f"`{op}`", dtype, str(by_kind[op, dtype, "results"]["cases"])]
        for kind in ("results", "gradients"):
            row = by_kind.get((op, dtype, kind))
            if row is None:
                cells += ["", "", "", ""]
                continue
            name = row["result"].removeprefix("grad ")
            cells += [name, f"{row['error']:.2g}", f"{row['allowed']:.2g}", f"{row['share']:.2f}"]
        yield f"| {' | '.join(cells)} |"


def page() -> str:
    """docs/numerics.md as the records say it is."""
    parts = [INTRODUCTION]
    for title, folder in RECORDS.items():
        path = ROOT / "benchmarks" / "results" / folder / "numerics.json"
        if not path.exists():
            continue
        found = json.loads(path.read_text(encoding="utf-8"))
        over = "none over its limit" if not found["over"] else f"{len(found['over'])} over their limit"
        facts = f"{found['cases']} cases on {found['machine']}, torch {found['torch']}; {over}."
        parts += [f"## {title}\n", f"{facts} Record: `benchmarks/results/{folder}/numerics.json`.\n"]
        parts += ["\n".join(table(found["rows"])) + "\n"]
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--out", type=Path, help="where the record goes")
    parser.add_argument("--machine", default="not said", help="what the record says it was made on")
    parser.add_argument("--page", action="store_true", help="write docs/numerics.md from the records")
    options = parser.parse_args()
    if options.out:
        found = record(options.device, options.machine)
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        for row in found["rows"]:
            print(f"{row['op']:24} {row['dtype']:10} {row['kind']:10} {row['share']:6.2f}  {row['result']}")
        print(f"{found['cases']} cases, over their limit: {found['over'] or 'none'}")
    if options.page:
        PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
