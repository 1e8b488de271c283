"""Numbers that the GPU chose: `csrc/kernels/tuned/sm90.json` and its like, which `tools.aot tune` writes.

A kernel names them in its table (`tuned=["FEW"]`); its rules and its C++ use them by that name.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tools.aot import tree
from tools.aot.spec import Kernel

# Multiprocessors of a common GPU of each architecture: all these numbers say how much work fills one.
MULTIPROCESSORS = {80: 108, 86: 84, 89: 142, 90: 132, 100: 148, 120: 188}

# Values by architecture, then by "<op>.<NAME>".
Values = Mapping[int, Mapping[str, int]]


def path(root: Path, arch: int) -> Path:
    return root / f"csrc/kernels/tuned/sm{arch}.json"


def load(root: Path) -> dict[int, dict[str, int]]:
    """The values of every architecture that has a file."""
    return {
        arch: json.loads(path(root, arch).read_text())["values"]
        for arch in tree.ARCHS
        if path(root, arch).is_file()
    }


def names_of(kernels: Iterable[Kernel]) -> list[str]:
    return [f"{kernel.op}.{name}" for kernel in kernels for name in kernel.tuned]


def require(kernels: Iterable[Kernel], values: Values) -> None:
    """Raises TableError where a number has no value for some architecture."""
    for name in names_of(kernels):
        missing = [f"sm{arch}" for arch in tree.ARCHS if name not in values.get(arch, {})]
        if missing:
            raise tree.TableError(
                f"{name} must have a value for every architecture, but csrc/kernels/tuned has none for "
                f"{', '.join(missing)}; write a first guess there, then run: python -m tools.aot tune"
            )


def save(root: Path, arch: int, values: Mapping[str, int], measured: Mapping[str, Any]) -> list[Path]:
    """Writes what was measured on one architecture, and derives all that were never measured from it.

    Returns:
        The files that were written.
    """
    written = [_write(root, arch, {"measured": dict(measured), "values": dict(values)})]
    for other in tree.ARCHS:
        file = path(root, other)
        if other == arch or (file.is_file() and json.loads(file.read_text()).get("measured")):
            continue
        share = MULTIPROCESSORS[other] / MULTIPROCESSORS[arch]
        derived = {name: round(value * share) for name, value in values.items()}
        reason = f"sm{arch}, by the number of multiprocessors: {MULTIPROCESSORS[other]} for "
        reason += f"{MULTIPROCESSORS[arch]}"
        written.append(_write(root, other, {"derived_from": reason, "values": derived}))
    return written


def _write(root: Path, arch: int, content: Mapping[str, Any]) -> Path:
    file = path(root, arch)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=1) + "\n")
    return file
