"""Inputs and comparisons for tests of the ops: the ones this package's own tests use."""

from mamba_aot.testing.closeness import (
    assert_close_to_fp64,
    assert_matches_reference,
    compare_with_reference,
    measure_against_fp64,
    results_of,
)
from mamba_aot.testing.inner_inputs import make_mamba_inner_inputs
from mamba_aot.testing.inputs import (
    LAYOUTS,
    make_conv_inputs,
    make_conv_update_inputs,
    make_linear_recurrence_inputs,
    make_norm_inputs,
    make_scan_inputs,
    make_state_update_inputs,
    place,
)

__all__ = [
    "LAYOUTS",
    "assert_close_to_fp64",
    "assert_matches_reference",
    "compare_with_reference",
    "make_conv_inputs",
    "make_conv_update_inputs",
    "make_linear_recurrence_inputs",
    "make_mamba_inner_inputs",
    "make_norm_inputs",
    "make_scan_inputs",
    "make_state_update_inputs",
    "measure_against_fp64",
    "place",
    "results_of",
]
