"""What the tables of selective_scan's two directions share."""

from collections.abc import Mapping, Sequence
from typing import Any

AXES = dict(T=["f32", "half"], COMPLEX=[False, True], GENERAL=[False, True])
PLAIN_AXES = dict(T=["f32", "half"], LAYOUT=["seq", "strided"])
SIZES = dict(D="i32", L="i32", N="i32", groups="i32", head_channels="i32", padded_length="i64")
PLAIN_SIZES = {name: SIZES[name] for name in ("D", "L", "N", "groups", "padded_length")}


def aligned(values: Mapping[str, Any], tensors: Sequence[str]) -> list[str]:
    """What the driver promises to be a multiple of 16 when all rows are contiguous: 16-byte loads follow from
    it.
    """
    if values["LAYOUT"] != "seq":
        return []
    return [*tensors, "L", *(f"{t}_{axis}" for t in tensors for axis in ("batch", "channel"))]


def no_need(values: Mapping[str, Any]) -> bool:
    """Real states without the options of these kernels have kernels of their own; complex ones in fp32 run
    too seldom to be worth images without options.
    """
    return not values["GENERAL"] and (not values["COMPLEX"] or values["T"] == "f32")


def tensors(names: Sequence[str]) -> dict[str, str]:
    strides = {f"{t}_{axis}": "i64" for t in names for axis in ("batch", "channel", "time")}
    return {**dict.fromkeys(names, "*T"), **strides}


def buffers(*names: str) -> dict[str, str]:
    return dict.fromkeys(names, "*f32")
