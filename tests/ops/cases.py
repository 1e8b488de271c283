"""Cases of every op: all pairs of options, dtypes and memory orders, with sizes drawn from a seed.

`OPS` says what an op's options and sizes are; `cases_of` turns that into a fixed list. test_cases.py holds
each case to the rule of closeness, benchmarks/numerics.py records how near each comes to its limit.
"""

import functools
import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from allpairspy import AllPairs

import mamba_aot
from mamba_aot import reference, testing

F32, F16, BF16, F64 = torch.float32, torch.float16, torch.bfloat16, torch.float64
DTYPES = (F32, F16, BF16, F64)
# None: the one that belongs to the dtype of the sequence.
OTHER_DTYPES = (None, F32, F16, BF16)
LAYOUTS = testing.LAYOUTS
BOTH = (False, True)
# Sizes that kernels have edges at, and ones between.
LENGTHS = (1, 2, 3, 7, 16, 17, 31, 33, 63, 64, 65, 70)
STATES = (1, 2, 3, 5, 8, 9, 16, 24)
CHANNELS = (1, 2, 3, 8, 16, 17, 24, 40)


@dataclass(frozen=True)
class Op:
    """An op as cases see it.

    Attributes:
        make: Turns options, sizes and a `seed` and `device` into keyword arguments.
        options: What is paired.
        sizes: What is drawn.
        count: Number of cases.
        fits: Whether options go together; asked with some of them, the others absent.
        written: Arguments that are written into; such an op has no backward.
    """

    function: Callable[..., Any]
    reference: Callable[..., Any]
    make: Callable[..., dict[str, Any]]
    options: Mapping[str, Sequence[Any]]
    sizes: Mapping[str, Sequence[int]]
    count: int
    fits: Callable[[Mapping[str, Any]], bool] = lambda options: True
    written: tuple[str, ...] = ()


@dataclass(frozen=True)
class Case:
    """One case: `make(**arguments)` are its inputs."""

    op: str
    arguments: Mapping[str, Any]

    def __str__(self) -> str:
        words = [f"{name}={str(value).removeprefix('torch.')}" for name, value in self.arguments.items()]
        return " ".join([self.op, *words])

    def inputs(self, device: str) -> dict[str, Any]:
        return OPS[self.op].make(**self.arguments, device=device)

    @property
    def dtype(self) -> torch.dtype:
        return self.arguments["dtype"]

    def compare(self, device: str) -> dict[str, Any]:
        """Everything the case computes, beside what it should be."""
        op, inputs = OPS[self.op], self.inputs(device)
        written = [name for name in op.written if name in inputs]
        return testing.compare_with_reference(
            op.function, op.reference, inputs, backward=not op.written, written=written
        )


def cases_of(name: str) -> list[Case]:
    """The cases of one op, the same ones every time."""
    op, draw = OPS[name], random.Random(name)
    found: list[Case] = []
    while len(found) < op.count:
        for options in pairs_of(op, draw):
            sizes = {size: draw.choice(values) for size, values in op.sizes.items()}
            found.append(Case(name, {**options, **sizes, "seed": len(found)}))
    return found[: op.count]


def pairs_of(op: Op, draw: random.Random) -> list[dict[str, Any]]:
    """Options in which every two values that go together meet; which others they meet, `draw` decides."""
    names = draw.sample(list(op.options), len(op.options))
    values = [draw.sample(list(op.options[name]), len(op.options[name])) for name in names]
    rows = AllPairs(values, filter_func=lambda row: op.fits(dict(zip(names, row, strict=False))))
    return [{name: dict(zip(names, row, strict=True))[name] for name in op.options} for row in rows]


def _lengths_of(length: int, count: int, padding: bool, seed: int) -> list[int]:
    """`length` cut in up to `count` parts, some of which are padding, that is negative."""
    draw = random.Random(seed)
    cuts = sorted(draw.randint(0, length) for _ in range(count - 1))
    parts = [stop - start for start, stop in itertools.pairwise([0, *cuts, length])]
    return [-n if padding and n and draw.random() < 0.3 else n for n in parts]


def _packed(packing: str | None, batch: int, length: int, seed: int) -> dict[str, Any]:
    """Sizes of what is packed by `seq_idx` ("rows") or `cu_seqlens` ("one row"), or isn't."""
    if packing == "rows":
        return {
            "seq_idx": [[n for n in _lengths_of(length, 4, True, seed + row) if n] for row in range(batch)]
        }
    if packing == "one row":
        return {"cu_seqlens": _lengths_of(length, 2 * batch, False, seed)}
    return {"batch": batch, "length": length}


def make_conv(*, packing: str | None, batch: int, length: int, seed: int, **options: Any) -> dict[str, Any]:
    return testing.make_conv_inputs(**_packed(packing, batch, length, seed), seed=seed, **options)


def make_conv_update(*, slots: int, more: int, width: int, batch: int, **options: Any) -> dict[str, Any]:
    """`make_conv_update_inputs` with `more` steps kept than needed, `slots` (or none) beyond the batch."""
    count = batch + slots if slots else None
    kept = max(width - 1 + more, 1)
    return testing.make_conv_update_inputs(batch, width=width, kept=kept, slots=count, **options)


def make_state_update(
    *,
    slots: bool,
    padded: bool,
    accepted: bool,
    intermediate: bool,
    disable_state_update: bool,
    batch: int,
    head_dim: int,
    **options: Any,
) -> dict[str, Any]:
    """`make_state_update_inputs`, with slots of which one row may be padding, and what comes of drafts."""
    dim = head_dim * (options["heads"] or 4)
    count = 2 * batch + 1 if slots else None
    inputs = testing.make_state_update_inputs(batch, dim, slots=count, **options)
    device, steps = inputs["x"].device, options["steps"]
    if padded:
        inputs["state_batch_indices"][0] = -1
    if accepted:
        counts = torch.arange(batch, dtype=torch.int32, device=device) % (steps + 1)
        inputs["accepted_steps"] = counts
    if intermediate:
        shape = (batch, 1 if steps is None else steps, *inputs["state"].shape[1:])
        inputs["intermediate_states"] = inputs["state"].new_zeros(shape)
    return inputs | {"disable_state_update": disable_state_update}


def _state_update_fits(options: Mapping[str, Any]) -> bool:
    if options.get("is_complex") and options.get("state_dtype"):
        return False
    if not options.get("slots", True) and (options.get("targets") or options.get("padded")):
        return False
    if options.get("dtype") == F64 and options.get("state_dtype"):
        return False
    if options.get("accepted") and "steps" in options and options["steps"] is None:
        return False
    groups, heads = options.get("groups"), options.get("heads")
    return not (groups and heads) or heads % groups == 0


def make_state_step(*, batch: int, head_dim: int, **options: Any) -> dict[str, Any]:
    inputs = testing.make_state_update_inputs(batch, head_dim * (options["heads"] or 4), **options)
    return {name: value for name, value in inputs.items() if name != "state_batch_indices"}


def make_recurrence(*, shape: int, batch: int, dim: int, length: int, **options: Any) -> dict[str, Any]:
    """`make_linear_recurrence_inputs` with `shape` dimensions."""
    sizes = [length, dim, batch, 2][:shape][::-1]
    return testing.make_linear_recurrence_inputs(*sizes, **options)


def _recurrence_fits(options: Mapping[str, Any]) -> bool:
    return options.get("shape") != 1 or options.get("layout", "seq") in ("seq", "strided")


def make_scan(
    *,
    kind: str,
    groups: str | int | None,
    dim: int,
    packing: str | None,
    batch: int,
    length: int,
    seed: int,
    **options: Any,
) -> dict[str, Any]:
    """`make_scan_inputs` of a "real", "complex" or "interleaved" kind; "each" channel may be a group."""
    dim = 2 * dim if 2 in (groups, options["heads"]) else dim
    count = dim if groups == "each" else groups
    return testing.make_scan_inputs(
        **_packed(packing, batch, length, seed),
        seed=seed,
        dim=dim,
        groups=count,  # type: ignore[arg-type]
        is_complex=kind != "real",
        interleaved=kind == "interleaved",
        **options,
    )


def _inner_fits(options: Mapping[str, Any]) -> bool:
    """Between the ops stand tensors of the dtype of xz, and the rule knows only the roundings of results.

    So a half xz has half weights here, and no small step sizes that a half loses digits of. Other weights
    beside a half xz are in test_mamba_inner.py.
    """
    half = options.get("dtype") in (F16, BF16)
    if half and options.get("weight_dtype", F16) not in (F16, BF16):
        return False
    return not (half and options.get("norms") and options.get("delta_softplus") is False)


def make_gated_norm(*, groups: int, group_size: int, **options: Any) -> dict[str, Any]:
    return testing.make_norm_inputs(
        channels=groups * group_size, group_size=None if groups == 1 else group_size, **options
    )


_SCAN_OPTIONS: dict[str, Sequence[Any]] = {
    "dtype": DTYPES,
    "delta_dtype": OTHER_DTYPES,
    "z_dtype": OTHER_DTYPES,
    "weight_dtype": OTHER_DTYPES,
    "layout": LAYOUTS,
    "D": BOTH,
    "z": BOTH,
    "delta_bias": BOTH,
    "delta_softplus": BOTH,
    "decay_gate": BOTH,
    "discretization": ("euler", "zoh"),
}
_STEP_OPTIONS = {**_SCAN_OPTIONS, "is_complex": BOTH, "groups": (None, 1, 2), "heads": (None, 1, 2, 4)}
_NORM_SIZES = {"batch": (1, 2, 3), "rows": (1, 2, 5, 9, 33), "channels": (1, 3, 16, 24, 64, 100, 130)}
_NORM_OPTIONS: dict[str, Sequence[Any]] = {
    "dtype": DTYPES,
    "weight_dtype": OTHER_DTYPES,
    "layout": LAYOUTS,
    "bias": BOTH,
    "eps": (1e-6, 1e-5, 0.5),
}
_ADDED_OPTIONS = {
    **_NORM_OPTIONS,
    "residual": BOTH,
    "residual_dtype": OTHER_DTYPES,
    "prenorm": BOTH,
    "residual_in_fp32": BOTH,
}
_GATED_OPTIONS = {
    **_NORM_OPTIONS,
    "z": BOTH,
    "z_dtype": OTHER_DTYPES,
    "norm_before_gate": BOTH,
    "groups": (1, 2, 5),
}
# Groups of one are in test_rms_norm.py: their norm is a sign whatever x is, so nudges leave gradients where
# they are, and eager is off by luck alone.
_GATED_SIZES = {"batch": (1, 2, 3), "rows": (1, 2, 5, 9, 33), "group_size": (3, 16, 24, 64, 100, 130)}

OPS: dict[str, Op] = {
    "selective_scan_fn": Op(
        functools.partial(mamba_aot.selective_scan_fn, return_last_state=True),
        functools.partial(reference.selective_scan_ref, return_last_state=True),
        make_scan,
        {
            **_SCAN_OPTIONS,
            "kind": ("real", "complex", "interleaved"),
            "groups": (None, 1, 2, "each"),
            "initial_state": BOTH,
            "packing": (None, "rows", "one row"),
            "constant": ("", "B", "C", "BC"),
            "heads": (None, 1, 2),
        },
        {"batch": (1, 2, 3), "dim": CHANNELS, "length": LENGTHS, "state": STATES},
        480,
        # Pairs in place of complex numbers go along the length, which a constant weight has not.
        fits=lambda options: options.get("kind") != "interleaved" or not options.get("constant"),
    ),
    "selective_state_update": Op(
        mamba_aot.selective_state_update,
        reference.selective_state_update_ref,
        make_state_update,
        {
            **_STEP_OPTIONS,
            "state_dtype": (None, F16, BF16),
            "steps": (None, 1, 3),
            "slots": BOTH,
            "targets": BOTH,
            "padded": BOTH,
            "accepted": BOTH,
            "intermediate": BOTH,
            "disable_state_update": BOTH,
        },
        {"batch": (1, 2, 3, 5), "head_dim": (2, 6, 16, 20), "state": STATES},
        340,
        fits=_state_update_fits,
        written=("state", "intermediate_states"),
    ),
    "selective_state_step": Op(
        mamba_aot.selective_state_step,
        reference.selective_state_step_ref,
        make_state_step,
        {**_STEP_OPTIONS, "steps": (None, 1, 3)},
        {"batch": (1, 2, 3), "head_dim": (2, 6, 16, 20), "state": STATES},
        140,
        fits=_state_update_fits,
    ),
    "causal_conv1d_fn": Op(
        functools.partial(mamba_aot.causal_conv1d_fn, return_final_states=True),
        functools.partial(reference.causal_conv1d_ref, return_final_states=True),
        make_conv,
        {
            "dtype": DTYPES,
            "weight_dtype": OTHER_DTYPES,
            "layout": LAYOUTS,
            "bias": BOTH,
            "activation": (None, "silu", "swish"),
            "initial_states": BOTH,
            "packing": (None, "rows", "one row"),
            "width": (1, 2, 3, 4, 5, 9),
        },
        {"batch": (1, 2, 3), "dim": CHANNELS, "length": LENGTHS},
        380,
    ),
    "causal_conv1d_update": Op(
        mamba_aot.causal_conv1d_update,
        reference.causal_conv1d_update_ref,
        make_conv_update,
        {
            "dtype": DTYPES,
            "weight_dtype": OTHER_DTYPES,
            "layout": LAYOUTS,
            "bias": BOTH,
            "activation": (None, "silu", "swish"),
            "width": (1, 2, 3, 4, 5, 9),
            "steps": (None, 1, 2, 5),
            "more": (0, 1, 6),
            "slots": (0, 3),
            "ring": BOTH,
        },
        {"batch": (1, 2, 3, 5), "dim": CHANNELS},
        260,
        written=("conv_state",),
    ),
    "linear_recurrence": Op(
        functools.partial(mamba_aot.linear_recurrence, return_last_state=True),
        functools.partial(reference.linear_recurrence_ref, return_last_state=True),
        make_recurrence,
        {
            "dtype": (*DTYPES, torch.complex64, torch.complex128),
            "layout": LAYOUTS,
            "initial_state": BOTH,
            "reverse": BOTH,
            "shape": (1, 2, 3, 4),
        },
        {"batch": (1, 2, 3), "dim": CHANNELS, "length": LENGTHS},
        180,
        fits=_recurrence_fits,
    ),
    "rms_norm_fn": Op(
        mamba_aot.rms_norm_fn,
        reference.rms_norm_ref,
        testing.make_norm_inputs,
        _ADDED_OPTIONS,
        _NORM_SIZES,
        130,
    ),
    "layer_norm_fn": Op(
        mamba_aot.layer_norm_fn,
        reference.layer_norm_ref,
        testing.make_norm_inputs,
        _ADDED_OPTIONS,
        _NORM_SIZES,
        130,
    ),
    "rmsnorm_fn": Op(
        mamba_aot.rmsnorm_fn, reference.rmsnorm_ref, make_gated_norm, _GATED_OPTIONS, _GATED_SIZES, 130
    ),
    "layernorm_fn": Op(
        mamba_aot.layernorm_fn, reference.layernorm_ref, make_gated_norm, _GATED_OPTIONS, _GATED_SIZES, 130
    ),
    "mamba_inner_fn": Op(
        mamba_aot.mamba_inner_fn,
        reference.mamba_inner_ref,
        testing.make_mamba_inner_inputs,
        {
            "dtype": DTYPES,
            "weight_dtype": OTHER_DTYPES,
            "layout": LAYOUTS,
            "is_complex": BOTH,
            "constant_B": BOTH,
            "constant_C": BOTH,
            "conv_bias": BOTH,
            "out_bias": BOTH,
            "D": BOTH,
            "delta_bias": BOTH,
            "delta_softplus": BOTH,
            "biases": BOTH,
            "norms": BOTH,
            "checkpoint_lvl": (0, 1),
            "width": (1, 2, 4, 5),
        },
        {
            # Not fewer numbers, for the same reason as _inner_fits: of few roundings, some are lucky.
            "batch": (1, 2, 3),
            "dim": (8, 16, 17, 24),
            "length": (7, 16, 17, 33),
            "state": (1, 2, 3, 8, 16),
            # A norm leaves next to nothing of the gradient of a rank of 1.
            "rank": (3, 5, 8),
            "d_model": (6, 16),
        },
        140,
        fits=_inner_fits,
    ),
}
