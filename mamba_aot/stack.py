"""The layers that a model stacks: each norms the residual, and hands on what its mixer made and the residual.

The addition of the two is left to the norm of the layer that follows, which reads both anyway.
"""

import math

import torch
from torch import Tensor, nn

from mamba_aot.attention import Attention, KeyValueState
from mamba_aot.config import MambaLMConfig
from mamba_aot.fused_step import Handed, fused_step
from mamba_aot.mamba1 import Mamba1
from mamba_aot.mlp import GatedMLP
from mamba_aot.modules import Mamba, MambaState
from mamba_aot.norms import LayerNorm, RMSNorm
from mamba_aot.padding import Padding

# What a layer remembers between two calls; an MLP nothing.
LayerState = MambaState | KeyValueState | None


class Layer(nn.Module):
    """One layer of a `MambaLM`, of the kind that a letter of `MambaLMConfig.layers` names."""

    def __init__(
        self,
        config: MambaLMConfig,
        kind: str,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.norm = make_norm(config, device, dtype)
        self.in_fp32 = config.residual_in_fp32
        self.mixer = _make_mixer(config, kind, device, dtype)

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None,
        state: LayerState = None,
        padding: Padding | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """[B, L, d_model] twice to the same twice; `residual` is None in front of the first layer."""
        x, residual = self.norm.add(x, residual, self.in_fp32)
        if isinstance(self.mixer, GatedMLP):
            return self.mixer(x), residual
        return self.mixer(x, state=state, padding=padding, cu_seqlens=cu_seqlens), residual

    def step(self, given: Handed, state: LayerState, next_norm: RMSNorm | LayerNorm) -> Handed:
        """What came from the layer before to what `next_norm` or a later layer goes on with.

        Moves `state` on, in place.
        """
        fused = fused_step(self.norm, self.mixer, given, self.in_fp32, state, next_norm)
        if fused is not None:
            return fused
        x, residual, normed = given
        if not normed:
            x, residual = self.norm.add(x, residual, self.in_fp32)
        if isinstance(self.mixer, GatedMLP):
            return Handed(self.mixer(x), residual)
        if isinstance(self.mixer, Mamba1):
            # Its step has the signature of mamba_ssm's.
            assert isinstance(state, MambaState)
            return Handed(self.mixer.step(x.unsqueeze(1), state.conv, state.ssm)[0].squeeze(1), residual)
        return Handed(self.mixer.step(x, state), residual)  # pyright: ignore[reportArgumentType], made by it

    def allocate_state(
        self,
        batch: int,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        max_length: int | None,
        ssm_dtype: torch.dtype | None,
    ) -> LayerState:
        """An empty state; only attention needs `max_length`, only published blocks take an `ssm_dtype`."""
        if isinstance(self.mixer, GatedMLP):
            return None
        if isinstance(self.mixer, Mamba1):
            return self.mixer.allocate_state(batch, device, dtype, ssm_dtype=ssm_dtype)
        if isinstance(self.mixer, Mamba):
            if ssm_dtype is not None:
                raise ValueError(
                    "MambaLM: ssm_dtype is for published blocks (layers 'm'), "
                    f"this model has others too; leave it out, got {ssm_dtype}"
                )
            return self.mixer.allocate_state(batch, device, dtype)
        if max_length is None:
            raise ValueError(
                "MambaLM: attention keeps keys and values of every token; "
                "give allocate_state a max_length, the most tokens of a sequence"
            )
        return self.mixer.allocate_state(batch, device, dtype, max_length=max_length)

    def scale_output(self, n_layer: int) -> None:
        """Starts the mixer's last projection smaller by sqrt(n_layer).

        So many outputs add up in the residual: its variance then does not grow with their number.
        """
        if isinstance(self.mixer, Mamba):
            nn.init.xavier_normal_(self.mixer.out_proj.weight, gain=1 / math.sqrt(n_layer))
            return
        if isinstance(self.mixer, Mamba1):
            nn.init.kaiming_uniform_(self.mixer.out_proj.weight, a=math.sqrt(5))
            output = self.mixer.out_proj
        else:
            output = self.mixer.o_proj if isinstance(self.mixer, Attention) else self.mixer.fc2
            nn.init.xavier_normal_(output.weight)
        with torch.no_grad():
            output.weight.div_(math.sqrt(n_layer))


def make_norm(
    config: MambaLMConfig, device: torch.device | str | None, dtype: torch.dtype | None
) -> RMSNorm | LayerNorm:
    """The norm that the configuration names."""
    norm = RMSNorm if config.norm == "rms" else LayerNorm
    return norm(config.ssm.d_model, config.norm_eps, device=device, dtype=dtype)


def _make_mixer(
    config: MambaLMConfig, kind: str, device: torch.device | str | None, dtype: torch.dtype | None
) -> Mamba | Mamba1 | Attention | GatedMLP:
    ssm = config.ssm
    if kind == "M":
        return Mamba(ssm, device=device, dtype=dtype)
    if kind == "a":
        return Attention(ssm.d_model, config.attention, device=device, dtype=dtype)
    if kind == "f":
        return GatedMLP(ssm.d_model, config.mlp, device=device, dtype=dtype)
    return Mamba1(
        ssm.d_model,
        ssm.d_state,
        ssm.d_conv,
        ssm.expand,
        ssm.rank,
        ssm.dt_min,
        ssm.dt_max,
        config.mamba1.dt_init,
        config.mamba1.dt_scale,
        config.mamba1.dt_init_floor,
        ssm.conv_bias,
        ssm.bias,
        device=device,
        dtype=dtype,
        mixer_rms_eps=config.mamba1.mixer_rms_eps,
    )
