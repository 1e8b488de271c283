"""Kernels without triton: plain functions, whose signature is all that tables look at."""

from __future__ import annotations

from typing import Any

from tools.aot.spec import Config, Kernel


class constexpr:  # noqa: N801 (stands for triton's)
    """Marks a compile-time parameter."""


def scan_kernel(u, out, length, scale, COMPLEX: constexpr, LAYOUT: constexpr, TILE: constexpr):
    """What a table is written for; it is never called."""


def scan(**changes: Any) -> Kernel:
    """A sound table with some of its parts replaced."""
    parts: dict[str, Any] = dict(
        function=scan_kernel,
        args=dict(u="*T", out="*f32", length="i64", scale="f32"),
        axes=dict(T=["f32", "f16", "bf16"], COMPLEX=[False, True], LAYOUT=["seq", "strided"]),
        skip=lambda v: v["COMPLEX"] and v["T"] == "f16",
        aligned=lambda v: ["u", "length"] if v["LAYOUT"] == "seq" else [],
        configs=[
            Config("few", when="B * D < 4096 and T != 'f16'", TILE=16, num_warps=4),
            Config("tall", when="COMPLEX and L // 2 >= 100", TILE=32, num_warps=2),
            Config("many", TILE=8, num_warps=1),
        ],
        shape=["B", "D", "L"],
    )
    return Kernel(**{**parts, **changes})
