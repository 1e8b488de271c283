"""What can be timed: one piece of work, how it is written, and the suites."""

import re
from dataclasses import dataclass

# Dimensions of every op in their order, with the size each has when none is given.
DIMENSIONS: dict[str, dict[str, int]] = {
    "selective_scan": dict(B=8, D=1024, L=2048, N=16),
    "causal_conv1d": dict(B=8, D=1024, L=2048, W=4),
    "state_update": dict(B=64, D=5120, N=16),
    "causal_conv1d_update": dict(B=64, D=5120, W=4),
    "linear_recurrence": dict(B=8, D=1024, L=2048),
    "rms_norm": dict(B=8, L=2048, D=2048),
    "block": dict(B=8, L=2048, M=512),
    "decode": dict(B=1, layers=24, M=768),
    "prefill": dict(B=1, L=8192, layers=24, M=768),
}
OPS = tuple(DIMENSIONS)
MODELS = ("block", "decode", "prefill")
DTYPES = ("bfloat16", "float16", "float32")
LAYOUTS = ("seq", "channel")
# Ops whose arguments have a memory order to choose.
ORDERED = ("selective_scan", "causal_conv1d", "linear_recurrence")


@dataclass(frozen=True)
class Work:
    """One thing to time.

    Args:
        op: One of `OPS`.
        sizes: (letter, size) of each of its `DIMENSIONS`, in that order. M is the width of a model.
        dtype: Of the sequences; block, decode and prefill run in it (the block under autocast).
        layout: Memory order: "seq" has steps side by side, "channel" channels.
        is_complex: Whether A, B, C and the state of a scan are complex.
    """

    op: str
    sizes: tuple[tuple[str, int], ...]
    dtype: str = "bfloat16"
    layout: str = "seq"
    is_complex: bool = False

    @property
    def dims(self) -> dict[str, int]:
        return dict(self.sizes)

    @property
    def label(self) -> str:
        return " ".join(f"{name}{size}" for name, size in self.sizes) + (
            " complex" if self.is_complex else ""
        )


def make_work(
    op: str, shape: str = "", dtype: str = "bfloat16", layout: str = "seq", is_complex: bool = False
) -> Work:
    """The work that the options of the command describe; `shape` is written as "B8 D1024 L2048".

    Raises:
        ValueError: An option is none that there is.
    """
    _require("--op", op, OPS)
    _require("--dtype", dtype, DTYPES)
    _require("--layout", layout, LAYOUTS)
    if is_complex and op != "selective_scan":
        raise ValueError(f"bench: --complex is for --op selective_scan, got --op {op}")
    if layout != "seq" and op not in ORDERED:
        raise ValueError(f"bench: --layout is for --op {', '.join(ORDERED)}, got --op {op}")
    dims = dict(DIMENSIONS[op])
    for part in shape.replace(",", " ").split():
        match = re.fullmatch(r"([A-Za-z]+)=?([1-9]\d*)", part)
        if not match or match[1] not in dims:
            wanted = " ".join(f"{name}{size}" for name, size in dims.items())
            raise ValueError(f'bench: --shape of {op} must be like "{wanted}", got "{part}" in it')
        dims[match[1]] = int(match[2])
    if dims.get("W", 1) > 64:
        raise ValueError(f"bench: the width W must be at most 64, got {dims['W']}")
    return Work(op, tuple(dims.items()), dtype, layout, is_complex)


def suite(name: str) -> list[Work]:
    """The works of "kernels" or "models", whose records `benchmarks/results` keeps.

    Raises:
        ValueError: There is no such suite.
    """
    _require("--suite", name, ("kernels", "models"))
    return _kernels() if name == "kernels" else _models()


def _kernels() -> list[Work]:
    works = []
    for shape in ("B8 D1024 L2048", "B8 D5120 L2048", "B1 D2048 L2048"):
        for op in ("selective_scan", "causal_conv1d"):
            works += [make_work(op, shape, layout=layout) for layout in LAYOUTS]
    works.append(make_work("selective_scan", "B1 D1536 L65536"))
    works.append(make_work("selective_scan", is_complex=True))
    works += [make_work("selective_scan", f"N{state}") for state in (8, 32, 64, 128)]
    works += [make_work("selective_scan", dtype=dtype) for dtype in ("float16", "float32")]
    for shape in ("B64 D5120", "B1 D1536"):
        works += [make_work(op, shape) for op in ("state_update", "causal_conv1d_update")]
    return [*works, make_work("linear_recurrence", dtype="float32"), make_work("rms_norm")]


def _models() -> list[Work]:
    works = [make_work("block", shape) for shape in ("B8 L2048 M512", "B8 L2048 M768", "B4 L2048 M2560")]
    for size in ("layers24 M768", "layers48 M2048", "layers64 M2560"):
        works += [make_work("decode", f"B{batch} {size}") for batch in (1, 64)]
    return works + [make_work("prefill", size) for size in ("layers24 M768", "layers64 M2560")]


def _require(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f'bench: {option} must be one of {", ".join(known)}, got "{value}"')
