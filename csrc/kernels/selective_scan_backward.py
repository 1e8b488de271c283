"""Selective scan, backward: the variants of its kernels, plain and general as in the forward."""

from _selective_scan_adjoint import selective_scan_adjoint_kernel
from _selective_scan_backward import selective_scan_bwd_kernel
from _selective_scan_plain_backward import selective_scan_plain_bwd_kernel
from _selective_scan_sums import selective_scan_sums_kernel
from _selective_scan_table import AXES, PLAIN_AXES, PLAIN_SIZES, SIZES, aligned, buffers, no_need, tensors

from tools.aot.spec import Config, Kernel

_CHUNKS = dict(chunk_begin="i32", chunk_end="i32", spans="i32")
_BACKWARD = ["dout", "u", "delta", "z", "du", "ddelta", "dz"]
_ADJOINT = ["dout", "delta", "z"]

KERNELS = [
    Kernel(
        selective_scan_bwd_kernel,
        args={
            **tensors(_BACKWARD),
            **buffers("A", "B", "C", "gate", "D_skip", "delta_bias", "chunk_states"),
            **buffers("dA", "dB", "dC", "dgate", "dD", "ddelta_bias", "carry"),
            "runs": "*i32",
            **SIZES,
            "chunk_begin": "i32",
            "chunk_end": "i32",
            "partial_length": "i64",
            "flags": "i32",
        },
        axes=AXES,
        skip=no_need,
        aligned=lambda _: ["B", "C", "gate", "padded_length", "dB", "dC", "dgate", "partial_length"],
        shape=["B", "D", "L"],
        configs=[
            Config("tall", when="COMPLEX and GENERAL", SEGMENTS=16, STEPS=4, CHANNELS=2, num_warps=1),
            Config("wide", SEGMENTS=8, STEPS=8, CHANNELS=4, num_warps=1),
        ],
    ),
    Kernel(
        selective_scan_plain_bwd_kernel,
        args={
            **tensors(_BACKWARD),
            **buffers("A", "B", "C", "D_skip", "delta_bias", "chunk_states"),
            **buffers("dA", "dB", "dC", "dD", "ddelta_bias", "carry", "incoming", "span_ends", "span_times"),
            "runs": "*i32",
            **PLAIN_SIZES,
            **_CHUNKS,
            "partial_length": "i64",
            "flags": "i32",
        },
        axes=dict(**PLAIN_AXES, PACKED=[False, True], APART=[False, True]),
        # The others would need more registers than there are.
        skip=lambda values: values["APART"] and values["T"] == "f32",
        # has_room() in csrc/ops/selective_scan_spans.h says which of the two a device takes.
        unused=lambda values, arch: values["T"] == "half" and not values["APART"] and arch in (90, 100),
        aligned=lambda values: [
            *aligned(values, _BACKWARD),
            "B",
            "C",
            "dB",
            "dC",
            "padded_length",
            "partial_length",
        ],
        configs=[Config("only", LANES=4, STATES=16, STEPS=8, CHANNELS=32, num_warps=4)],
    ),
    Kernel(
        selective_scan_adjoint_kernel,
        args={
            **tensors(_ADJOINT),
            **buffers("A", "C", "delta_bias", "ends", "elapsed_times"),
            "runs": "*i32",
            **PLAIN_SIZES,
            **_CHUNKS,
            "flags": "i32",
        },
        axes=dict(**PLAIN_AXES, PACKED=[False, True]),
        aligned=lambda values: [*aligned(values, _ADJOINT), "C", "padded_length"],
        configs=[Config("only", LANES=4, STATES=16, CHANNELS=32, num_warps=4, maxnreg=224)],
    ),
    Kernel(
        selective_scan_sums_kernel,
        args={
            **buffers("planes", "total"),
            "count": "i32",
            **dict.fromkeys(["plane_size", "partial_length", "padded_length"], "i64"),
            "blocks": "i32",
        },
        aligned=lambda _: ["planes", "total", "plane_size", "partial_length", "padded_length"],
        configs=[Config("only", STEPS=64, PLANES=32, num_warps=4)],
    ),
]
