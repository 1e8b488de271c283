"""The command `mamba-aot bench`: its options, and what it prints."""

import json
import shlex
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from mamba_aot.benchmark import shapes
from mamba_aot.benchmark.peers import require_peers
from mamba_aot.benchmark.runner import run as run_works
from mamba_aot.benchmark.shapes import Work
from mamba_aot.benchmark.table import make_table


@dataclass(frozen=True)
class Request:
    """What to time, what to compare it with, where to write, and the options that say so."""

    works: list[Work]
    compare: list[str]
    json_file: Path | None
    options: list[str]


def make_request(
    ops: list[str],
    suite: str | None,
    shape: str,
    dtype: str,
    layout: str,
    is_complex: bool,
    compare: str,
    json_file: Path | None,
) -> Request:
    """Reads the options; raises ValueError for those that say nothing that can be run."""
    peers = [name.strip() for name in compare.split(",") if name.strip()]
    require_peers(peers)
    if json_file is not None and not json_file.parent.is_dir():
        raise ValueError(f"bench: --json must be a file in a directory that exists, got {json_file}")
    chosen = [*(("--op", op) for op in ops), ("--shape", shape)]
    chosen += [("--dtype", dtype), ("--layout", layout), ("--compare", ",".join(peers))]
    options = [word for option, value in chosen if value for word in (option, value)]
    options += ["--complex"] if is_complex else []
    if suite is None:
        works = [shapes.make_work(op, shape, dtype, layout, is_complex) for op in ops or ["selective_scan"]]
        return Request(works, peers, json_file, options)
    if ops or shape or is_complex or dtype != "bfloat16" or layout != "seq":
        raise ValueError(
            "bench: --suite has its own ops, shapes, dtypes and layouts; leave those options out"
        )
    options = ["--suite", suite] + (["--compare", ",".join(peers)] if peers else [])
    return Request(shapes.suite(suite), peers, json_file, options)


def run(request: Request, device: torch.device, console: Console) -> None:
    """Prints the machine, the table and how to get them again; writes the record.

    Raises:
        AssertionError: A result is wrong.
    """

    def say(line: str) -> None:
        console.print(line, soft_wrap=True, markup=False, highlight=False)

    facts, rows = run_works(request.works, device, request.compare, say)
    # The table is not cut in a narrow terminal, or where there is none: its lines wrap.
    console.width = max(console.width, 180)
    console.print(make_table(rows), highlight=False)
    command = shlex.join(["mamba-aot", "bench", *request.options, "--device", device.type])
    if request.json_file is not None:
        record = {"command": command, "machine": facts, "rows": [row.values() for row in rows]}
        request.json_file.write_text(json.dumps(record, indent=1) + "\n")
    say(f"reproduce: {command}")
