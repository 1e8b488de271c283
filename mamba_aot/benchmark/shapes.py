"""What can be timed: one piece of work, and how it is written."""

import dataclasses
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
        half_states: Whether the scans' states of a model that decodes are of `dtype`, not float32.
        gated: Whether a scan has a gate on its decay and zero-order hold, as this package's `Mamba` has.
    """

    op: str
    sizes: tuple[tuple[str, int], ...]
    dtype: str = "bfloat16"
    layout: str = "seq"
    is_complex: bool = False
    half_states: bool = False
    gated: bool = False

    @property
    def dims(self) -> dict[str, int]:
        return dict(self.sizes)

    def no_longer_than(self, steps: int) -> "Work":
        """The same of at most so many steps."""
        sizes = tuple((name, min(size, steps) if name == "L" else size) for name, size in self.sizes)
        return dataclasses.replace(self, sizes=sizes)

    @property
    def label(self) -> str:
        kind = " complex" if self.is_complex else ""
        kind += " half states" if self.half_states else ""
        kind += " gated" if self.gated else ""
        return " ".join(f"{name}{size}" for name, size in self.sizes) + kind


def make_work(
    op: str,
    shape: str = "",
    dtype: str = "bfloat16",
    layout: str = "seq",
    is_complex: bool = False,
    half_states: bool = False,
    gated: bool = False,
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
    if gated and op != "selective_scan":
        raise ValueError(f"bench: --gated is for --op selective_scan, got --op {op}")
    if half_states and (op != "decode" or dtype == "float32"):
        raise ValueError(
            f"bench: --half-states is for --op decode in sixteen bits, got --op {op} --dtype {dtype}"
        )
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
    return Work(op, tuple(dims.items()), dtype, layout, is_complex, half_states, gated)


def _require(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f'bench: {option} must be one of {", ".join(known)}, got "{value}"')
