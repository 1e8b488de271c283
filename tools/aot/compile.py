"""Compiles the variants of a kernel file for some architectures: `python -m tools.aot.compile --help`.

Each call is a process of its own, started by ninja. It writes the images one after another into one file, a
C++ file that embeds it with a table of facts, and a list of the sources it depends on.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import re
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from tools.aot import cubin as elf
from tools.aot import tree
from tools.aot.emit import images_source, write_if_changed
from tools.aot.image import Image, pack
from tools.aot.spec import Variant

# Lines of a kernel's assembler that only newer architectures have: csrc/kernels/_overlap.py.
_NEWER = "// from sm_90: "
# A PTX of this version is understood by every driver since CUDA 12.0, the oldest one the library works with.
_PTX_VERSION = 80


class CompileError(Exception):
    """A variant that can't be built; the text names it and says why."""


def settle_environment(cache: Path) -> None:
    """Leaves Triton nothing to inherit: same sources, same bytes. Call it before triton is imported."""
    for name in [n for n in os.environ if n.startswith(("TRITON_", "PTXAS_")) or n == "LLVM_IR_ENABLE_DUMP"]:
        del os.environ[name]
    os.environ["TRITON_CACHE_DIR"] = str(cache)
    # Line tables would put the directory of the checkout into every image.
    os.environ["TRITON_DISABLE_LINE_INFO"] = "1"
    # Nobody reads what lies between the source and the PTX, and an eighth of the time went into its text.
    os.environ["TRITON_STORE_BINARY_ONLY"] = "1"


def compile_variant(variant: Variant, archs: list[int]) -> dict[tree.Target, Image]:
    """Compiles a variant: a cubin for each architecture and, with sm_80, the PTX that newer GPUs can take.

    Triton runs once, for sm_80: its PTX is what every architecture's machine code is assembled from. A kernel
    for one architecture is compiled for that one alone; what is not asked for gives nothing.

    Raises:
        CompileError: Triton refuses the kernel, or the launcher could not launch what came out.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.experimental.gluon._runtime import GluonASTSource

    targets = tree.targets_of(variant, archs)
    if not targets:
        return {}
    function = variant.kernel.function
    source_type = GluonASTSource if function.is_gluon() else ASTSource
    source = source_type(function, variant.signature, _constexprs(variant), variant.attributes)
    # Contracting a * b + c stops being Triton's default in 3.10: numbers must not drift with the compiler.
    options: dict[str, Any] = {
        "enable_fp_fusion": True,
        **variant.config.options,
        "ptx_version": _PTX_VERSION,
    }
    name = variant.name
    cubins = {}
    try:
        with _stop_at_ptx():
            arch = variant.kernel.arch or tree.PTX_ARCH
            compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
        ptx = compiled.asm["cubin"].decode()
        check_launchable(variant.kernel.runtime_parameters, name, compiled.metadata, ptx)
        for arch in (target.arch for target in targets if not target.ptx):
            name = variant.id(f"sm{arch}")
            cubins[arch] = _assemble(ptx_for(ptx, arch), arch, options)
    except CompileError:
        raise
    except Exception as error:
        raise CompileError(f"{name}: {type(error).__name__}: {error}") from error
    meta = compiled.metadata
    common = {
        "variant": variant.name,
        "entry": meta.name,
        "num_warps": meta.num_warps,
        "shared_bytes": meta.shared,
    }
    images = {}
    for target in targets:
        if target.ptx:
            # The driver decides a PTX's registers when it compiles it.
            data, registers, spill_bytes = plain_ptx(ptx).encode() + b"\0", 0, 0
        else:
            data = cubins[target.arch]
            facts = elf.facts(data)
            if facts.arch != target.arch:
                raise CompileError(f"{variant.id(target.name)}: got a cubin for sm_{facts.arch}")
            registers, spill_bytes = facts.registers, facts.spill_bytes
        images[target] = Image(
            id=variant.id(target.name),
            data=data,
            registers=registers,
            spill_bytes=spill_bytes,
            overlaps=not target.ptx and waits_by_itself(ptx, target.arch),
            **common,
        )
    return images


@contextlib.contextmanager
def _stop_at_ptx() -> Iterator[None]:
    """Triton's own last step would assemble for sm_80 even where sm_80 is not asked for: it gives the PTX."""
    from triton import knobs

    def keep_ptx(*arguments: Any) -> tuple[str, str]:
        if arguments:
            _backend, stages, *_ = arguments
            stages["cubin"] = lambda ptx, metadata: ptx.encode()
        # Triton asks without arguments for what this changes in its cache's keys.
        return "ptx for cubin", "ptx for cubin"

    runtime: Any = knobs.runtime
    before = runtime.add_stages_inspection_hook
    runtime.add_stages_inspection_hook = keep_ptx
    try:
        yield
    finally:
        runtime.add_stages_inspection_hook = before


def _assemble(ptx: str, arch: int, options: dict[str, Any]) -> bytes:
    """Machine code for `arch` from the PTX, by Triton's own assembler call."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler.compiler import make_backend

    backend: Any = make_backend(GPUTarget("cuda", arch, 32))
    return backend.make_cubin(ptx, {}, backend.parse_options(dict(options)), arch)


def _constexprs(variant: Variant) -> dict[str, Any]:
    import triton.language as tl

    types = {"f32": tl.float32, "f16": tl.float16, "bf16": tl.bfloat16, "f64": tl.float64, "half": tl.int16}
    kernel = variant.kernel
    return {
        name: types[str(value)] if name in kernel.axes and kernel.axis_kind(name) == "dtype" else value
        for name, value in variant.constexprs.items()
    }


def check_launchable(parameters: list[str], name: str, meta: Any, ptx: str) -> None:
    """The launcher passes the arguments and two null scratch pointers, and starts single-CTA programs."""
    for scratch in ("global_scratch_size", "profile_scratch_size"):
        if getattr(meta, scratch, 0):
            raise CompileError(
                f"{name}: must not need scratch memory, got {scratch} = {getattr(meta, scratch)}"
            )
    if meta.num_ctas != 1:
        raise CompileError(f"{name}: must run without clusters, got num_ctas = {meta.num_ctas}")
    for flag in ("launch_cooperative_grid", "launch_pdl"):
        if getattr(meta, flag, False):
            raise CompileError(f"{name}: must start plainly, got {flag}")
    head = ptx.split(".entry", 1)[1].split(")", 1)[0]
    expected = len(parameters) + 2
    if head.count(".param ") != expected:
        raise CompileError(f"{name}: must take {expected} parameters, got {head.count('.param ')}")


def ptx_for(text: str, arch: int) -> str:
    """The PTX that sm_80 and newer understand, or from sm_90 on with what only those do."""
    if arch < 90 or _NEWER not in text:
        return text
    return text.replace(_NEWER, "").replace(".target sm_80", ".target sm_90")


def waits_by_itself(text: str, arch: int) -> bool:
    """Whether the kernel may be launched before the one before it has ended."""
    return arch >= 90 and f"{_NEWER}griddepcontrol.wait;" in text


def plain_ptx(text: str) -> str:
    """PTX without comments and blank lines: a quarter shorter, and free of source positions."""
    lines = (re.sub(r"\s*//.*$", "", line).strip() for line in text.splitlines())
    return "\n".join(line for line in lines if line) + "\n"


def compile_file(root: Path, stem: str, archs: list[int], folder: Path) -> None:
    """Writes `<stem>-sm<arch>[-sm<arch>...].bin` and `.cpp` under `folder`, with sm_80 `<stem>-ptx80` too."""
    made = []
    problems = []
    for variant in [v for kernel in tree.kernels(root, stem) for v in kernel.variants]:
        try:
            made.append(compile_variant(variant, archs))
        except CompileError as error:
            problems.append(str(error))
    if problems:
        raise CompileError("\n".join(problems))
    for targets in tree.files(archs):
        # Images of one variant lie side by side: alike as they are, they compress as one.
        images = [images_of.get(target) for images_of in made for target in targets]
        packed, starts = pack(images)
        binary = folder / f"{tree.images_name(stem, targets)}.bin"
        write_if_changed(binary, packed)
        text = images_source(stem, targets, binary.as_posix(), list(zip(images, starts, strict=True)))
        write_if_changed(binary.with_suffix(".cpp"), text.encode())


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.aot.compile", description=compile_file.__doc__)
    parser.add_argument("stem", help="a kernel file's name without .py")
    parser.add_argument("--archs", required=True, help="such as 80;90")
    parser.add_argument("--triton", required=True, help="its version, so that another one compiles anew")
    parser.add_argument(
        "--out", type=Path, default=Path("build/images"), help="folder, below the current one"
    )
    arguments = parser.parse_args()
    installed = metadata.version("triton")
    if installed != arguments.triton:
        parser.error(f"this step must run with triton {arguments.triton}, got {installed}; build again")
    root = Path.cwd()
    # The process ends soon, and a twentieth of its time would go into looking for cycles.
    gc.disable()
    settle_environment(root / "build" / "triton")
    arguments.out.mkdir(parents=True, exist_ok=True)
    try:
        archs = [int(arch) for arch in arguments.archs.split(";")]
        compile_file(root, arguments.stem, archs, arguments.out)
    except (CompileError, tree.TableError) as error:
        print(f"tools.aot: {error}", file=sys.stderr)
        return 1
    target = arguments.out / tree.images_name(arguments.stem, tree.files(archs)[0])
    sources = " ".join(path.as_posix() for path in tree.kernel_sources(root))
    target.with_suffix(".d").write_text(f"{target}.bin: {sources}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
