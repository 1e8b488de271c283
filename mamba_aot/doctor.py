"""What is installed and whether it works: the facts of `mamba-aot info`, the checks of `mamba-aot doctor`.

Importing this needs nothing that can be broken: whatever touches the op library or a GPU is looked up
inside a function, and a probe that fails becomes a sentence.
"""

import ctypes
import hashlib
import platform
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import mamba_aot
from mamba_aot import _native

# As variants name them; "half" serves float16 and bfloat16.
_DTYPES = ("f32", "f16", "bf16", "half", "f64")


@dataclass(frozen=True)
class Check:
    """One thing that must work: what it is, whether it does, and if not, what was got and what to do."""

    name: str
    passed: bool
    detail: str = ""


def collect_facts() -> dict[str, Any]:
    """Versions, the op library, the kernel images in it and the GPUs, as JSON-ready values; never raises."""
    return {
        "mamba_aot": own_version(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "library": _guarded(_library_facts),
        "images": _guarded(_image_facts),
        "driver": _guarded(_driver_facts),
        "gpus": _guarded(_gpu_facts),
    }


def own_version() -> str:
    """The version of the installed package."""
    try:
        return version("mamba-aot")
    except PackageNotFoundError:
        return "unknown (not installed)"


def run_checks() -> list[Check]:
    """Loads the library, and on every device the kernels; runs every op there against the reference."""
    try:
        _require_library()
    except ImportError as error:
        return [Check("the op library loads", False, str(error))]
    checks = [Check("the op library loads", True), _check("torch can use the GPUs", _require_gpus)]
    gpus = range(torch.cuda.device_count())
    for index in gpus:
        checks.append(_check(f"every kernel loads on cuda:{index}", partial(_native.preload, index)))
    for device in ["cpu"] + [f"cuda:{index}" for index in gpus]:
        for name, run in _op_runs(device):
            checks.append(_check(f"{name} matches the reference on {device}", run))
    return checks


def format_facts(facts: dict[str, Any]) -> str:
    """The facts as a few lines of text, for people and bug reports."""
    lines = [f"mamba-aot {facts['mamba_aot']}   torch {facts['torch']}   python {facts['python']}"]
    library, images, gpus = facts["library"], facts["images"], facts["gpus"]
    if "error" in library:
        lines.append(f"library   {library['error']}")
    else:
        lines.append(f"library   {library['path']}   {library['bytes'] / 2**20:.1f} MiB")
        lines.append(f"          sha256 {library['sha256']}")
        lines += [f"          {name} {_brief(value)}" for name, value in library["build"].items()]
    if "error" not in images:
        lines.append(f"images    {images['count']}, {images['bytes'] / 2**20:.1f} MiB")
        for kernel, archs in images["kernels"].items():
            for dtypes, names in _alike(archs).items():
                counts = "  ".join(f"{dtype}: {count}" for dtype, count in dtypes)
                lines.append(f"  {kernel:<28} {counts:<36} on {' '.join(names)}")
    driver = facts["driver"]
    lines.append(
        f"driver    {driver['error']}"
        if "error" in driver
        else f"driver    {driver['version']}   CUDA {driver['cuda']}   shows {driver['gpus']} GPUs"
    )
    if isinstance(gpus, list):
        lines += [f"gpu       {gpu['name']}   sm_{gpu['arch']}   {gpu['memory_gib']:.0f} GiB" for gpu in gpus]
        if not gpus:
            lines.append(f"gpu       none that torch can use ({_cuda_build()}); everything runs on the CPU")
    else:
        lines.append(f"gpu       {gpus['error']}")
    return "\n".join(lines)


def format_checks(checks: list[Check]) -> str:
    """A line per check, and under a failed one what was got and what to do."""
    lines = []
    for check in checks:
        lines.append(f"{'ok  ' if check.passed else 'FAIL'}  {check.name}")
        if check.detail:
            lines += [f"      {line}" for line in check.detail.splitlines()]
    failed = sum(not check.passed for check in checks)
    lines.append("everything works" if not failed else f"{failed} of {len(checks)} checks failed")
    return "\n".join(lines)


def _require_library() -> None:
    # What went wrong when the package was imported comes first: a second try may fail for another reason.
    if mamba_aot._reason:
        raise ImportError(mamba_aot._reason)
    _native.library()


def _library_facts() -> dict[str, Any]:
    _require_library()
    path = _native.library_path()
    build = _native.build_info()
    data = path.read_bytes()
    return {"path": str(path), "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "build": build}


def _image_facts() -> dict[str, Any]:
    rows = _native.variants()
    kernels: dict[str, dict[str, Counter[str]]] = {}
    for row in rows:
        kernel, *choices = row["variant"].split("-")
        arch = f"ptx_{row['arch']}" if row["ptx"] else f"sm_{row['arch']}"
        dtype = "+".join(choice for choice in choices if choice in _DTYPES) or "any"
        kernels.setdefault(kernel, {}).setdefault(arch, Counter())[dtype] += 1
    return {
        "count": len(rows),
        "bytes": sum(row["size"] for row in rows),
        "kernels": {
            kernel: {arch: dict(dtypes) for arch, dtypes in archs.items()}
            for kernel, archs in sorted(kernels.items())
        },
    }


def _alike(archs: dict[str, dict[str, int]]) -> dict[tuple[tuple[str, int], ...], list[str]]:
    """The architectures that have the same images, by what these are: (dtype, count)..."""
    groups: dict[tuple[tuple[str, int], ...], list[str]] = {}
    for arch, dtypes in archs.items():
        groups.setdefault(tuple(sorted(dtypes.items())), []).append(arch)
    return groups


def _driver_facts() -> dict[str, Any]:
    cuda = _load_driver()
    number = ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(number))
    module = Path("/sys/module/nvidia/version")
    return {
        "version": module.read_text().strip() if module.is_file() else "unknown",
        "cuda": f"{number.value // 1000}.{number.value % 1000 // 10}",
        "gpus": _count_gpus(cuda),
    }


def _load_driver() -> ctypes.CDLL:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError:
        raise RuntimeError("none: libcuda.so.1 could not be loaded, so everything runs on the CPU") from None


def _count_gpus(cuda: ctypes.CDLL) -> int:
    """GPUs that the driver lets this process see."""
    count = ctypes.c_int()
    return count.value if cuda.cuInit(0) == 0 and cuda.cuDeviceGetCount(ctypes.byref(count)) == 0 else 0


def _require_gpus() -> None:
    """Raises RuntimeError if the driver shows a GPU that torch does not use."""
    driver = _guarded(_driver_facts)
    if driver.get("gpus", 0) <= torch.cuda.device_count():
        return
    why = (
        f"torch {torch.__version__} is a build for CUDA {torch.version.cuda}, too new for this driver "
        f"(CUDA {driver['cuda']}): update the driver, or install a build of torch for CUDA {driver['cuda']}"
        if torch.version.cuda
        else f"torch {torch.__version__} is a build without CUDA: install one with it, see https://pytorch.org"
    )
    raise RuntimeError(f"the driver shows {driver['gpus']} GPUs, torch {torch.cuda.device_count()}; {why}")


def _gpu_facts() -> list[dict[str, Any]]:
    gpus = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        arch = 10 * properties.major + properties.minor
        gpus.append({"name": properties.name, "arch": arch, "memory_gib": properties.total_memory / 2**30})
    return gpus


def _cuda_build() -> str:
    return f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is a CPU build"


def _op_runs(device: str) -> Iterator[tuple[str, Callable[[], None]]]:
    """Name and run of every op in the forms that a Mamba block uses it in."""
    from mamba_aot import reference, testing
    from mamba_aot.ops.causal_conv1d import causal_conv1d_fn, causal_conv1d_update
    from mamba_aot.ops.linear_recurrence import linear_recurrence
    from mamba_aot.ops.rms_norm import rms_norm_fn, rmsnorm_fn
    from mamba_aot.ops.selective_scan import selective_scan_fn
    from mamba_aot.ops.state_update import selective_state_update

    def run(function: Callable, truth: Callable, make: Callable, **options: Any) -> Callable[[], None]:
        backward = options.pop("backward", True)
        return lambda: testing.assert_matches_reference(function, truth, make(**options), backward=backward)

    forms = {
        "real, float32": {"dtype": torch.float32},
        "real, bfloat16": {"dtype": torch.bfloat16, "layout": "channel"},
        "complex, zoh, gated": {
            "is_complex": True,
            "decay_gate": True,
            "discretization": "zoh",
            "layout": "channel",
        },
    }
    scan, scan_ref, make_scan = selective_scan_fn, reference.selective_scan_ref, testing.make_scan_inputs
    step, step_ref, make_step = (
        selective_state_update,
        reference.selective_state_update_ref,
        testing.make_state_update_inputs,
    )
    for form, options in forms.items():
        yield (
            f"selective_scan_fn ({form})",
            run(scan, scan_ref, make_scan, device=device, length=130, **options),
        )
        options = {**options, "layout": "seq"}
        yield (
            f"selective_state_update ({form})",
            run(step, step_ref, make_step, device=device, backward=False, **options),
        )
    conv, conv_ref, make_conv = causal_conv1d_fn, reference.causal_conv1d_ref, testing.make_conv_inputs
    yield "causal_conv1d_fn", run(conv, conv_ref, make_conv, device=device, layout="channel")
    update, update_ref, make_update = (
        causal_conv1d_update,
        reference.causal_conv1d_update_ref,
        testing.make_conv_update_inputs,
    )
    yield "causal_conv1d_update", run(update, update_ref, make_update, device=device, backward=False)
    recur, recur_ref = linear_recurrence, reference.linear_recurrence_ref
    yield "linear_recurrence", run(recur, recur_ref, testing.make_linear_recurrence_inputs, device=device)
    norm, norm_ref, make_norm = rms_norm_fn, reference.rms_norm_ref, testing.make_norm_inputs
    yield "rms_norm_fn", run(norm, norm_ref, make_norm, device=device, residual=True, prenorm=True)
    gated, gated_ref = rmsnorm_fn, reference.rmsnorm_ref
    yield "rmsnorm_fn", run(gated, gated_ref, make_norm, device=device, z=True, group_size=12)


def _check(name: str, run: Callable[[], None]) -> Check:
    try:
        run()
    except AssertionError as error:
        fix = (
            "the op computes wrong: reinstall mamba-aot; if that is no help, report it with `mamba-aot info`"
        )
        return Check(name, False, f"{error}\n{fix}")
    except Exception as error:
        return Check(name, False, str(error))
    return Check(name, True)


def _guarded(probe: Callable[[], Any]) -> Any:
    try:
        return probe()
    except Exception as error:
        return {"error": str(error)}


def _brief(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
