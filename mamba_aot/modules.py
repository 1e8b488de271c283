"""The Mamba block and the state it carries from token to token: `forward` takes a sequence, `step` a token.

Symbols and sizes are those of `mamba_aot.layers`.
"""

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from mamba_aot.layers import CausalConv1d, SelectiveProjection, SSMConfig, wide
from mamba_aot.norms import RMSNorm
from mamba_aot.ops.selective_scan import selective_scan_fn
from mamba_aot.ops.state_update import selective_state_update
from mamba_aot.padding import Padding
from mamba_aot.reference import expm1_ratio


@dataclass
class MambaState:
    """What one `Mamba` block remembers between two calls; its size does not depend on the length.

    Attributes:
        conv: The last W - 1 inputs of the convolution, oldest first, [B, D, W - 1], dtype of the activations.
        ssm: State of the scan, [B, D, N], complex64, or float32 if `A_real` (complex128 or float64 in a
            float64 block).
    """

    conv: Tensor
    ssm: Tensor


class Mamba(nn.Module):
    """The Mamba block with a complex diagonal state, zero-order hold and a gate on the decay.

    With z and x the two halves of in_proj(input), x convolved, and Δ, A_mod, B_mod, C_mod = s_proj(x):

        g_t = sigmoid(A_mod_t),  B_t = B0 + B_mod_t,  C_t = C0 + C_mod_t
        h_t = g_t exp(Δ_t A) h_{t-1} + (exp(Δ_t A) - 1) / A B_t x_t
        y_t = 2 Re(sum_n C_t h_t) + D x_t,  output_t = out_proj(y_t silu(z_t))

    A is -exp(A_log_real) + i A_imag, [D, N], and starts as S4D-Lin: -1/2 + i π n. With `A_real` everything
    is real, y_t = sum_n C_t h_t + D x_t, and A starts as S4D-Real: -(n + 1). B0 and C0, [N], are shared by
    all channels.

    `forward` and `step` run the fused ops and never hold anything of size B L D N. The component calls
    `conv1d`, `s_proj`, `discretization` and `selective_scan` do the same in pieces, to look at and to
    change:

        x, z = mamba.in_proj(inputs).chunk(2, dim=-1)
        x = mamba.conv1d(x)
        delta, A_mod, B_mod, C_mod = mamba.s_proj(x)
        A_disc, B_disc = mamba.discretization(delta, A_mod, B_mod)
        y = mamba.selective_scan(x, delta, A_disc, B_disc, mamba.C0 + C_mod)
        output = mamba.out_proj(y * torch.nn.functional.silu(z))

    Parameters are real: B_base and C_base hold B0 and C0 as (re, im) pairs, [N, 2], so that optimizers,
    `.half()` and safetensors treat them as any other; `A`, `B0` and `C0` give the values they stand for, in
    float32 or wider.

    Args:
        config: The sizes and options; or give its fields by keyword, `Mamba(d_model=256, d_state=8)`.
        device: Where the parameters live.
        dtype: Dtype of the parameters.

    Source: Gu & Dao, "Mamba", arXiv 2312.00752, section 3.4; Gu, Gupta, Goel & Ré, "S4D", arXiv 2206.11893,
    for A.
    """

    def __init__(
        self,
        config: SSMConfig | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **fields,
    ) -> None:
        super().__init__()
        if config is not None and not isinstance(config, SSMConfig):
            raise TypeError(
                f"Mamba: config must be an SSMConfig, got {type(config).__name__}; "
                "write Mamba(SSMConfig(d_model=...))"
            )
        config = SSMConfig(**{**(asdict(config) if config else {}), **fields})
        self.config = config
        d, n = config.d_inner, config.d_state
        self.in_proj = nn.Linear(config.d_model, 2 * d, bias=config.bias, device=device, dtype=dtype)
        self.conv1d = CausalConv1d(d, config.d_conv, bias=config.conv_bias, device=device, dtype=dtype)
        self.s_proj = SelectiveProjection(config, device=device, dtype=dtype)
        self.A_log_real = nn.Parameter(torch.empty(d, n, device=device, dtype=dtype))
        self.A_imag = None if config.A_real else nn.Parameter(torch.empty(d, n, device=device, dtype=dtype))
        weights = (n,) if config.A_real else (n, 2)
        self.B_base = nn.Parameter(torch.empty(weights, device=device, dtype=dtype))
        self.C_base = nn.Parameter(torch.empty(weights, device=device, dtype=dtype))
        self.D = nn.Parameter(torch.empty(d, device=device, dtype=dtype))
        self.out_proj = nn.Linear(d, config.d_model, bias=config.bias, device=device, dtype=dtype)
        # A while `MambaLM.fixed_decays` holds it.
        self.fixed_A: Tensor | None = None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The start of this block's own parameters and its linears; conv1d and s_proj start themselves."""
        for linear in (self.in_proj, self.out_proj):
            nn.init.xavier_normal_(linear.weight)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
        n = torch.arange(self.config.d_state, dtype=torch.float32)
        with torch.no_grad():
            if self.A_imag is None:
                self.A_log_real.copy_(torch.log(n + 1).expand_as(self.A_log_real))
                self.B_base.fill_(1)
            else:
                self.A_log_real.fill_(math.log(0.5))
                self.A_imag.copy_((math.pi * n).expand_as(self.A_imag))
                self.B_base.copy_(torch.tensor([1.0, 0.0]).expand_as(self.B_base))
            # Unit variance for a complex number as for a real one.
            nn.init.normal_(self.C_base, std=1.0 if self.config.A_real else math.sqrt(0.5))
            self.D.fill_(1)

    @property
    def A(self) -> Tensor:
        """The continuous diagonal state matrix, [D, N], complex unless `A_real`."""
        real = -torch.exp(wide(self.A_log_real))
        return real if self.A_imag is None else torch.complex(real, wide(self.A_imag))

    @property
    def B0(self) -> Tensor:
        """What every step's input weights start from, [N], complex unless `A_real`."""
        return wide(self.B_base) if self.config.A_real else torch.view_as_complex(wide(self.B_base))

    @property
    def C0(self) -> Tensor:
        """What every step's output weights start from, [N], complex unless `A_real`."""
        return wide(self.C_base) if self.config.A_real else torch.view_as_complex(wide(self.C_base))

    def forward(
        self,
        x: Tensor,
        state: MambaState | None = None,
        *,
        padding: Padding | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> Tensor:
        """Runs the block over a sequence.

        Args:
            x: [B, L, d_model], L may be 0.
            state: Where the sequence continues from. It is overwritten with the state after the last step,
                without gradient, so a long sequence can be given in pieces and a prompt can be read before
                `step`.
            padding: Rows of different lengths. Padding changes no state, and its own output means nothing.
            cu_seqlens: Where the sequences packed in one row, [1, L, d_model], end: int32 [sequences + 1], 0
                and then the lengths summed up. States have a row for each sequence.

        Returns:
            [B, L, d_model].

        Raises:
            ValueError: The shape of `x` or of `state` is not as above.
        """
        self._require(x, ("batch", "length"), state, cu_seqlens)
        x, z = self.in_proj(x).chunk(2, dim=-1)  # [B, L, D]
        x = self.conv1d(x, None if state is None else state.conv, padding=padding, cu_seqlens=cu_seqlens)
        delta, gate, B, C = self._select(x)
        if padding is not None:
            delta = padding.without_step(delta)
            gate = None if gate is None else gate.masked_fill(padding.absent.unsqueeze(-1), 1)
        result = selective_scan_fn(
            x.transpose(1, 2),
            delta.transpose(1, 2),
            self.A if self.fixed_A is None or torch.is_grad_enabled() else self.fixed_A,
            B.transpose(1, 2),
            C.transpose(1, 2),
            D=self.D,
            z=z.transpose(1, 2),
            delta_bias=self.s_proj.dt_bias,
            delta_softplus=True,
            return_last_state=state is not None,
            decay_gate=None if gate is None else gate.transpose(1, 2),
            discretization=self.config.discretization,
            initial_state=None if state is None else state.ssm,
            cu_seqlens=cu_seqlens,
        )
        if state is None:
            assert isinstance(result, Tensor)
            y = result
        else:
            y, last_state = result
            state.ssm.copy_(last_state.detach())
        return self.out_proj(y.transpose(1, 2))

    @torch.no_grad()
    def step(self, x: Tensor, state: MambaState) -> Tensor:
        """Runs the block over one step, [B, d_model] to [B, d_model], and moves `state` on, in place.

        Step after step this equals `forward` over the whole sequence; nothing is recorded for autograd.
        """
        self._require(x, ("batch",), state)
        x, z = self.in_proj(x).chunk(2, dim=-1)  # [B, D]
        x = self.conv1d.step(x, state.conv)
        delta, gate, B, C = self._select(x)
        y = selective_state_update(
            state.ssm,
            x,
            delta,
            self.A if self.fixed_A is None else self.fixed_A,
            B,
            C,
            D=self.D,
            z=z,
            dt_bias=self.s_proj.dt_bias,
            dt_softplus=True,
            decay_gate=gate,
            discretization=self.config.discretization,
        )
        return self.out_proj(y)

    def allocate_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> MambaState:
        """A zero state for `batch` sequences.

        Args:
            batch: Number of sequences.
            device: Defaults to the device of the weights.
            dtype: Of the kept convolution inputs; defaults to the dtype of the weights. The scan's state is
                always float32 pairs or wider.
        """
        weight = self.in_proj.weight
        device = weight.device if device is None else torch.device(device)
        dtype = weight.dtype if dtype is None else dtype
        real = torch.promote_types(dtype, torch.float32)
        d, n = self.config.d_inner, self.config.d_state
        return MambaState(
            conv=torch.zeros(batch, d, self.config.d_conv - 1, device=device, dtype=dtype),
            ssm=torch.zeros(
                batch, d, n, device=device, dtype=real if self.config.A_real else real.to_complex()
            ),
        )

    def discretization(
        self, delta: Tensor, A_mod: Tensor | None = None, B_mod: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Discretizes A and B for every step, materialised: 2 B L D N numbers, for study.

        Args:
            delta: Δ, positive, [B, L, D].
            A_mod: Gate on the decay before its sigmoid, [B, L, N]; None leaves the decay ungated.
            B_mod: What is added to B0, [B, L, N]; None means B0 alone.

        Returns:
            A_disc = sigmoid(A_mod) exp(Δ A) and B_disc = φ B, both [B, L, D, N]; φ is (exp(Δ A) - 1) / A for
            "zoh" and Δ for "euler".
        """
        delta = wide(delta).unsqueeze(-1)
        w = delta * self.A
        A_disc = torch.exp(w)
        phi = delta if self.config.discretization == "euler" else delta * expm1_ratio(w)
        if A_mod is not None:
            A_disc = A_disc * torch.sigmoid(wide(A_mod)).unsqueeze(2)
        B = self.B0 if B_mod is None else (self.B0 + B_mod).unsqueeze(2)
        return A_disc, phi * B

    def selective_scan(self, x: Tensor, delta: Tensor, A_disc: Tensor, B_disc: Tensor, C: Tensor) -> Tensor:
        """Runs the recurrence on discretized weights, one step after the other, with the skip D x, without z.

        Args:
            x: [B, L, D].
            delta: Δ, [B, L, D]; only its shape is used, because `A_disc` and `B_disc` already hold its
                effect.
            A_disc, B_disc: From `discretization`, [B, L, D, N].
            C: Output weights C0 + C_mod, [B, L, N], or C0 alone, [N].

        Returns:
            y, [B, L, D], dtype of `x`.
        """
        if delta.shape != x.shape:
            raise ValueError(
                f"Mamba.selective_scan: delta must be shaped like x {list(x.shape)}, got {list(delta.shape)}"
            )
        inflow = B_disc * x.unsqueeze(-1)
        h = torch.zeros_like(inflow[:, 0]) if x.shape[1] else inflow.new_zeros(())
        states = []
        for a_t, inflow_t in zip(A_disc.unbind(1), inflow.unbind(1), strict=True):
            h = a_t * h + inflow_t
            states.append(h)
        h = torch.stack(states, dim=1) if states else inflow
        y = (h * (C if C.dim() == 1 else C.unsqueeze(2))).sum(-1)
        y = 2 * y.real if y.is_complex() else y
        return (y + wide(self.D) * x).to(x.dtype)

    def _select(self, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """Raw delta, decay gate, B and C of the ops for [..., D], with N last."""
        delta, gate, B, C = self.s_proj.raw(x)
        B, C = wide(self.B_base) + B, wide(self.C_base) + C
        if not self.config.A_real:
            B, C = torch.view_as_complex(B), torch.view_as_complex(C)
        return delta, None if gate is None else torch.sigmoid(gate), B, C

    def _require(
        self,
        x: Tensor,
        leading: tuple[str, ...],
        state: MambaState | None,
        cu_seqlens: Tensor | None = None,
    ) -> None:
        width = self.config.d_model
        if x.dim() != len(leading) + 1 or x.shape[-1] != width:
            raise ValueError(
                f"Mamba: the input must be [{', '.join(leading)}, d_model = {width}], got {list(x.shape)}"
            )
        rows = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
        if state is not None and state.ssm.shape[0] != rows:
            raise ValueError(
                f"Mamba: the state must be of the batch size of the input, {rows}, "
                f"got {state.ssm.shape[0]}; "
                f"allocate_state({rows}) makes one"
            )


class Block(nn.Module):
    """x + mixer(norm(x)): a `Mamba` behind an `RMSNorm`, with the residual around both."""

    def __init__(
        self,
        config: SSMConfig,
        norm_eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.norm = RMSNorm(config.d_model, norm_eps, device=device, dtype=dtype)
        self.mixer = Mamba(config, device=device, dtype=dtype)

    def forward(self, x: Tensor, state: MambaState | None = None) -> Tensor:
        """[B, L, d_model] to [B, L, d_model]; `state` as in `Mamba.forward`."""
        return x + self.mixer(self.norm(x), state)

    def step(self, x: Tensor, state: MambaState) -> Tensor:
        """[B, d_model] to [B, d_model]; `state` as in `Mamba.step`."""
        return x + self.mixer.step(self.norm(x), state)

    def allocate_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> MambaState:
        """A zero state; see `Mamba.allocate_state`."""
        return self.mixer.allocate_state(batch, device, dtype)
