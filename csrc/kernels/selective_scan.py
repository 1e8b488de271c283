"""Selective scan, forward (Mamba paper 2312.00752, Algorithm 2; gate and ZOH as in docs/architecture.md): the
variants of its kernels.

Real states without options have the plain kernels; all others take the general ones.
"""

from _selective_scan_forward import selective_scan_fwd_kernel
from _selective_scan_outside import selective_scan_outside_kernel
from _selective_scan_pack import selective_scan_pack_kernel
from _selective_scan_plain import selective_scan_plain_fwd_kernel
from _selective_scan_table import AXES, PLAIN_AXES, PLAIN_SIZES, SIZES, aligned, buffers, no_need, tensors

from tools.aot.spec import Config, Kernel

_PLAIN = dict(STATES=16, RUN=8, num_warps=2, maxnreg=168)
_FORWARD = ["u", "delta", "z", "out"]

KERNELS = [
    Kernel(
        selective_scan_fwd_kernel,
        args={
            **tensors(_FORWARD),
            **buffers("A", "B", "C", "gate", "D_skip", "delta_bias"),
            **buffers("initial_state", "last_state", "carry", "chunk_states"),
            "runs": "*i32",
            **SIZES,
            "flags": "i32",
        },
        axes=AXES,
        skip=no_need,
        aligned=lambda _: ["B", "C", "gate", "padded_length"],
        shape=["B", "D", "L"],
        tuned=["FEW"],
        configs=[
            Config("complex", when="COMPLEX", SEGMENTS=4, STEPS=8, CHANNELS=8, num_warps=1),
            Config("few", when="B * D < FEW", SEGMENTS=8, STEPS=16, CHANNELS=4, num_warps=1),
            Config("many", SEGMENTS=4, STEPS=16, CHANNELS=8, num_warps=1),
        ],
    ),
    Kernel(
        selective_scan_plain_fwd_kernel,
        args={
            **tensors(_FORWARD),
            **buffers("A", "B", "C", "D_skip", "delta_bias"),
            **buffers("initial_state", "last_state", "carry", "chunk_states", "span_ends", "span_times"),
            "runs": "*i32",
            **PLAIN_SIZES,
            **dict.fromkeys(("spans", "span_steps", "flags"), "i32"),
        },
        axes=dict(**PLAIN_AXES, ENDS=[False, True], PACKED=[False, True]),
        aligned=lambda values: [*aligned(values, _FORWARD), "B", "C", "padded_length", "span_steps"],
        shape=["B", "D", "L"],
        tuned=["FEW", "SPLIT"],
        configs=[
            Config(
                "packed_ends",
                when="ENDS and PACKED",
                LANES=4,
                SHARERS=1,
                STEPS=32,
                CHANNELS=16,
                PREFETCH=True,
                **{**_PLAIN, "maxnreg": 184},
            ),
            Config("ends", when="ENDS", LANES=4, SHARERS=1, STEPS=32, CHANNELS=16, PREFETCH=True, **_PLAIN),
            Config(
                "packed_few",
                when="PACKED and B * D <= FEW",
                LANES=8,
                SHARERS=2,
                STEPS=64,
                CHANNELS=8,
                PREFETCH=True,
                **_PLAIN,
            ),
            Config(
                "packed", when="PACKED", LANES=4, SHARERS=2, STEPS=32, CHANNELS=16, PREFETCH=False, **_PLAIN
            ),
            Config(
                "few", when="B * D < FEW", LANES=8, SHARERS=2, STEPS=64, CHANNELS=8, PREFETCH=True, **_PLAIN
            ),
            Config("many", LANES=4, SHARERS=2, STEPS=32, CHANNELS=16, PREFETCH=False, **_PLAIN),
        ],
    ),
    Kernel(
        selective_scan_pack_kernel,
        args={
            **dict(B="*u8", C="*u8", out="*f32"),
            **dict.fromkeys(("L", "N", "groups", "parts", "rows", "blocks", "flags"), "i32"),
            "padded_length": "i64",
            **{
                f"{name}_{dim}": "i64"
                for name in ("B", "C")
                for dim in ("batch", "group", "state", "time", "part")
            },
        },
        aligned=lambda _: ["out", "padded_length"],
        configs=[Config("only", ROWS=16, STEPS=64, num_warps=4)],
    ),
    Kernel(
        selective_scan_outside_kernel,
        args=dict(
            x="*T",
            ends="*i32",
            sequences="i32",
            L="i32",
            rows="i32",
            row_stride="i64",
            time_stride="i64",
        ),
        axes=dict(T=["f32", "half"]),
        configs=[Config("only", ROWS=16, STEPS=32, num_warps=4)],
    ),
]
