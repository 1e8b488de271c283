"""Where things lie: the kernel files of a checkout, and the table of each."""

from __future__ import annotations

import importlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from tools.aot.spec import Kernel, Variant

ROOT = Path(__file__).resolve().parents[2]
ARCHS = (80, 86, 89, 90, 100, 120)
# Triton compiles for this architecture alone: any newer one can take its PTX.
PTX_ARCH = 80


@dataclass(frozen=True)
class Target:
    """What an image is for: one architecture, or as PTX that one and every newer one."""

    arch: int
    ptx: bool = False

    @property
    def name(self) -> str:
        return f"{'ptx' if self.ptx else 'sm'}{self.arch}"


class TableError(Exception):
    """Something in a table or in the build's settings is wrong; the text is for the person who wrote it."""


def stems(root: Path) -> list[str]:
    """Names of the kernel files: `csrc/kernels/*.py`, without helpers, whose names start with `_`."""
    return sorted(p.stem for p in (root / "csrc" / "kernels").glob("*.py") if not p.stem.startswith("_"))


def kernels(root: Path, stem: str) -> list[Kernel]:
    """Imports a kernel file (this needs triton) and gives its table."""
    # Kernel files import helpers that lie beside them by their bare names, and the table's language from the
    # root.
    sys.path[:0] = [p for p in (str(root), str(root / "csrc" / "kernels")) if p not in sys.path]
    module = importlib.import_module(f"csrc.kernels.{stem}")
    table = getattr(module, "KERNELS", None)
    if not table:
        raise TableError(
            f"csrc/kernels/{stem}.py must end with a table KERNELS = [Kernel(...), ...], got none"
        )
    return list(table)


def kernel_sources(root: Path) -> list[Path]:
    """The project's files that this process has imported: what a compilation depends on."""
    found = set()
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        path = Path(file).resolve() if file else None
        if path and path.is_relative_to(root) and path.suffix == ".py" and ".venv" not in path.parts:
            found.add(path.relative_to(root))
    return sorted(found)


def chosen_archs(setting: str | None) -> list[int]:
    """Reads `MAMBA_AOT_ARCHS`: `80;90` for some, `none` for no GPU images, unset or empty for all."""
    setting = os.environ.get("MAMBA_AOT_ARCHS") if setting is None else setting
    if not setting or not setting.strip():
        return list(ARCHS)
    if setting.strip() == "none":
        return []
    parts = [part.strip() for part in setting.replace(",", ";").split(";") if part.strip()]
    if not all(part.isdigit() and int(part) in ARCHS for part in parts):
        known = ";".join(map(str, ARCHS))
        raise TableError(f"MAMBA_AOT_ARCHS must be none or architectures out of {known}, got {setting!r}")
    return sorted({int(part) for part in parts})


def targets(archs: list[int]) -> list[Target]:
    """What is built for these architectures: a cubin for each, and PTX beside the one it is taken from."""
    return [Target(arch) for arch in archs] + [Target(arch, ptx=True) for arch in archs if arch == PTX_ARCH]


def targets_of(variant: Variant, archs: list[int]) -> list[Target]:
    """Those of them that a variant has images for."""
    kernel = variant.kernel
    return [
        target
        for target in targets(archs)
        if (kernel.arch is None or target == Target(kernel.arch))
        and (kernel.portable(variant.key) if target.ptx else not kernel.unused(variant.key, target.arch))
    ]


def files(archs: list[int]) -> list[list[Target]]:
    """What goes into one file of images: the cubins, and the PTX if there is any."""
    both = targets(archs)
    return [list(group) for group in ([t for t in both if not t.ptx], [t for t in both if t.ptx]) if group]


def images_name(stem: str, of: list[Target]) -> str:
    return "-".join([stem, *(target.name for target in of)])
