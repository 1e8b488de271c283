"""The peers' own tests, at their tolerances: forms that no test beside the op has, and real shapes.

mamba_ssm: tests/ops/test_selective_scan.py, tests/ops/triton/test_selective_state_update.py,
tests/ops/triton/test_layernorm_gated.py. vLLM: tests/kernels/mamba/test_mamba_ssm.py.
"""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from mamba_aot import (
    causal_conv1d_fn,
    layernorm_fn,
    mamba_inner_fn,
    rmsnorm_fn,
    selective_scan_fn,
    selective_state_update,
)
from mamba_aot.reference import (
    causal_conv1d_ref,
    layernorm_ref,
    mamba_inner_ref,
    rmsnorm_ref,
    selective_scan_ref,
    selective_state_update_ref,
)
from mamba_aot.testing import (
    assert_matches_reference,
    make_conv_inputs,
    make_mamba_inner_inputs,
    make_norm_inputs,
    make_scan_inputs,
    make_state_update_inputs,
    measure_against_fp64,
    results_of,
)

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
each_dtype = pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=str)
# (rtol, atol) of the scan, and of its gradients as multiples of them.
SCAN = {F32: (6e-4, 2e-3), F16: (3e-3, 5e-3), BF16: (3e-2, 5e-2)}
SCAN_GRADIENTS = {"grad u": (2, 2), "grad delta": (5, 10), "grad A": (1, 5)}
CONV = {F32: (3e-4, 1e-3), F16: (3e-3, 5e-3), BF16: (1e-2, 5e-2)}
HEADS = {F32: (3e-4, 1e-3), F16: (5e-3, 3e-2), BF16: (1e-2, 1e-1)}
HEADS_OF_SLOTS = HEADS | {BF16: (1e-1, 1e-1)}


def close_to(name: str, got: Tensor, wanted: Tensor, rtol: float, atol: float) -> None:
    torch.testing.assert_close(got, wanted, rtol=rtol, atol=atol, msg=lambda m: f"{name}: {m}")


def close(got: Mapping[str, Tensor], wanted: Mapping[str, Tensor], rtol: float, atol: float) -> None:
    assert got.keys() == wanted.keys()
    for name, value in got.items():
        r, a = SCAN_GRADIENTS.get(name, (1, 1))
        close_to(name, value, wanted[name], r * rtol, a * atol)


@each_dtype
@pytest.mark.parametrize("slots", [None, 160], ids=["rows", "slots"])
@pytest.mark.parametrize("tied", [False, True], ids=["each channel", "tied"])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_state_update_with_heads(
    groups: int, tied: bool, slots: int | None, dtype: torch.dtype, device: str
) -> None:
    batch, dim, heads, state = (2, 2048, 32, 64) if slots is None else (16, 1024, 16, 16)
    kinds: dict[str, Any] = {"dtype": dtype, "state_dtype": dtype, "device": device}
    inputs = make_state_update_inputs(batch, dim, state, heads=heads, groups=groups, slots=slots, **kinds)
    torch.manual_seed(0)
    inputs["A"] = -torch.rand(heads, 64, state).to(device) - 1
    inputs["dt_bias"] = torch.rand(heads, 64).to(device) - 4
    inputs["dt"] = torch.randn(batch, heads, 64).to(inputs["x"])
    if tied:
        inputs |= {
            "A": inputs["A"][:, :1, :1],
            "dt_bias": inputs["dt_bias"][:, :1],
            "dt": inputs["dt"][..., :1],
        }
    shapes = {"A": (heads, 64, state), "dt_bias": (heads, 64), "dt": (batch, heads, 64)}

    def spread(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """With one number for all channels of a head, as callers of the peer have it."""
        return lambda **i: function(**i | {name: i[name].expand(shape) for name, shape in shapes.items()})

    rtol, atol = (HEADS if slots is None else HEADS_OF_SLOTS)[dtype]
    got = results_of(spread(selective_state_update), inputs, backward=False, written=["state"])
    wanted = results_of(spread(selective_state_update_ref), inputs, backward=False, written=["state"])
    close(got, wanted, rtol, atol)


@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("variable_b", [False, True], ids=["constant B", "variable B"])
@pytest.mark.parametrize("variable_c", [False, True], ids=["constant C", "variable C"])
def test_mamba_inner(variable_c: bool, variable_b: bool, is_complex: bool, device: str) -> None:
    options = dict(is_complex=is_complex, constant_B=not variable_b, constant_C=not variable_c)
    inputs = make_mamba_inner_inputs(
        2, 768, 128, 8, rank=48, d_model=384, width=3, out_bias=False, device=device, **options
    )
    rtol, atol = SCAN[F32]
    torch.testing.assert_close(mamba_inner_fn(**inputs), mamba_inner_ref(**inputs), rtol=rtol, atol=atol)
    # The peer checks no gradient. On a GPU matrix products of these sizes add up in another order for other
    # strides, which decides single elements; test_mamba_inner.py holds smaller ones there.
    if device == "cpu":
        assert_matches_reference(mamba_inner_fn, mamba_inner_ref, inputs)


@each_dtype
@pytest.mark.parametrize("before", [False, True], ids=["gate first", "gate last"])
@pytest.mark.parametrize("group_size", [64, None])
@pytest.mark.parametrize("rms", [False, True], ids=["layer", "rms"])
def test_gated_norm(rms: bool, group_size: int | None, before: bool, dtype: torch.dtype, device: str) -> None:
    options: dict[str, Any] = {"norm_before_gate": before, "group_size": group_size}
    inputs = make_norm_inputs(4, 64, 2048, dtype=dtype, weight_dtype=F32, z=True, device=device, **options)
    function, ref = (rmsnorm_fn, rmsnorm_ref) if rms else (layernorm_fn, layernorm_ref)
    wide = {n: t.double() if isinstance(t, Tensor) else t for n, t in inputs.items()}
    got, eager, truth = results_of(function, inputs), results_of(ref, inputs), results_of(ref, wide)
    for name, value in got.items():
        found = measure_against_fp64(value, eager[name], truth[name])
        assert found.error <= 2 * found.eager + (1e-5 if dtype == F32 else 8e-3), name


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("chunks", [1, 3])
@pytest.mark.parametrize("length", [128, 1024])
def test_scan_in_chunks(length: int, chunks: int, dtype: torch.dtype, device: str) -> None:
    inputs = make_scan_inputs(1, 4, length, 8, dtype=dtype, groups=2, initial_state=True, device=device)
    sequences = ("u", "delta", "B", "C", "z")

    def in_chunks(*, initial_state: Tensor, **rest: Any) -> tuple[Tensor, Tensor]:
        outs, state = [], initial_state
        for part in torch.arange(length, device=device).tensor_split(chunks):
            step = {n: t[..., part] if n in sequences else t for n, t in rest.items()}
            out, state = selective_scan_fn(**step, initial_state=state, return_last_state=True)
            outs.append(out)
        return torch.cat(outs, dim=2), state

    got = results_of(in_chunks, inputs, backward=False)
    wanted = results_of(lambda **i: selective_scan_ref(**i, return_last_state=True), inputs, backward=False)
    close(got, wanted, *SCAN[dtype])


# (channels, state) of published models, and larger ones.
REAL = [(1536, 16), (2048, 128), (5120, 16), (8192, 64)]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize(("dim", "state"), REAL, ids=str)
def test_scan_of_a_real_shape(dim: int, state: int, dtype: torch.dtype) -> None:
    inputs = make_scan_inputs(1, dim, 80, state, dtype=dtype, device="cuda")
    assert_matches_reference(selective_scan_fn, selective_scan_ref, inputs)


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("layout", ["seq", "channel"])
@pytest.mark.parametrize("dim", [1536, 4128, pytest.param(8192, marks=pytest.mark.gpu)])
def test_conv_of_a_real_shape(dim: int, layout: str, dtype: torch.dtype, device: str) -> None:
    inputs = make_conv_inputs(2, dim, 151, dtype=dtype, weight_dtype=F32, layout=layout, device=device)
    got, wanted = results_of(causal_conv1d_fn, inputs), results_of(causal_conv1d_ref, inputs)
    for name, value in got.items():
        rtol, atol = (1e-3, 1e-3) if name in ("grad weight", "grad bias") else CONV[dtype]
        close_to(name, value, wanted[name], rtol, atol)
