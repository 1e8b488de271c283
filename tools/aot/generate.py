"""Writes the launchers of all kernel files: a step of the build, started by ninja."""

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
    parser.add_argument("--archs", required=True)
    parser.add_argument(
        "--out", type=Path, default=Path("build/generated"), help="folder, below the current one"
    )
    arguments = parser.parse_args()
    root = Path.cwd()
    stems = tree.stems(root)
    targets = tree.targets(tree.chosen_archs(arguments.archs))
    numbers = tuned.load(root)
    failed = False
    for stem in stems:
        try:
            header, source = launchers(stem, checked_kernels(root, stem), targets, numbers)
        except tree.TableError as error:
            print(error, file=sys.stderr)
            failed = True
            continue
        write_if_changed(arguments.out / f"{stem}.gen.h", header.encode())
        write_if_changed(arguments.out / f"{stem}.gen.cpp", source.encode())
    if failed:
        return 1
    read = [*(root / "tools/aot/templates").glob("*.in"), *(root / "csrc/kernels/tuned").glob("*.json")]
    others = sorted(path.relative_to(root) for path in read)
    sources = " ".join(path.as_posix() for path in [*tree.kernel_sources(root), *others])
    (arguments.out / "launchers.d").write_text(f"{arguments.out}/{stems[0]}.gen.cpp: {sources}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
