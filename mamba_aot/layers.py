"""The layers that a Mamba block is made of, and the options that choose them.

Symbols are those of `mamba_aot.reference`; sizes: B batch, L length, D = expand * d_model inner channels,
N state, R rank of Δ, W conv width. Every sequence is channel-last, [B, L, channels], as linear layers want
it; the ops take strided views of it, so nothing is transposed in memory.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mamba_aot.ops.causal_conv1d import causal_conv1d_fn, causal_conv1d_update
from mamba_aot.padding import Padding


@dataclass(frozen=True)
class SSMConfig:
    """What a `Mamba` block is made of.

    Attributes:
        d_model: Width of the sequence that goes in and out.
        d_state: State size N of every inner channel.
        d_conv: Width W of the causal convolution, 1 to 64; up to 4 is fast on a GPU.
        expand: Inner channels per channel of `d_model`.
        dt_rank: Rank R of the projection to Δ; "auto" is d_model / 16, rounded up.
        dt_min: Smallest Δ at the start.
        dt_max: Largest Δ at the start; Δ starts log-uniform between the two.
        A_real: Whether the diagonal of A is real (S4D-Real start) instead of complex (S4D-Lin start).
        conv_bias: Whether the convolution has a bias.
        bias: Whether the projections in and out have a bias.
        discretization: "zoh" or "euler".
        decay_gate: Whether the decay of every step is multiplied by a learned gate.
    """

    d_model: int = 512
    d_state: int = 16
    d_conv: int = 4
    expand: int = 2
    dt_rank: int | Literal["auto"] = "auto"
    dt_min: float = 1e-3
    dt_max: float = 1e-1
    A_real: bool = False
    conv_bias: bool = True
    bias: bool = False
    discretization: Literal["zoh", "euler"] = "zoh"
    decay_gate: bool = True

    def __post_init__(self) -> None:
        for name in ("d_model", "d_state", "d_conv", "expand"):
            _require_count("SSMConfig", name, getattr(self, name))
        if self.dt_rank != "auto":
            _require_count("SSMConfig", "dt_rank", self.dt_rank)
        if self.d_conv > 64:
            raise ValueError(f"SSMConfig: d_conv must be 1 to 64, got {self.d_conv!r}")
        if not 0 < self.dt_min <= self.dt_max:
            raise ValueError(
                f"SSMConfig: dt_min and dt_max must hold 0 < dt_min <= dt_max, "
                f"got {self.dt_min!r} and {self.dt_max!r}"
            )
        if self.discretization not in ("zoh", "euler"):
            raise ValueError(
                f'SSMConfig: discretization must be "zoh" or "euler", got {self.discretization!r}'
            )

    @property
    def d_inner(self) -> int:
        """Inner channels D."""
        return self.expand * self.d_model

    @property
    def rank(self) -> int:
        """Rank R of the projection to Δ, with "auto" resolved."""
        return math.ceil(self.d_model / 16) if self.dt_rank == "auto" else self.dt_rank


class CausalConv1d(nn.Module):
    """Causal depthwise convolution, then SiLU; weight [D, 1, W] as in `nn.Conv1d`."""

    def __init__(
        self,
        channels: int,
        width: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.channels, self.width = channels, width
        self.weight = nn.Parameter(torch.empty(channels, 1, width, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(channels, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Kaiming-normal taps, zero bias."""
        nn.init.kaiming_normal_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(
        self,
        x: Tensor,
        state: Tensor | None = None,
        *,
        padding: Padding | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> Tensor:
        """Convolves [B, L, D].

        Args:
            x: [B, L, D]; [1, L, D] with `cu_seqlens`.
            state: The steps before, oldest first, [B, D, W - 1] or longer; with `cu_seqlens` a row for each
                sequence. Its last W - 1 steps go in front and are overwritten with the last ones of `x`.
            padding: Rows of different lengths. Padding comes out as zero and leaves no trace in `state`.
            cu_seqlens: Where the sequences packed in one row end, int32 [sequences + 1].
        """
        weight = self.weight.squeeze(1)
        options: dict[str, Any] = dict(
            activation="silu", seq_idx=None if padding is None else padding.seq_idx, cu_seqlens=cu_seqlens
        )
        if state is None:
            y = causal_conv1d_fn(x.transpose(1, 2), weight, self.bias, **options)
            assert isinstance(y, Tensor)
            return y.transpose(1, 2)
        kept = state[..., state.shape[-1] - (self.width - 1) :]
        # A copy, because autograd keeps what the convolution read and `state` is overwritten below.
        before = kept.to(x.dtype, copy=True)
        y, last = causal_conv1d_fn(
            x.transpose(1, 2),
            weight,
            self.bias,
            initial_states=before,
            return_final_states=True,
            **options,
        )
        if padding is not None:
            # The convolution's own answer for a row without tokens is zero.
            last = torch.where((padding.lengths > 0)[:, None, None], last, before)
        kept.copy_(last.detach())
        return y.transpose(1, 2)

    def step(self, x: Tensor, state: Tensor) -> Tensor:
        """Convolves one step, [B, D], with the steps in `state`, and shifts it into `state`, in place."""
        y = causal_conv1d_update(
            x.to(state.dtype), state, self.weight.squeeze(1), self.bias, activation="silu"
        )
        return y.to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.channels}, width={self.width}, bias={self.bias is not None}"


class SelectiveProjection(nn.Module):
    """Makes Δ and the input-dependent parts of the gate, B and C from the convolved sequence."""

    def __init__(
        self, config: SSMConfig, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.config = config
        n, weights = config.d_state, config.d_state if config.A_real else 2 * config.d_state
        self.sizes = [config.rank, n if config.decay_gate else 0, weights, weights]
        self.x_proj = nn.Linear(config.d_inner, sum(self.sizes), bias=False, device=device, dtype=dtype)
        self.dt_proj = nn.Linear(config.rank, config.d_inner, bias=False, device=device, dtype=dtype)
        # Added in float32 by the scan, not by dt_proj, which under autocast would round its small values.
        self.dt_bias = nn.Parameter(torch.empty(config.d_inner, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-normal weights; softplus(dt_bias) log-uniform in [dt_min, dt_max]."""
        nn.init.xavier_normal_(self.x_proj.weight)
        nn.init.xavier_normal_(self.dt_proj.weight)
        low, high = math.log(self.config.dt_min), math.log(self.config.dt_max)
        with torch.no_grad():
            dt = torch.empty_like(self.dt_bias, dtype=torch.float32).uniform_(low, high).exp()
            # log(exp(dt) - 1), the inverse of softplus, written so that a small dt loses no digits.
            self.dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """Projects [..., D] to delta, A_mod, B_mod, C_mod.

        Returns:
            delta: Δ after bias and softplus, [..., D], positive.
            A_mod: The decay gate before its sigmoid, [..., N], or None without a gate.
            B_mod, C_mod: What is added to B0 and C0, [..., N], complex unless `A_real`.
        """
        delta, gate, B, C = self.raw(x)
        if not self.config.A_real:
            B, C = torch.view_as_complex(B.contiguous()), torch.view_as_complex(C.contiguous())
        return F.softplus(wide(delta) + wide(self.dt_bias)), gate, B, C

    def raw(self, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """As the ops want it: delta without bias and softplus, complex B_mod, C_mod as pairs [..., N, 2]."""
        low, gate, B, C = self.x_proj(x).split(self.sizes, dim=-1)
        delta = self.dt_proj(low)
        B, C = wide(B), wide(C)
        if not self.config.A_real:
            B, C = B.unflatten(-1, (-1, 2)), C.unflatten(-1, (-1, 2))
        return delta, wide(gate) if self.config.decay_gate else None, B, C


def wide(tensor: Tensor) -> Tensor:
    """`tensor` in float32, or as it is if it is wider."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _require_count(owner: str, name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{owner}: {name} must be an integer of at least 1, got {value!r}")
