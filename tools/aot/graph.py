"""The build graph: what is made from what, as a ninja file.

Kernel file → images; kernel file → launchers; C++ → objects → `libmamba_aot.so` and `_C`.
Commands name Python through the environment, so that the images outlive the isolated environments that pip
builds in.
"""

from __future__ import annotations

import io
import platform
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path

from ninja import ninja_syntax

from tools.aot import tree

BUILD = Path("build")
LIBRARY = BUILD / "libmamba_aot.so"
# The oldest torch that the library runs on: newer interfaces are hidden from the compiler.
TORCH_TARGET = "0x020a000000000000"
# Only what most machines run is worth the compiler's time: x86-64 without AVX2 is older than 2013, and double
# precision, which the baseline has too, is there to check the others.
_ISAS = {
    "baseline": "-O1",
    "avx2": "-mavx2 -mfma -mf16c",
    # GCC 12 takes the don't-care operands inside its own intrinsics for uninitialised variables.
    "avx512": "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma -mf16c -mprefer-vector-width=512 "
    "-Wno-maybe-uninitialized -Wno-uninitialized",
}


# Checks and launches: their time is the kernels', so they are compiled quickly.
_HOST_FLAGS = "-O1"


@dataclass(frozen=True)
class Tools:
    """What the build uses from outside the checkout."""

    compiler: str
    torch: Path
    pybind11: Path
    versions: dict[str, str] = field(default_factory=dict)


def extension_module() -> Path:
    return BUILD / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"


def write(root: Path, archs: list[int], tools: Tools) -> str:
    """The text of build.ninja for the files that are in the checkout now."""
    text = io.StringIO()
    ninja = ninja_syntax.Writer(text, width=110)  # pyright: ignore[reportArgumentType]
    ninja.comment("Made by tools/aot; to remake it: python -m tools.aot build")
    ninja.variable("ninja_required_version", "1.10")
    ninja.variable("builddir", BUILD.as_posix())
    _variables(ninja, tools)
    _rules(ninja)
    modules = []
    # What nothing waits for comes first: at the end it would keep one core waiting.
    if (root / "csrc/python.cpp").exists():
        modules = [extension_module().as_posix()]
        ninja.build(["build/objects/csrc/python.o"], "compile_python", ["csrc/python.cpp"])
        ninja.build(modules, "link_module", ["build/objects/csrc/python.o"])
    # The op with the longest files first: as a rule it takes longest, and begun last it would keep one core
    # waiting.
    kernels = root / "csrc" / "kernels"
    stems = sorted(
        tree.stems(root), key=lambda stem: -sum(p.stat().st_size for p in kernels.glob(f"*{stem}*.py"))
    )
    sources = _kernel_edges(ninja, root, stems, archs, tools)
    objects = [_object(ninja, source, implicit) for source, implicit in sources]
    # Operations include launchers, whose headers must be there before the first compilation tells what it
    # read.
    headers = [f"build/generated/{stem}.gen.h" for stem in stems]
    prefixes: set[str] = set()
    for source in _sources(root):
        for isa, flags in _isas(source).items():
            prefix = _prefix(source, isa)
            if prefix and prefix not in prefixes:
                prefixes.add(prefix)
                _precompiled(ninja, prefix, isa, flags)
            objects.append(_object(ninja, source, None, headers, isa, flags, prefix))
    ninja.build([LIBRARY.as_posix()], "link_library", objects, ["csrc/runtime/exports.map"])
    ninja.default([*modules, LIBRARY.as_posix()])
    return text.getvalue()


def _variables(ninja: ninja_syntax.Writer, tools: Tools) -> None:
    ninja.variable("cxx", tools.compiler)
    ninja.variable("torch", str(tools.torch))
    # __FILE__ would carry this machine's paths into the library; the checkout's own are relative.
    ninja.variable("prefixes", "-ffile-prefix-map=$torch=torch")
    ninja.variable(
        "flags",
        "-std=c++17 -O2 -fPIC -fvisibility=hidden -fno-math-errno -Wall -Wextra "
        f"-DTORCH_TARGET_VERSION={TORCH_TARGET} $prefixes -Icsrc -Ibuild -isystem $torch/include",
    )
    # pybind11's own flags: hidden symbols; no torch headers, so no tie to its ABI. It computes nothing, and
    # most of what the compiler would make faster is pybind11's.
    ninja.variable(
        "python_flags",
        "-std=c++17 -O0 -fPIC -fvisibility=hidden -Wall -Wextra $prefixes "
        f"-ffile-prefix-map={tools.pybind11}=pybind11 "
        f"-Icsrc -isystem {tools.pybind11} -isystem {sysconfig.get_path('include')}",
    )


def _rules(ninja: ninja_syntax.Writer) -> None:
    python = '"$$MAMBA_AOT_PYTHON" -m'
    ninja.rule(
        "images",
        f"{python} tools.aot.compile $stem --archs $archs --triton $triton",
        description="images $stem for $archs",
        depfile="build/images/$first.d",
        deps="gcc",
        restat=True,
    )
    ninja.rule(
        "launchers",
        f"{python} tools.aot.generate --archs $archs",
        description="launchers",
        depfile="build/generated/launchers.d",
        deps="gcc",
        restat=True,
    )
    compile_command = "$cxx -MMD -MF $out.d -c $in -o $out"
    ninja.rule(
        "precompile",
        "$cxx -MMD -MF $out.d -x c++-header $in -o $out $flags $isa_flags",
        description="precompile $in$isa_name",
        depfile="$out.d",
        deps="gcc",
    )
    for name, flags in (("compile", "$prefix_flags $flags $isa_flags"), ("compile_python", "$python_flags")):
        ninja.rule(
            name,
            f"{compile_command} {flags}",
            description="compile $in$isa_name",
            depfile="$out.d",
            deps="gcc",
        )
    # Nothing of CUDA and no RPATH: libtorch_cpu is in the process already, the rest is found when it is
    # needed. Symbols of libstdc++ come from there, with versions: torch's library may hold some without.
    ninja.rule(
        "link_library",
        "$cxx -shared -o $out $in -Wl,-soname,libmamba_aot.so -L$torch/lib -Wl,-rpath-link,$torch/lib "
        "-Wl,--version-script,csrc/runtime/exports.map -Wl,--no-as-needed -lstdc++ -ltorch_cpu "
        "-Wl,-z,defs -Wl,--build-id=sha1 -Wl,--strip-debug",
        description="link $out",
    )
    ninja.rule(
        "link_module",
        "$cxx -shared -o $out $in -Wl,--build-id=sha1 -Wl,--strip-all -ldl",
        description="link $out",
    )


def _kernel_edges(
    ninja: ninja_syntax.Writer, root: Path, stems: list[str], archs: list[int], tools: Tools
) -> list[tuple[str, list[str]]]:
    """Declares images and launchers; gives the generated C++ files, each with what its object needs too."""
    sources: list[tuple[str, list[str]]] = [("build/generated/library.gen.cpp", [])]
    listed = ";".join(map(str, archs)) or "none"
    triton = tools.versions.get("triton", "none")
    # One process for all: to start one takes longer than to write the launchers of a file.
    in_order = sorted(stems)
    generated = [f"build/generated/{stem}.gen.{kind}" for kind in ("cpp", "h") for stem in in_order]
    kernels = [f"csrc/kernels/{stem}.py" for stem in in_order]
    if stems:
        ninja.build(generated, "launchers", kernels, variables={"archs": f"'{listed}'"})
    for stem, kernel in ((stem, f"csrc/kernels/{stem}.py") for stem in stems):
        sources.append((f"build/generated/{stem}.gen.cpp", []))
        if not archs:
            continue
        names = [tree.images_name(stem, targets) for targets in tree.files(archs)]
        binaries = [f"build/images/{name}.bin" for name in names]
        embedding = [f"build/images/{name}.cpp" for name in names]
        values = {"stem": stem, "archs": f"'{listed}'", "first": names[0], "triton": triton}
        # A table with mistakes is reported once, by the launchers' step.
        ninja.build(binaries + embedding, "images", [kernel], order_only=generated[:1], variables=values)
        sources += [(source, [binary]) for source, binary in zip(embedding, binaries, strict=True)]
    return sources


def _sources(root: Path) -> list[str]:
    found = sorted((root / "csrc").rglob("*.cpp"))
    return [p.relative_to(root).as_posix() for p in found if p != root / "csrc/python.cpp"]


def _isas(source: str) -> dict[str, str]:
    """Instruction sets a source is compiled for, and their flags; several for `csrc/cpu/*_simd.cpp` only."""
    if not source.endswith("_simd.cpp"):
        return {"": ""}
    isas = _ISAS if platform.machine() in ("x86_64", "AMD64") else {"baseline": ""}
    return {isa: f"-DMAMBA_AOT_ISA={isa} {flags}".strip() for isa, flags in isas.items()}


def _prefix(source: str, isa: str) -> str:
    """The precompiled header a source starts with: most of the time to compile it goes into such headers."""
    if isa:
        return f"{BUILD}/prefixes/simd.{isa}.h"
    return f"{BUILD}/prefixes/torch.h" if not source.startswith("csrc/runtime/") else ""


def _precompiled(ninja: ninja_syntax.Writer, prefix: str, isa: str, flags: str) -> None:
    source = f"csrc/prefixes/{'simd' if isa else 'torch'}.h"
    variables = {"isa_flags": flags or _HOST_FLAGS, "isa_name": f" ({isa})" if isa else ""}
    ninja.build([f"{prefix}.gch"], "precompile", [source], variables=variables)


def _object(
    ninja: ninja_syntax.Writer,
    source: str,
    implicit: list[str] | None = None,
    order_only: list[str] | None = None,
    isa: str = "",
    flags: str = "",
    prefix: str = "",
) -> str:
    name = source.removeprefix("build/").removesuffix(".cpp")
    target = f"build/objects/{name}{'.' + isa if isa else ''}.o"
    variables = {"isa_flags": flags, "isa_name": f" ({isa})"} if isa else {"isa_flags": _HOST_FLAGS}
    if prefix:
        implicit = [*(implicit or []), f"{prefix}.gch"]
        variables["prefix_flags"] = f"-include {prefix}"
    ninja.build([target], "compile", [source], implicit=implicit, order_only=order_only, variables=variables)
    return target
