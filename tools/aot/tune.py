"""Chooses the numbers of `csrc/kernels/tuned` on the GPU at hand.

Each number is set to each of a few values, and the ops that it decides about are timed at shapes on both
sides of it. The value is taken whose times lie, in the geometric mean, closest to the best of each shape.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mamba_aot import _native
from mamba_aot.benchmark import cases, correctness, machine, models, timing
from mamba_aot.benchmark.runner import timed_calls
from mamba_aot.benchmark.shapes import MODELS, Work, make_work
from tools.aot import tree, tuned


@dataclass(frozen=True)
class Probe:
    """What decides about a number: the values to try, and the works to time, in one direction."""

    values: Sequence[int]
    works: Sequence[Work]
    backward: bool = False


def _channels(dtype: str) -> list[Work]:
    sizes = [(1, 512), (1, 2048), (1, 5120), (4, 2048), (8, 1024), (8, 2048)]
    return [make_work("selective_scan", f"B{batch} D{dim} L2048", dtype) for batch, dim in sizes]


def _long(dtype: str, *layouts: str) -> list[Work]:
    sizes = [(512, 2048), (768, 2048), (1024, 4096), (1536, 4096), (1536, 8192), (2048, 8192)]
    return [
        make_work("selective_scan", f"B1 D{dim} L{length}", dtype, layout)
        for dim, length in sizes
        for layout in layouts
    ]


def _middling() -> list[Work]:
    return [
        make_work("selective_scan", f"B{batch} D{dim} L2048", layout=layout)
        for batch, dim in [(1, 2048), (1, 3072), (1, 4096), (2, 3072), (8, 1024)]
        for layout in ("seq", "channel")
    ]


def _complex() -> list[Work]:
    sizes = [(1, 512), (1, 4096), (8, 1024), (8, 2048)]
    return [make_work("selective_scan", f"B{batch} D{dim} L2048 N4") for batch, dim in sizes]


def _rows() -> list[Work]:
    sizes = [(1, 1024), (4, 1024), (8, 1024), (12, 1024), (16, 1024), (32, 1024)]
    return [make_work("linear_recurrence", f"B{batch} D{dim} L2048", "float32") for batch, dim in sizes]


def _convolutions() -> list[Work]:
    shapes = ("B1 D2048 L2048", "B8 D1024 L2048", "B8 D5120 L2048")
    return [
        make_work("causal_conv1d", shape, layout=layout) for shape in shapes for layout in ("seq", "channel")
    ]


def _norms() -> list[Work]:
    return [make_work("rms_norm", shape) for shape in ("B1 L2048 D2048", "B8 L2048 D768", "B8 L2048 D2048")]


def _decoding() -> list[Work]:
    sizes = [(1, 24, 768), (4, 24, 768), (1, 48, 2048), (1, 64, 2560)]
    return [make_work("decode", f"B{batch} layers{layers} M{width}") for batch, layers, width in sizes]


def _batches() -> list[Work]:
    sizes = [(4, 768), (16, 768), (64, 768), (4, 1024), (64, 1024), (4, 2048), (64, 2560)]
    return [make_work("decode", f"B{batch} layers8 M{width}") for batch, width in sizes]


# Of numbers that count rows or channels: values between the shapes, and never and always.
_FEW = (0, 1024, 3072, 6144, 8192, 12288, 1 << 20)
_FILLING = tuple(1 << power for power in range(14, 20))
PROBES = {
    "selective_scan_fwd.FEW": Probe(_FEW, _complex()),
    # Of sixteen-bit numbers the specialised kernel does these.
    "selective_scan_plain_fwd.FEW": Probe(_FEW, _channels("float32")),
    "selective_scan_plain_fwd.SPLIT": Probe((0, 800, 1200, 1600, 2400), _long("float32", "seq")),
    "selective_scan_specialized_fwd.FEW": Probe((0, 2113, 3073, 4225, 6145, 8193), _middling()),
    "selective_scan_specialized_fwd.LEAST": Probe(
        (0, 700, 1000, 1400, 1800, 1 << 20), _long("bfloat16", "seq", "channel")
    ),
    "linear_recurrence_fwd.FEW": Probe((0, 2048, 6144, 10240, 16384, 24576, 1 << 20), _rows()),
    "linear_recurrence_bwd.FEW": Probe((0, 2048, 6144, 10240, 16384, 24576, 1 << 20), _rows(), backward=True),
    "causal_conv1d_fwd.THREADS": Probe(_FILLING, _convolutions()),
    "causal_conv1d_bwd.THREADS": Probe(_FILLING, _convolutions(), backward=True),
    "mamba1_step_in.PROGRAMS": Probe((66, 132, 264, 396, 528), _decoding()),
    "mamba1_step_in.FEW": Probe((0, 2048, 4096, 6144, 8192, 12288), _batches()),
    "mamba1_step_project.PROGRAMS": Probe((66, 132, 264, 396, 528), _decoding()),
    "mamba1_step_rows_project.NARROW": Probe((0, 256, 1025, 2049, 1 << 20), _batches()),
    "mamba1_step_rows_project.WIDE": Probe((0, 1 << 21, 3 << 20, 4500000, 1 << 23, 1 << 40), _batches()),
    "mamba1_step_rows_project.PROGRAMS": Probe((66, 132, 200, 264, 396), _batches()),
    "mamba1_step_rows_project_large.COLUMNS": Probe((256, 384, 512, 768), _batches()),
    "mamba1_step_rows_project.WIDTH": Probe((512, 768, 1024, 2048, 1 << 20), _batches()),
    "rms_norm_bwd.PROGRAMS": Probe((132, 264, 396, 528, 1056, 2112), _norms(), backward=True),
}


def tune(names: Sequence[str]) -> dict[str, int]:
    """Times, prints and gives the best value of each number.

    Raises:
        TableError: There is no GPU, or no number of that name.
        AssertionError: An op is wrong with one of the values.
    """
    if not torch.cuda.is_available():
        raise tree.TableError(f"tune needs a GPU that torch can use, torch {torch.__version__} finds none")
    for name in names:
        if name not in PROBES:
            raise tree.TableError(f"tune: there is no number {name}; there are {', '.join(PROBES)}")
    device = torch.device("cuda", torch.cuda.current_device())
    best = {}
    with torch.cuda.stream(torch.cuda.Stream()):
        for name in names or PROBES:
            best[name] = _best(name, PROBES[name], device)
    return best


def _best(name: str, probe: Probe, device: torch.device) -> int:
    times = {}
    try:
        for value in probe.values:
            _native.set_tuned(name, value)
            _check(probe.works[0], device)
            times[value] = [_time(work, probe.backward, device) for work in probe.works]
    finally:
        _native.set_tuned(name, None)
    fastest = [min(column) for column in zip(*times.values(), strict=True)]
    print(f"{name}: {', '.join(f'{work.label} {work.layout}' for work in probe.works)}")
    shares = {}
    for value, row in times.items():
        ratios = [time / least for time, least in zip(row, fastest, strict=True)]
        shares[value] = math.prod(ratios) ** (1 / len(ratios))
        print(
            f"  {value:>8}  {shares[value]:.3f}  {' '.join(f'{time * 1e3:8.1f}' for time in row)} us",
            flush=True,
        )
    best = min(shares, key=lambda value: shares[value])
    print(f"  takes {best}")
    return best


def _check(work: Work, device: torch.device) -> None:
    if work.op in MODELS:
        models.check_model(work, device)
    else:
        correctness.check(work, device)


def _time(work: Work, backward: bool, device: torch.device) -> float:
    if work.op in MODELS:
        with models.prepared_model(work, device) as prepared:
            return timing.time_replays(prepared.call, device)
    with torch.no_grad():
        inputs = cases.enlarge(work, cases.sample(work), device)
    calls = timed_calls(cases.op_of(work).function, inputs, backward, device)
    return timing.time_interleaved({"": calls}, device)[""]


def measured_on() -> dict[str, str]:
    """What goes into the file beside the values."""
    facts = machine.collect(torch.device("cuda", torch.cuda.current_device()))
    return {key: str(facts[key]) for key in ("device", "driver", "torch", "commit")}


def run(names: Sequence[str], write: bool) -> int:
    """Tunes all numbers or those of `names`, and writes the files unless `write` is false."""
    best = tune(names)
    major, minor = torch.cuda.get_device_capability()
    arch = 10 * major + minor
    if not write:
        return 0
    if arch not in tree.ARCHS:
        raise tree.TableError(
            f"tune: nothing is built for sm{arch}; there are {', '.join(map(str, tree.ARCHS))}"
        )
    values = {**tuned.load(tree.ROOT).get(arch, {}), **best}
    for file in tuned.save(tree.ROOT, arch, values, measured_on()):
        print(f"wrote {file.relative_to(tree.ROOT)}")
    print("now run: python -m tools.aot build")
    return 0
