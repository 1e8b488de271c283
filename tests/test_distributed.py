"""The ops on DTensors, in two processes: split over channels, rows or the batch, as on one device."""

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

import mamba_aot
from mamba_aot.testing import (
    make_conv_inputs,
    make_conv_update_inputs,
    make_linear_recurrence_inputs,
    make_norm_inputs,
    make_scan_inputs,
    make_state_update_inputs,
)

Split = dict[str, int]


def scan(**inputs: Any) -> Any:
    return mamba_aot.selective_scan_fn(**inputs, return_last_state=True)


def norm(**inputs: Any) -> Any:
    return mamba_aot.rms_norm_fn(**inputs, prenorm=True)


def recurrence(**inputs: Any) -> Any:
    return mamba_aot.linear_recurrence(**inputs, return_last_state=True)


def gated(**inputs: Any) -> Any:
    return (mamba_aot.rmsnorm_fn(**inputs),)


def conv(**inputs: Any) -> Any:
    return (mamba_aot.causal_conv1d_fn(**inputs),)


def constant() -> dict[str, Tensor]:
    """B and C that are the same for all steps."""
    weight = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    return {"B": weight, "C": weight / 2}


def one_head(inputs: dict[str, Any]) -> dict[str, Any]:
    return inputs | {"delta": inputs["delta"][:, :1], "delta_bias": inputs["delta_bias"][:1]}


CHANNELS: Split = {"u": 1, "delta": 1, "A": 0, "D": 0, "z": 1, "delta_bias": 0, "initial_state": 1}
FULL: dict[str, Any] = {"decay_gate": True, "initial_state": True, "discretization": "zoh"}
# A public function, its inputs, how they are split, and the dimension that its first result is split over.
CASES: dict[str, tuple[Callable[..., Any], Callable[[], dict[str, Any]], Split, int]] = {
    "scan, channels": (scan, lambda: make_scan_inputs(**FULL), CHANNELS, 1),
    "scan, channels in groups": (
        scan,
        lambda: make_scan_inputs(groups=2, layout="channel", **FULL),
        CHANNELS | {"B": 1, "C": 1},
        1,
    ),
    "scan, batch": (
        scan,
        lambda: make_scan_inputs(**FULL),
        dict.fromkeys(["u", "delta", "B", "C", "z", "decay_gate", "initial_state"], 0),
        0,
    ),
    "scan, weights of all steps over channels": (
        scan,
        lambda: make_scan_inputs(**FULL) | constant(),
        CHANNELS | {"B": 0, "C": 0},
        1,
    ),
    "scan, weights of all steps over the batch": (
        scan,
        lambda: make_scan_inputs(**FULL) | constant(),
        dict.fromkeys(["u", "delta", "z", "decay_gate", "initial_state"], 0),
        0,
    ),
    "scan, one delta for all channels": (
        scan,
        lambda: one_head(make_scan_inputs(**FULL)),
        {name: dim for name, dim in CHANNELS.items() if name not in ("delta", "delta_bias")},
        1,
    ),
    "conv, channels": (
        conv,
        lambda: make_conv_inputs(initial_states=True),
        {"x": 1, "weight": 0, "bias": 0, "initial_states": 1},
        1,
    ),
    "conv, batch": (conv, lambda: make_conv_inputs(layout="channel"), {"x": 0}, 0),
    "recurrence, leading dimension": (
        recurrence,
        make_linear_recurrence_inputs,
        {"a": 1, "b": 1, "initial_state": 1},
        1,
    ),
    "norm, rows": (norm, lambda: make_norm_inputs(residual=True), {"x": 1, "residual": 1}, 1),
    "gated norm, batch": (gated, lambda: make_norm_inputs(z=True), {"x": 0, "z": 0}, 0),
}


def compare(name: str, mesh: DeviceMesh) -> None:
    function, make, split, result_dim = CASES[name]
    plain = {k: v.requires_grad_() if isinstance(v, Tensor) else v for k, v in make().items()}
    parted = {
        key: distribute_tensor(
            value.detach().contiguous(), mesh, [Shard(split[key]) if key in split else Replicate()]
        ).requires_grad_()
        if isinstance(value, Tensor)
        else value
        for key, value in plain.items()
    }
    wanted, got = function(**plain), function(**parted)
    assert got[0].placements == (Shard(result_dim),), got[0].placements
    sum(result.pow(2).sum() for result in wanted).backward()
    sum(result.pow(2).sum() for result in got).backward()
    for left, right in zip(got, wanted, strict=True):
        torch.testing.assert_close(left.full_tensor(), right)
    for key, value in plain.items():
        if isinstance(value, Tensor):
            gradient = parted[key].grad
            assert isinstance(gradient, DTensor)
            torch.testing.assert_close(gradient.full_tensor(), value.grad, rtol=1e-4, atol=1e-4)


UPDATES: dict[str, tuple[Callable[..., Tensor], dict[str, Any], Split]] = {
    "state": (
        mamba_aot.selective_state_update,
        make_state_update_inputs(slots=5),
        {"state": 1, "x": 1, "dt": 1, "A": 0, "D": 0, "z": 1, "dt_bias": 0},
    ),
    "state with heads": (
        mamba_aot.selective_state_update,
        make_state_update_inputs(steps=3, heads=4, groups=2),
        {"state": 1, "x": 2, "dt": 2, "A": 0, "B": 2, "C": 2, "D": 0, "z": 2, "dt_bias": 0},
    ),
    "conv_state": (
        mamba_aot.causal_conv1d_update,
        make_conv_update_inputs(steps=2),
        {"x": 1, "conv_state": 1, "weight": 0, "bias": 0},
    ),
}


def compare_update(name: str, mesh: DeviceMesh) -> None:
    function, inputs, split = UPDATES[name]
    written = name.split()[0]

    def distributed(split: Split) -> dict[str, Any]:
        return {
            key: distribute_tensor(
                value.contiguous(), mesh, [Shard(split[key]) if key in split else Replicate()]
            )
            if isinstance(value, Tensor)
            else value
            for key, value in inputs.items()
        }

    parted = distributed(split)
    # DTensor makes a RuntimeError of whatever a rule raises; the public function makes it a ValueError again.
    with pytest.raises(ValueError, match=f"{written} is written in place, so it must be split over channels"):
        function(**distributed({key: dim for key, dim in split.items() if key != written}))
    plain = {key: value.clone() if isinstance(value, Tensor) else value for key, value in inputs.items()}
    got, wanted = function(**parted), function(**plain)
    assert isinstance(got, DTensor)
    torch.testing.assert_close(got.full_tensor(), wanted)
    torch.testing.assert_close(parted[written].full_tensor(), plain[written])


def work(rank: int, meeting_place: str) -> None:
    importlib.import_module("mamba_aot.distributed")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting_place}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    for run, names in ((compare, CASES), (compare_update, UPDATES)):
        for name in names:
            try:
                run(name, mesh)
            except Exception as error:
                raise AssertionError(f"{name}: {error}") from error
    dist.barrier()
    # Gloo's threads may still be letting go of tensors; an interpreter that is ending would abort them.
    os._exit(0)


def test_two_processes_compute_what_one_does(tmp_path: Path) -> None:
    mp.spawn(work, args=(str(tmp_path / "meeting_place"),), nprocs=2)  # type: ignore[attr-defined]
