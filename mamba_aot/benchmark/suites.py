"""What `benchmarks/results` records: lists of works."""

from mamba_aot.benchmark.shapes import LAYOUTS, Work, make_work

# Lengths at which the time of a scan is held to be in line with its length.
LENGTHS = tuple(4**k for k in range(5, 11))


def suite(name: str) -> list[Work]:
    """The works of one of `SUITES`.

    Raises:
        ValueError: There is no such suite.
    """
    if name not in SUITES:
        raise ValueError(f'bench: --suite must be one of {", ".join([*SUITES, ALL])}, got "{name}"')
    return SUITES[name]()


def names_of(asked: list[str], device_type: str) -> list[str]:
    """The suites that the options ask for, each once, "all" spelled out: those of the device.

    Raises:
        ValueError: There is no such suite.
    """
    names = []
    for name in asked:
        names += (["cpu"] if device_type == "cpu" else _ON_GPU) if name == ALL else [name]
    for name in names:
        suite(name)
    return list(dict.fromkeys(names))


def _kernels() -> list[Work]:
    works = []
    for shape in ("B8 D1024 L2048", "B8 D5120 L2048", "B1 D2048 L2048"):
        for op in ("selective_scan", "causal_conv1d"):
            works += [make_work(op, shape, layout=layout) for layout in LAYOUTS]
    works.append(make_work("selective_scan", "B1 D1536 L65536"))
    works += [make_work("selective_scan", is_complex=True, gated=gated) for gated in (False, True)]
    for shape in ("B64 D5120", "B1 D1536"):
        works += [make_work(op, shape) for op in ("state_update", "causal_conv1d_update")]
    return [*works, make_work("linear_recurrence", dtype="float32"), make_work("rms_norm")]


def _models() -> list[Work]:
    works = [make_work("block", shape) for shape in ("B8 L2048 M512", "B8 L2048 M768", "B4 L2048 M2560")]
    for size in ("layers24 M768", "layers48 M2048", "layers64 M2560"):
        works += [make_work("decode", f"B{batch} {size}") for batch in (1, 64)]
        works.append(make_work("decode", f"B64 {size}", half_states=True))
    return works + [make_work("prefill", size) for size in ("layers24 M768", "layers64 M2560")]


def _sweep() -> list[Work]:
    works = [make_work("selective_scan", f"B1 D1024 L{length}") for length in LENGTHS]
    works += [make_work("selective_scan", f"N{state}") for state in (8, 16, 32, 64, 128)]
    return works + [make_work("selective_scan", dtype=dtype) for dtype in ("float16", "float32")]


def _cpu() -> list[Work]:
    shapes = {"selective_scan": "B2 D1024 L512", "causal_conv1d": "B4 D2048 L2048"}
    works = [make_work(op, shape, "float32", layout) for op, shape in shapes.items() for layout in LAYOUTS]
    return [*works, make_work("linear_recurrence", "B4 D2048 L2048", "float32")]


ALL = "all"
SUITES = {"kernels": _kernels, "models": _models, "sweep": _sweep, "cpu": _cpu}
_ON_GPU = ["kernels", "models", "sweep"]
