"""Eager PyTorch truth of every op: what the compiled kernels must compute, in plain tensor algebra.

Nothing here is fast and nothing here calls the compiled library. Every function takes the arguments of the
public function of the same name without `_ref`, any floating dtype, and is differentiable by autograd.
Arithmetic runs in float64 when the sequence is float64 and in float32 otherwise; results are rounded to the
dtype of the sequence once, at the end. Two uses follow: in float64 it is the truth, and in the dtype
under test it is the independent implementation whose error a kernel's error is measured against.

Glossary (sizes: B batch, D channels, L length, N state, G groups, W conv width)

    symbol  argument        meaning
    x_t     u, x            the sequence, one number per channel and step
    Δ_t     delta, dt       step size of channel and step, after bias and softplus
    A       A               diagonal of the state matrix, one number per channel and state, Re A < 0
    B_t     B               input weights of step t, per state; all channels of a group share them
    C_t     C               output weights of step t, per state; all channels of a group share them
    g_t     decay_gate      factor in (0, 1) on the decay of step t, per state; 1 when absent
    ā_t     a               decay of one step, g_t exp(Δ_t A)
    φ_t     phi             input factor of one step: Δ_t (euler) or (exp(Δ_t A) - 1) / A (zoh)
    h_t     h               state after step t
    D       D               skip weight per channel
    z_t     z               output gate, through SiLU

    h_t = ā_t h_{t-1} + φ_t B_t x_t,    y_t = C_t h_t + D x_t,    out_t = y_t silu(z_t)

`linear_recurrence` is the first of these lines alone, h_t = a_t h_{t-1} + b_t, with a and b given.

Sources: Gu & Dao, "Mamba" (arXiv 2312.00752), eq. 2 (recurrence), eq. 4 (zero-order hold), Algorithm 2 (input
dependent Δ, B, C); the published code takes φ = Δ for B, which is "euler" here. Gu, Gupta, Goel & Ré, "S4D"
(arXiv 2206.11893): diagonal A, zero-order hold, and the output 2 Re(C h) of a complex state that stands for
itself and its conjugate. The decay gate is this package's addition.
"""

from mamba_aot.reference._conv import (
    causal_conv1d_ref,
    causal_conv1d_update_ref,
    causal_conv1d_varlen_states_ref,
)
from mamba_aot.reference._mamba1_sequence import mamba1_sequence_ref
from mamba_aot.reference._mamba1_step import mamba1_step_ref
from mamba_aot.reference._mamba_inner import mamba_inner_ref
from mamba_aot.reference._norm import (
    layer_norm_ref,
    layernorm_ref,
    rms_norm_ref,
    rmsnorm_ref,
)
from mamba_aot.reference._scan import (
    expm1_ratio,
    linear_recurrence_ref,
    selective_scan_ref,
)
from mamba_aot.reference._state_update import (
    selective_state_step_ref,
    selective_state_update_ref,
)

__all__ = [
    "causal_conv1d_ref",
    "causal_conv1d_update_ref",
    "causal_conv1d_varlen_states_ref",
    "expm1_ratio",
    "layer_norm_ref",
    "layernorm_ref",
    "linear_recurrence_ref",
    "mamba1_sequence_ref",
    "mamba1_step_ref",
    "mamba_inner_ref",
    "rms_norm_ref",
    "rmsnorm_ref",
    "selective_scan_ref",
    "selective_state_step_ref",
    "selective_state_update_ref",
]
