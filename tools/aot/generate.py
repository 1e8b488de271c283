"""Writes the launchers of one kernel file: a step of the build, started by ninja."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tools.aot import tree, tuned
from tools.aot.check import problems
from tools.aot.emit import launchers, write_if_changed


def checked_kernels(root: Path, stem: str) -> list:
    """A kernel file's table.

    Raises:
        TableError: all that is wrong with it, a line each.
    """
    kernels = tree.kernels(root, stem)
    found = problems(kernels)
    if found:
        raise tree.TableError("\n".join(f"csrc/kernels/{stem}.py: {problem}" for problem in found))
    tuned.require(kernels, tuned.load(root))
    return kernels


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.aot.generate", description=__doc__)
    parser.add_argument("stem", help="a kernel file's name without .py")
    parser.add_argument("--archs", required=True)
    parser.add_argument(
        "--out", type=Path, default=Path("build/generated"), help="folder, below the current one"
    )
    arguments = parser.parse_args()
    root = Path.cwd()
    try:
        kernels = checked_kernels(root, arguments.stem)
    except tree.TableError as error:
        print(error, file=sys.stderr)
        return 1
    targets = tree.targets(tree.chosen_archs(arguments.archs))
    header, source = launchers(arguments.stem, kernels, targets, tuned.load(root))
    write_if_changed(arguments.out / f"{arguments.stem}.gen.h", header.encode())
    write_if_changed(arguments.out / f"{arguments.stem}.gen.cpp", source.encode())
    read = [*(root / "tools/aot/templates").glob("*.in"), *(root / "csrc/kernels/tuned").glob("*.json")]
    others = sorted(path.relative_to(root) for path in read)
    sources = " ".join(path.as_posix() for path in [*tree.kernel_sources(root), *others])
    (arguments.out / f"{arguments.stem}.d").write_text(
        f"{arguments.out}/{arguments.stem}.gen.cpp: {sources}\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
