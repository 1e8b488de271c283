"""Mamba for PyTorch whose GPU kernels were compiled when the package was built."""

from typing import TYPE_CHECKING

__all__ = [
    "Attention",
    "AttentionConfig",
    "Bidirectional",
    "Block",
    "DecodingGraphs",
    "GatedMLP",
    "GeneratedToken",
    "LayerNorm",
    "MLPConfig",
    "Mamba",
    "Mamba1",
    "Mamba1Config",
    "MambaLM",
    "MambaLMConfig",
    "MambaState",
    "RMSNorm",
    "SSMConfig",
    "causal_conv1d_fn",
    "causal_conv1d_update",
    "causal_conv1d_varlen_states",
    "copy_state",
    "from_pretrained",
    "generate",
    "layer_norm_fn",
    "layernorm_fn",
    "linear_recurrence",
    "load_state",
    "mamba_inner_fn",
    "preload",
    "rms_norm_fn",
    "rmsnorm_fn",
    "save_pretrained",
    "save_state",
    "selective_scan_fn",
    "selective_state_step",
    "selective_state_update",
    "stream",
]

# Why the public names can't be used, or nothing.
_reason = ""

try:
    from mamba_aot._native import preload
    from mamba_aot.attention import Attention, AttentionConfig
    from mamba_aot.bidirectional import Bidirectional
    from mamba_aot.checkpoint import from_pretrained, save_pretrained
    from mamba_aot.config import Mamba1Config, MambaLMConfig
    from mamba_aot.generation import (
        DecodingGraphs,
        GeneratedToken,
        copy_state,
        generate,
        load_state,
        save_state,
        stream,
    )
    from mamba_aot.layers import SSMConfig
    from mamba_aot.mamba1 import Mamba1
    from mamba_aot.mamba_inner import mamba_inner_fn
    from mamba_aot.mlp import GatedMLP, MLPConfig
    from mamba_aot.model import MambaLM
    from mamba_aot.modules import Block, Mamba, MambaState
    from mamba_aot.norms import LayerNorm, RMSNorm
    from mamba_aot.ops.causal_conv1d import (
        causal_conv1d_fn,
        causal_conv1d_update,
        causal_conv1d_varlen_states,
    )
    from mamba_aot.ops.linear_recurrence import linear_recurrence
    from mamba_aot.ops.rms_norm import layer_norm_fn, layernorm_fn, rms_norm_fn, rmsnorm_fn
    from mamba_aot.ops.selective_scan import selective_scan_fn
    from mamba_aot.ops.state_update import selective_state_step, selective_state_update
except ImportError as error:
    if not TYPE_CHECKING:
        # Raised again by every public name, not here: `mamba-aot doctor` must start to say what is wrong.
        _reason = str(error)

        def __getattr__(name: str) -> None:
            if name in __all__:
                raise ImportError(_reason)
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
