"""Selective scan, forward and backward (Mamba paper 2312.00752, Algorithm 2; gate and ZOH as in
docs/architecture.md): the variants of its kernels.

States without options have the plain kernels, complex ones with a gate or zero-order hold too; all others
take the general ones. The commonest have kernels for warps of two kinds where a GPU can run them.
"""

from _selective_scan_adjoint import selective_scan_adjoint_kernel
from _selective_scan_backward import selective_scan_bwd_kernel
from _selective_scan_forward import selective_scan_fwd_kernel
from _selective_scan_outside import selective_scan_outside_kernel
from _selective_scan_pack import selective_scan_pack_kernel
from _selective_scan_pair import selective_scan_pair_kernel
from _selective_scan_plain import selective_scan_plain_fwd_kernel
from _selective_scan_plain_backward import selective_scan_plain_bwd_kernel
from _selective_scan_specialized import selective_scan_specialized_fwd_kernel
from _selective_scan_specialized_backward import selective_scan_specialized_bwd_kernel
from _selective_scan_sums import selective_scan_sums_kernel
from _selective_scan_totals import selective_scan_totals_kernel

from tools.aot.spec import Config, Kernel

_AXES = dict(T=["f32", "half"], COMPLEX=[False, True])
_PLAIN_AXES = dict(T=["f32", "half"], LAYOUT=["seq", "strided"])
_SIZES = dict(D="i32", L="i32", N="i32", groups="i32", head_channels="i32", padded_length="i64")
_PLAIN_SIZES = {name: _SIZES[name] for name in ("D", "L", "N", "groups", "padded_length")}


def _aligned(values: dict, tensors: list[str]) -> list[str]:
    """What the driver promises to be a multiple of 16 when rows are contiguous, or the channels of a step:
    16-byte loads follow from it.
    """
    if values["LAYOUT"] == "seq":
        return [*tensors, "L", *(f"{t}_{axis}" for t in tensors for axis in ("batch", "channel"))]
    if values["LAYOUT"] == "last":
        return [*tensors, *(f"{t}_{axis}" for t in tensors for axis in ("batch", "time"))]
    return []


def _too_seldom(values: dict) -> bool:
    """Complex states in fp32 and of packed sequences are left to the general kernels."""
    return values["COMPLEX"] and (values["T"] == "f32" or values["PACKED"])


def _never_taken(values: dict, arch: int) -> bool:
    """Of the two ways to use shared memory a device takes the one that has_room() of
    csrc/ops/selective_scan_spans.h says. Images for sm_80 serve other devices of 8.x, too.
    """
    return values["T"] == "half" and arch in ((86, 89, 120) if values["APART"] else (90, 100))


def _tensors(names: list[str]) -> dict[str, str]:
    strides = {f"{t}_{axis}": "i64" for t in names for axis in ("batch", "channel", "time")}
    return {**dict.fromkeys(names, "*T"), **strides}


def _buffers(*names: str) -> dict[str, str]:
    return dict.fromkeys(names, "*f32")


_CHUNKS = dict(chunk_begin="i32", chunk_end="i32", spans="i32")
# Layouts of the plain forward: of few channels, of many, and of the pass that finds where spans end.
_PLAIN = dict(STATES=16, RUN=8, num_warps=2, maxnreg=168)
_FEW = dict(LANES=8, SHARERS=2, STEPS=64, CHANNELS=8, PREFETCH=True, **_PLAIN)
_MANY = dict(LANES=4, SHARERS=2, STEPS=32, CHANNELS=16, PREFETCH=False, **_PLAIN)
_ENDS = dict(LANES=4, SHARERS=1, STEPS=32, CHANNELS=16, PREFETCH=True, **_PLAIN)
_COMPLEX = dict(STATES=16, RUN=4, LANES=8, SHARERS=2, STEPS=32, PREFETCH=False, maxnreg=128)
# Of the specialised forward: programs of which a multiprocessor has one, or two; num_warps of each kind.
_SPECIALIZED = dict(STATES=16, REGISTERS=120, num_warps=4)
_ONE_EACH = dict(LANES=8, STEPS=64, CHANNELS=16, maxnreg=168, **_SPECIALIZED)
_TWO_EACH = dict(LANES=4, STEPS=32, CHANNELS=32, maxnreg=128, **_SPECIALIZED)
# Of the plain backward, of that in warps of two kinds, and of the adjoints that their spans pass on.
_GRADIENTS = dict(LANES=4, STEPS=8, CHANNELS=32, num_warps=4)
_BESIDE = dict(num_warps=4, maxnreg=128)
_CHAINS = dict(LANES=4, CHANNELS=32, num_warps=4)
_FORWARD = ["u", "delta", "z", "out"]
_BACKWARD = ["dout", "u", "delta", "z", "du", "ddelta", "dz"]
_ADJOINT = ["dout", "delta", "z"]

KERNELS = [
    Kernel(
        selective_scan_fwd_kernel,
        args={
            **_tensors(_FORWARD),
            **_buffers("A", "B", "C", "gate", "D_skip", "delta_bias"),
            **_buffers("initial_state", "last_state", "carry", "chunk_states"),
            "runs": "*i32",
            **_SIZES,
            "flags": "i32",
        },
        axes=_AXES,
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
            **_tensors(_FORWARD),
            **_buffers("A", "B", "C", "gate", "D_skip", "delta_bias"),
            **_buffers("initial_state", "last_state", "carry", "chunk_states"),
            **_buffers("span_ends", "span_times", "span_gates"),
            "runs": "*i32",
            **_PLAIN_SIZES,
            **dict.fromkeys(("spans", "span_steps", "flags"), "i32"),
        },
        axes=dict(**_PLAIN_AXES, COMPLEX=[False, True], ENDS=[False, True], PACKED=[False, True]),
        skip=_too_seldom,
        aligned=lambda values: [
            *_aligned(values, _FORWARD),
            "B",
            "C",
            "gate",
            "padded_length",
            "span_steps",
        ],
        shape=["B", "D", "L"],
        tuned=["FEW", "SPLIT"],
        configs=[
            Config("complex_ends", when="COMPLEX and ENDS", CHANNELS=16, num_warps=4, **_COMPLEX),
            Config("complex", when="COMPLEX", CHANNELS=32, num_warps=8, **_COMPLEX),
            Config("packed_ends", when="ENDS and PACKED", **{**_ENDS, "maxnreg": 184}),
            Config("ends", when="ENDS", **_ENDS),
            Config("packed_few", when="PACKED and B * D <= FEW", **_FEW),
            Config("packed", when="PACKED", **_MANY),
            Config("few", when="B * D < FEW", **_FEW),
            Config("many", **_MANY),
        ],
    ),
    Kernel(
        selective_scan_specialized_fwd_kernel,
        args={
            **_tensors(_FORWARD),
            **_buffers("A", "B", "C", "D_skip", "delta_bias", "initial_state", "last_state", "chunk_states"),
            **_PLAIN_SIZES,
            "flags": "i32",
        },
        axes=dict(T=["half"], LAYOUT=["seq", "last"]),
        aligned=lambda values: [*_aligned(values, _FORWARD), "B", "C", "padded_length"],
        shape=["B", "D"],
        tuned=["FEW", "LEAST"],
        arch=90,
        configs=[
            Config("few", when="B * D < FEW", PAIRED=True, **_ONE_EACH),
            Config("many", PAIRED=False, **_TWO_EACH),
        ],
    ),
    Kernel(
        selective_scan_pair_kernel,
        args={
            **dict(B="*half", C="*half", out="*i32"),
            **dict.fromkeys(("L", "N", "groups", "rows", "blocks"), "i32"),
            "padded_length": "i64",
            **{f"{name}_{dim}": "i64" for name in ("B", "C") for dim in ("batch", "group", "state", "time")},
        },
        aligned=lambda _: ["out", "padded_length"],
        arch=90,
        configs=[Config("only", ROWS=16, STEPS=64, FEW=128, num_warps=4)],
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
    Kernel(
        selective_scan_bwd_kernel,
        args={
            **_tensors(_BACKWARD),
            **_buffers("A", "B", "C", "gate", "D_skip", "delta_bias", "chunk_states"),
            **_buffers("dA", "dB", "dC", "dgate", "dD", "ddelta_bias", "carry"),
            "runs": "*i32",
            **_SIZES,
            "chunk_begin": "i32",
            "chunk_end": "i32",
            "partial_length": "i64",
            "flags": "i32",
        },
        axes=_AXES,
        aligned=lambda _: ["B", "C", "gate", "padded_length", "dB", "dC", "dgate", "partial_length"],
        shape=["B", "D", "L"],
        configs=[
            Config("tall", when="COMPLEX", SEGMENTS=16, STEPS=4, CHANNELS=2, num_warps=1),
            Config("wide", SEGMENTS=8, STEPS=8, CHANNELS=4, num_warps=1),
        ],
    ),
    Kernel(
        selective_scan_plain_bwd_kernel,
        args={
            **_tensors(_BACKWARD),
            **_buffers("A", "B", "C", "gate", "D_skip", "delta_bias", "chunk_states"),
            **_buffers("dA", "dB", "dC", "dgate", "dD", "ddelta_bias", "carry"),
            **_buffers("incoming", "span_ends", "span_times", "span_gates"),
            "runs": "*i32",
            **_PLAIN_SIZES,
            **_CHUNKS,
            "partial_length": "i64",
            "flags": "i32",
        },
        axes=dict(**_PLAIN_AXES, COMPLEX=[False, True], PACKED=[False, True], APART=[False, True]),
        # With APART float32 would need more registers than there are.
        skip=lambda values: _too_seldom(values) or (values["APART"] and values["T"] == "f32"),
        unused=_never_taken,
        portable=lambda values: not values["APART"],
        aligned=lambda values: [
            *_aligned(values, _BACKWARD),
            "B",
            "C",
            "gate",
            "dB",
            "dC",
            "dgate",
            "padded_length",
            "partial_length",
        ],
        configs=[
            Config("complex", when="COMPLEX", STATES=8, **_GRADIENTS),
            Config("real", STATES=16, **_GRADIENTS),
        ],
    ),
    Kernel(
        selective_scan_specialized_bwd_kernel,
        args={
            **_tensors(_BACKWARD),
            **_buffers("A", "B", "C", "D_skip", "delta_bias", "chunk_states"),
            **_buffers("dA", "dB", "dC", "dD", "ddelta_bias", "carry", "incoming", "span_ends", "span_times"),
            **_PLAIN_SIZES,
            **_CHUNKS,
            "pieces": "i32",
            "partial_length": "i64",
            "flags": "i32",
        },
        axes=dict(T=["half"], LAYOUT=["seq", "last"]),
        aligned=lambda values: [
            *_aligned(values, _BACKWARD),
            *("B", "C", "dB", "dC", "padded_length", "partial_length"),
        ],
        arch=90,
        configs=[
            Config("rows", when="LAYOUT == 'seq'", KEPT=True, REGISTERS=152, **_BESIDE),
            Config("columns", KEPT=False, REGISTERS=136, **_BESIDE),
        ],
    ),
    Kernel(
        selective_scan_adjoint_kernel,
        args={
            **_tensors(_ADJOINT),
            **_buffers("A", "C", "gate", "delta_bias", "ends", "elapsed_times", "span_gates"),
            "runs": "*i32",
            **_PLAIN_SIZES,
            **_CHUNKS,
            "pieces": "i32",
            "flags": "i32",
        },
        axes=dict(**_PLAIN_AXES, COMPLEX=[False, True], PACKED=[False, True]),
        skip=_too_seldom,
        aligned=lambda values: [*_aligned(values, _ADJOINT), "C", "gate", "padded_length"],
        configs=[
            Config("complex", when="COMPLEX", STATES=8, maxnreg=128, **_CHAINS),
            Config("packed", when="PACKED", STATES=16, maxnreg=224, **_CHAINS),
            Config("wide", when="T == 'f32'", STATES=16, maxnreg=128, **_CHAINS),
            # For five programs a multiprocessor.
            Config("real", STATES=16, maxnreg=96, **_CHAINS),
        ],
    ),
    Kernel(
        selective_scan_sums_kernel,
        args={
            **dict(planes="*f32", first="*u8", second="*u8"),
            **dict.fromkeys(("plane_size", "partial_length"), "i64"),
            **dict.fromkeys(("count", "rows", "parts", "L", "begin", "blocks", "flags"), "i32"),
        },
        aligned=lambda _: ["planes", "plane_size", "partial_length"],
        configs=[Config("only", STEPS=32, PLANES=16, num_warps=1)],
    ),
    Kernel(
        selective_scan_totals_kernel,
        args={
            **_buffers("A_sums", "D_sums", "bias_sums", "adjoint", "dinitial_state"),
            **dict.fromkeys(("dA", "dD", "ddelta_bias"), "*u8"),
            **dict.fromkeys(("D", "state_rows", "batches", "groups", "padded_channels", "flags"), "i32"),
            "count": "i32",
        },
        configs=[Config("only", ROWS=16, CHANNELS=32, PLANES=4, num_warps=4)],
    ),
]
