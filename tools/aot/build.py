"""Runs the build: settles what it needs, writes the graph, hands it to ninja."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from tools.aot import graph, tree
from tools.aot.emit import directory, write_if_changed


class BuildError(Exception):
    """The build can't go on; the text says what to do."""


def _package_folder(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise BuildError(
            f"building needs the Python package {name}, which is not installed: pip install {name}"
        )
    return Path(spec.submodule_search_locations[0])


def _compiler() -> str:
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler.split()[0]) is None:
        raise BuildError(
            f"building needs a C++17 compiler, but {compiler!r} is not there; install g++ or set CXX"
        )
    return compiler


def _first_line(command: Sequence[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]


def _assemblers() -> dict[str, str]:
    """Versions of the assemblers that triton brings along."""
    folder = _package_folder("triton") / "backends" / "nvidia" / "bin"
    versions = {}
    for path in sorted(folder.glob("ptxas*")):
        output = subprocess.run([str(path), "--version"], capture_output=True, text=True, check=True).stdout
        match = re.search(r"V(\d[\d.]*)", output)
        versions[path.name] = match.group(1) if match else "unknown"
    return versions


def find_tools(root: Path) -> graph.Tools:
    """Finds compiler, headers and triton.

    Raises:
        BuildError: one of them is missing.
    """
    if importlib.util.find_spec("ninja") is None:
        raise BuildError("building needs ninja, which is not installed: pip install ninja")
    compiler = _compiler()
    versions = {"torch": metadata.version("torch"), "compiler": _first_line([*compiler.split(), "--version"])}
    if tree.stems(root):
        _package_folder("triton")
        versions["triton"] = metadata.version("triton")
    return graph.Tools(compiler, _package_folder("torch"), _package_folder("pybind11") / "include", versions)


def build_info(root: Path, archs: list[int], tools: graph.Tools) -> dict[str, Any]:
    """What the library says it was built from."""
    version = re.search(r'^version = "(.*)"$', (root / "pyproject.toml").read_text(), re.MULTILINE)
    return {
        "version": version.group(1) if version else "unknown",
        "architectures": [target.name for target in tree.targets(archs)],
        "triton": tools.versions.get("triton"),
        "ptxas": _assemblers() if "triton" in tools.versions else {},
        "torch_headers": tools.versions["torch"],
        "torch_minimum": "2.10",
        "compiler": tools.versions["compiler"],
    }


def build(root: Path, archs: list[int], targets: Sequence[str] = (), verbose: bool = False) -> list[Path]:
    """Brings the libraries up to date under `build/` and gives their paths.

    Raises:
        BuildError: something is missing, or a step of the build failed (ninja has printed which and why).
    """
    tools = find_tools(root)
    with _alone(root / "build"):
        _run(root, archs, tools, targets, verbose)
    return [path for path in (root / graph.LIBRARY, root / graph.extension_module()) if path.exists()]


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Waits until no other build works in this folder: two would write the same files."""
    folder.mkdir(exist_ok=True)
    with (folder / ".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"tools.aot: another build works in {folder}; waiting for it", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run(root: Path, archs: list[int], tools: graph.Tools, targets: Sequence[str], verbose: bool) -> None:
    info = build_info(root, archs, tools)
    write_if_changed(root / "build/generated/library.gen.cpp", directory(tree.stems(root), info).encode())
    write_if_changed(root / "build/build.ninja", graph.write(root, archs, tools).encode())
    # One job more than processors, as ninja has it, would keep the longest one waiting.
    jobs = os.environ.get("MAX_JOBS") or str(len(os.sched_getaffinity(0)))
    command = [sys.executable, "-m", "ninja", "-f", "build/build.ninja", "-j", jobs]
    command += ["-v"] if verbose else []
    result = subprocess.run([*command, *targets], cwd=root, env=_environment(root), check=False)
    if result.returncode != 0:
        raise BuildError(
            f"the build failed (ninja's exit status {result.returncode}); the step above says why"
        )


def _environment(root: Path) -> dict[str, str]:
    """The steps run this Python with the packages of this process, whatever environment pip has set up."""
    paths = [str(root), *[path for path in sys.path if path]]
    return {**os.environ, "MAMBA_AOT_PYTHON": sys.executable, "PYTHONPATH": os.pathsep.join(paths)}


def install(libraries: Sequence[Path], folder: Path) -> None:
    """Copies libraries into a package, as new files: a process that runs on an old one is safe."""
    folder.mkdir(parents=True, exist_ok=True)
    for library in libraries:
        target = folder / library.name
        if target.exists() and target.read_bytes() == library.read_bytes():
            continue
        fresh = target.with_suffix(".new")
        shutil.copyfile(library, fresh)
        fresh.chmod(0o755)
        os.replace(fresh, target)
