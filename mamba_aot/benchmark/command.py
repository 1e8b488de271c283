"""The command `mamba-aot bench`: its options, and what it prints."""

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from mamba_aot.benchmark import runner, shapes, suites
from mamba_aot.benchmark.peers import require_peers
from mamba_aot.benchmark.shapes import Work
from mamba_aot.benchmark.table import Failure, Row, make_table


@dataclass(frozen=True)
class Request:
    """What to time, under the name of its record; what to compare it with, where to write, the options."""

    works: dict[str, list[Work]]
    compare: list[str]
    json_path: Path | None
    options: list[str]

    def record_file(self, name: str) -> Path | None:
        """Where a record goes: into the file that was given, or into a file of its name in that directory."""
        if self.json_path is None or not self.json_path.is_dir():
            return self.json_path
        return self.json_path / f"{name}.json"


def make_request(
    ops: list[str],
    asked_suites: list[str],
    shape: str,
    dtype: str,
    layout: str,
    is_complex: bool,
    half_states: bool,
    gated: bool,
    compare: str,
    json_path: Path | None,
    device_type: str,
) -> Request:
    """Reads the options; raises ValueError for those that say nothing that can be run."""
    peers = [name.strip() for name in compare.split(",") if name.strip()]
    require_peers(peers, device_type)
    if json_path is not None and not json_path.parent.is_dir():
        raise ValueError(f"bench: --json must be a file in a directory that exists, got {json_path}")
    if not asked_suites:
        works = [
            shapes.make_work(op, shape, dtype, layout, is_complex, half_states, gated)
            for op in ops or ["selective_scan"]
        ]
        chosen = [*(("--op", op) for op in ops), ("--shape", shape)]
        chosen += [("--dtype", dtype), ("--layout", layout), ("--compare", ",".join(peers))]
        options = [word for option, value in chosen if value for word in (option, value)]
        options += ["--complex"] * is_complex + ["--half-states"] * half_states
        options += ["--gated"] * gated
        return Request({"ops": works}, peers, json_path, options)
    if ops or shape or is_complex or half_states or gated or dtype != "bfloat16" or layout != "seq":
        raise ValueError(
            "bench: --suite has its own ops, shapes, dtypes and layouts; leave those options out"
        )
    names = suites.names_of(asked_suites, device_type)
    if len(names) > 1 and json_path is not None and not json_path.is_dir():
        raise ValueError(
            f"bench: --json must be a directory for the records of {len(names)} suites, got {json_path}"
        )
    options = [word for name in asked_suites for word in ("--suite", name)]
    options += ["--compare", ",".join(peers)] if peers else []
    return Request({name: suites.suite(name) for name in names}, peers, json_path, options)


def run(request: Request, device: torch.device, console: Console) -> bool:
    """Prints the machine, the tables and how to get them again; writes each record once it is there.

    Returns:
        Whether every piece of work has figures; of the others there is a line that says why not.
    """

    def say(line: str) -> None:
        console.print(line, soft_wrap=True, markup=False, highlight=False)

    # Tables are not cut in a narrow terminal, or where there is none: their lines wrap.
    console.width = max(console.width, 180)
    command = shlex.join(["mamba-aot", "bench", *request.options, "--device", device.type])
    bench = runner.prepare(device, request.compare, say)
    complete = True
    for name, works in request.works.items():
        rows, failures = runner.run(bench, works)
        console.print(make_table(rows), highlight=False)
        complete = complete and not failures
        file = request.record_file(name)
        if file is not None:
            file.write_text(json.dumps(_record(command, bench.facts, rows, failures), indent=1) + "\n")
    say(f"reproduce: {command}")
    return complete


def _record(
    command: str, machine: dict[str, Any], rows: list[Row], failures: list[Failure]
) -> dict[str, Any]:
    values = [row.values() for row in rows]
    return {
        "command": command,
        "machine": machine,
        "rows": values,
        "failures": [f.values() for f in failures],
    }
