"""The CPU kernels exist once per instruction set; each must be right, whichever this machine would take."""

import os
import platform
import subprocess
import sys

import pytest

SCRIPT = """
import functools
import torch
import mamba_aot
from mamba_aot import reference, testing

recur = mamba_aot.linear_recurrence
scan = functools.partial(mamba_aot.selective_scan_fn, return_last_state=True)
scan_ref = functools.partial(reference.selective_scan_ref, return_last_state=True)
full = dict(decay_gate=True, initial_state=True, discretization="zoh", groups=2)
for options in ({}, full, {"is_complex": True}, {"is_complex": True, **full}, {"state": 3, "dim": 19}):
    for layout in ("seq", "channel"):
        inputs = testing.make_scan_inputs(length=70, layout=layout, **options)
        testing.assert_matches_reference(scan, scan_ref, inputs)
for layout in ("seq", "channel"):
    inputs = testing.make_conv_inputs(dim=19, layout=layout, initial_states=True)
    testing.assert_matches_reference(mamba_aot.causal_conv1d_fn, reference.causal_conv1d_ref, inputs)
for dtype in (torch.float32, torch.bfloat16, torch.complex64):
    for layout in ("seq", "channel"):
        inputs = testing.make_linear_recurrence_inputs(2, 19, 70, dtype=dtype, layout=layout)
        testing.assert_matches_reference(recur, reference.linear_recurrence_ref, inputs)
for options in ({"residual": True, "prenorm": True}, {"channels": 1000, "layout": "seq"}):
    inputs = testing.make_norm_inputs(**options)
    testing.assert_matches_reference(mamba_aot.layer_norm_fn, reference.layer_norm_ref, inputs)
inputs = testing.make_norm_inputs(z=True, group_size=12)
testing.assert_matches_reference(mamba_aot.rmsnorm_fn, reference.rmsnorm_ref, inputs)
rows, ends = [[40, -3, 7, 20], [70]], [40, 0, 30]
for options in ({}, {"width": 9}, {"seq_idx": rows}, {"cu_seqlens": ends, "width": 9}):
    for layout in ("seq", "channel"):
        inputs = testing.make_conv_inputs(dim=19, layout=layout, initial_states=True, **options)
        testing.assert_matches_reference(mamba_aot.causal_conv1d_fn, reference.causal_conv1d_ref, inputs)
for update, update_ref, inputs, state in (
    (
        mamba_aot.causal_conv1d_update,
        reference.causal_conv1d_update_ref,
        testing.make_conv_update_inputs(dim=19, steps=3),
        "conv_state",
    ),
    (
        mamba_aot.selective_state_update,
        reference.selective_state_update_ref,
        testing.make_state_update_inputs(dim=19, is_complex=True, decay_gate=True, discretization="zoh"),
        "state",
    ),
    (
        mamba_aot.selective_state_update,
        reference.selective_state_update_ref,
        testing.make_state_update_inputs(dim=38, heads=2, steps=3, slots=5, targets=True),
        "state",
    ),
):
    testing.assert_matches_reference(update, update_ref, inputs, backward=False, written=[state])
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other machines have one instruction set")
@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_narrower_instruction_sets_are_right(isa: str) -> None:
    environment = os.environ | {"MAMBA_AOT_CPU_ISA": isa}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
