"""Makes tables of docs/performance.md and plots of what `mamba-aot bench --suite all --json DIR` recorded.

    python benchmarks/page.py benchmarks/results/h200 benchmarks/results/cpu

With --print the tables go to the terminal alone. Goals, and what peers took, are in goals.json.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

import tables

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/performance.md"
# The plot of a suite, and what stands for it where it can't be seen.
PLOTS = {
    "kernels": ("scan.png", "microseconds of the scan, mamba_aot, mamba_ssm and floor"),
    "sweep": ("lengths.png", "milliseconds of the scan over the length of the sequence"),
}
# Suites in the page's order, and what makes the table of each.
TABLES = {
    "kernels": tables.works,
    "models": tables.works,
    "sweep": tables.sweep,
    "cpu": tables.cpu,
}


def conditions(record: dict[str, Any]) -> str:
    """The line under a table: what its figures were measured on."""
    facts = record["machine"]
    parts = [facts["device"]]
    if facts.get("driver"):
        parts.append(f"driver {facts['driver']}")
    else:
        parts.append(f"{facts['threads']} threads")
    if facts.get("threads_gain"):
        parts.append(f"which make exponentials {facts['threads_gain']:.2f} times as fast as one")
    parts += [f"torch {facts['torch']}", f"copies move {facts['bandwidth'] / 1e9:.0f} GB/s"]
    parts.append(f"commit {facts['commit'][:12]}")
    told = f"{', '.join(parts)}; `{record['command']}`."
    if facts.get("driver") and facts["device"] != tables.GOALS["device"]:
        told += f" Goals and peers are of an {tables.GOALS['device']}, whose copies move 4250 GB/s."
    return f"*{told}*"


def block(record: dict[str, Any], suite: str, folder: str) -> str:
    """The table of a record in a folder of benchmarks/results, what failed, the conditions, and the plot."""
    lines = [TABLES[suite](record)]
    for failure in record["failures"]:
        lines.append(f"Not measured: {failure['op']} {tables.shape_of(failure)}: {failure['failed']}")
    lines.append(conditions(record))
    if suite in PLOTS:
        file, told = PLOTS[suite]
        lines.append(f"![{told}](../benchmarks/results/{folder}/{file})")
    return "\n\n".join(lines)


def put(page: str, suite: str, text: str) -> str:
    """The page with `text` between the marks of the suite.

    Raises:
        ValueError: The page has no such marks.
    """
    begin, end = f"<!-- bench {suite} -->", f"<!-- end bench {suite} -->"
    if begin not in page or end not in page:
        raise ValueError(f"page: {PAGE.name} must have the lines {begin} and {end}")
    pattern = re.escape(begin) + ".*?" + re.escape(end)
    return re.sub(pattern, lambda _: f"{begin}\n{text}\n{end}", page, flags=re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--print", action="store_true", help="write nothing")
    options = parser.parse_args()
    page = PAGE.read_text() if PAGE.is_file() else ""
    for folder in options.folders:
        records = {
            suite: json.loads((folder / f"{suite}.json").read_text())
            for suite in TABLES
            if (folder / f"{suite}.json").is_file()
        }
        for suite, record in records.items():
            if options.print:
                print(block(record, suite, folder.name))
            else:
                page = put(page, suite, block(record, suite, folder.name))
        if not options.print:
            # Not at the top: a machine that only prints needs no matplotlib.
            import plots

            plots.draw(records, folder)
    if not options.print:
        PAGE.write_text(page)


if __name__ == "__main__":
    main()
