"""The published Mamba block: real diagonal state, Euler steps, the parameters of `mamba_ssm.Mamba`.

Symbols and sizes are those of `mamba_aot.layers`.
"""

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mamba_aot.layers import CausalConv1d, wide
from mamba_aot.mixing import mix
from mamba_aot.modules import MambaState
from mamba_aot.ops._boundary import state_dtype
from mamba_aot.ops._gradients import is_forward_mode, is_transformed, needs_gradient
from mamba_aot.ops.mamba1_sequence import mamba1_sequence
from mamba_aot.ops.selective_scan import selective_scan_fn
from mamba_aot.ops.state_update import selective_state_update
from mamba_aot.padding import Padding
from mamba_aot.plain import has_hooks, is_plain


class Mamba1(nn.Module):
    """The Mamba block of the published models; its `state_dict` is that of `mamba_ssm.Mamba`.

    With z and x the two halves of in_proj(input), x convolved, and low, B, C = x_proj(x):

        Δ_t = softplus(dt_proj(low_t)),  h_t = exp(Δ_t A) h_{t-1} + Δ_t B_t x_t,  A = -exp(A_log)
        output_t = out_proj((sum_n C_t h_t + D x_t) silu(z_t))

    Every projection that is anything but a plain linear layer is called as the module that it is, so one put
    in its place (an adapter, a quantized or a split linear) is used. A plain `dt_proj` is taken apart: the
    scan adds its bias in float32. What replaces it adds its bias itself, in its own precision.

    Args:
        d_model: Width of the sequence that goes in and out.
        d_state: State size N of every inner channel.
        d_conv: Width W of the causal convolution, 1 to 64; up to 4 is fast on a GPU.
        expand: Inner channels D per channel of `d_model`.
        dt_rank: Rank R of the projection to Δ; "auto" is d_model / 16, rounded up.
        dt_min, dt_max: Δ starts log-uniform between the two,
        dt_init_floor: and no smaller than this.
        dt_init: Start of dt_proj.weight, "random" (uniform) or "constant", of size
        dt_scale: times R^-1/2.
        conv_bias: Whether the convolution has a bias.
        bias: Whether the projections in and out have a bias.
        use_fast_path: Has no effect: the one path here is fast and calls the projections.
        layer_idx: Key of this block's states in `inference_params`.
        device: Where the parameters live.
        dtype: Dtype of the parameters.
        mixer_rms_eps: When given, low, B and C are divided by their root mean square, with this added to the
            mean square, as in FalconMamba.

    Source: signature, names and start of `mamba_ssm.Mamba`; Gu & Dao, "Mamba", arXiv 2312.00752, section 3.4;
    Zuo et al., "Falcon Mamba", arXiv 2410.05355, for `mixer_rms_eps`.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | Literal["auto"] = "auto",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init: Literal["random", "constant"] = "random",
        dt_scale: float = 1.0,
        dt_init_floor: float = 1e-4,
        conv_bias: bool = True,
        bias: bool = False,
        use_fast_path: bool = True,
        layer_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        mixer_rms_eps: float | None = None,
    ) -> None:
        super().__init__()
        if dt_init not in ("random", "constant"):
            raise ValueError(f'Mamba1: dt_init must be "random" or "constant", got {dt_init!r}')
        if not 0 < dt_min <= dt_max:
            raise ValueError(
                f"Mamba1: dt_min and dt_max must hold 0 < dt_min <= dt_max, got {dt_min!r} and {dt_max!r}"
            )
        self.d_model, self.d_state, self.d_conv, self.expand = d_model, d_state, d_conv, expand
        self.d_inner = expand * d_model
        self.dt_rank = math.ceil(d_model / 16) if dt_rank == "auto" else dt_rank
        self.dt_min, self.dt_max, self.dt_init_floor = dt_min, dt_max, dt_init_floor
        self.dt_init, self.dt_scale = dt_init, dt_scale
        self.layer_idx, self.mixer_rms_eps = layer_idx, mixer_rms_eps
        place: dict[str, Any] = dict(device=device, dtype=dtype)
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=bias, **place)
        self.conv1d = CausalConv1d(self.d_inner, d_conv, bias=conv_bias, **place)
        self.x_proj = nn.Linear(self.d_inner, self.dt_rank + 2 * d_state, bias=False, **place)
        self.dt_proj = nn.Linear(self.dt_rank, self.d_inner, bias=True, **place)
        # Float32 whatever `dtype` is, as published.
        self.A_log = nn.Parameter(torch.empty(self.d_inner, d_state, device=device))
        self.D = nn.Parameter(torch.empty(self.d_inner, device=device))
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias, **place)
        # A while `MambaLM.fixed_decays` holds it.
        self.fixed_A: Tensor | None = None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The start of `mamba_ssm.Mamba`; in_proj, x_proj and out_proj keep that of `nn.Linear`."""
        # That of nn.Conv1d: uniform within 1 / sqrt(W), weight and bias.
        bound = 1 / math.sqrt(self.d_conv)
        nn.init.uniform_(self.conv1d.weight, -bound, bound)
        if self.conv1d.bias is not None:
            nn.init.uniform_(self.conv1d.bias, -bound, bound)
        size = self.dt_rank**-0.5 * self.dt_scale
        if self.dt_init == "constant":
            nn.init.constant_(self.dt_proj.weight, size)
        else:
            nn.init.uniform_(self.dt_proj.weight, -size, size)
        low, high = math.log(self.dt_min), math.log(self.dt_max)
        with torch.no_grad():
            dt = torch.empty_like(self.dt_proj.bias, dtype=torch.float32).uniform_(low, high).exp()
            dt.clamp_(min=self.dt_init_floor)
            # log(exp(dt) - 1), the inverse of softplus, written so that a small dt loses no digits.
            self.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))
            states = torch.arange(1, self.d_state + 1, dtype=torch.float32, device=self.A_log.device)
            self.A_log.copy_(torch.log(states).expand_as(self.A_log))
            self.D.fill_(1)

    def forward(
        self,
        hidden_states: Tensor,
        inference_params: Any = None,
        *,
        state: MambaState | None = None,
        attention_mask: Tensor | None = None,
        padding: Padding | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> Tensor:
        """Runs the block over a sequence, or over the next piece of one.

        Args:
            hidden_states: [B, L, d_model], L may be 0.
            inference_params: The states of all layers as `mamba_ssm` keeps them: `key_value_memory_dict`
                maps `layer_idx` to a pair (conv, ssm), which is made if it is missing; `seqlen_offset` says
                how many tokens have been read. At 0 the states start from zero; later they are continued
                from, with as many tokens as there are. They are overwritten with the new ones.
            state: The same, of this layer: where the sequence continues from, overwritten with the state
                after the last step, without gradient. Not together with `inference_params`.
            attention_mask: Nonzero at tokens, [B, L]; the tokens of each row in one piece, padding before or
                behind. Padding changes no state, and its own output means nothing.
            padding: The same, for rows whose tokens are at the start already.
            cu_seqlens: Where the sequences packed in one row, [1, L, d_model], end: int32 [sequences + 1], 0
                and then the lengths summed up. States have a row for each sequence.

        Returns:
            [B, L, d_model].

        Raises:
            ValueError: A shape is not as above, or two of the arguments exclude each other.
        """
        self._require(hidden_states)
        if inference_params is not None:
            if state is not None:
                raise ValueError("Mamba1: give inference_params or state, not both")
            rows = hidden_states.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
            state = self._states_of(inference_params, rows)
            if inference_params.seqlen_offset == 0:
                state.conv.zero_()
                state.ssm.zero_()
            elif hidden_states.shape[1] == 1 and cu_seqlens is None and attention_mask is None:
                return self.step(hidden_states, state.conv, state.ssm)[0]
        if attention_mask is None:
            return self._sequence(hidden_states, state, padding, cu_seqlens)
        if cu_seqlens is not None or padding is not None:
            raise ValueError("Mamba1: give one of attention_mask, padding and cu_seqlens")
        padding = Padding.of_mask("Mamba1", attention_mask, *hidden_states.shape[:2])
        return padding.back(self._sequence(padding.to_start(hidden_states), state, padding, None))

    @torch.no_grad()
    def step(
        self, hidden_states: Tensor, conv_state: Tensor, ssm_state: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Runs the block over one step and moves the states on, in place.

        Args:
            hidden_states: [B, 1, d_model].
            conv_state: [B, D, W], or W - 1 steps.
            ssm_state: [B, D, N].

        Returns:
            The output, [B, 1, d_model], and the two states. Nothing is recorded for autograd.
        """
        self._require(hidden_states)
        if hidden_states.shape[1] != 1:
            raise ValueError(
                f"Mamba1.step: hidden_states must be [batch, 1, d_model], got {list(hidden_states.shape)}; "
                "forward takes more tokens"
            )
        x, z = self.in_proj(hidden_states.squeeze(1)).chunk(2, dim=-1)  # [B, D]
        x = self.conv1d.step(x, conv_state)
        delta, delta_bias, B, C = self._select(x)
        y = selective_state_update(
            ssm_state,
            x,
            delta,
            self.A if self.fixed_A is None else self.fixed_A,
            B,
            C,
            D=self.D,
            z=z,
            dt_bias=delta_bias,
            dt_softplus=True,
        )
        return self.out_proj(y).unsqueeze(1), conv_state, ssm_state

    @property
    def A(self) -> Tensor:
        """The continuous diagonal state matrix, [D, N], float32 or wider."""
        return -torch.exp(wide(self.A_log))

    def allocate_inference_cache(
        self,
        batch_size: int,
        max_seqlen: int | None = None,
        dtype: torch.dtype | None = None,
        *,
        ssm_dtype: torch.dtype | None = None,
        **_: object,
    ) -> tuple[Tensor, Tensor]:
        """Zero states: conv [B, D, W] in `dtype`, that of the weights when None, and ssm [B, D, N].

        `ssm_dtype` as in `allocate_state`. `max_seqlen` has no effect: the states do not grow. (`mamba_ssm`
        keeps the second one in the dtype of dt_proj.)
        """
        state = self._allocate(batch_size, self.d_conv, None, dtype, ssm_dtype)
        return state.conv, state.ssm

    def allocate_state(
        self,
        batch: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        ssm_dtype: torch.dtype | None = None,
    ) -> MambaState:
        """A zero state for `batch` sequences; see `Mamba.allocate_state`.

        Args:
            batch: Number of sequences.
            device: Defaults to the device of the weights.
            dtype: Of the kept convolution inputs; defaults to the dtype of the weights.
            ssm_dtype: Of the scan's state, [B, D, N]; defaults to float32 or wider. One of sixteen bits takes
                half the memory, and a step of many sequences less time; it is rounded after each step, so it
                forgets inputs below a 256th (bfloat16) of what it holds.

        Raises:
            ValueError: `ssm_dtype` is no floating dtype, or one of it and `dtype` alone is float64.
        """
        return self._allocate(batch, self.d_conv - 1, device, dtype, ssm_dtype)

    def extra_repr(self) -> str:
        return f"d_model={self.d_model}, d_state={self.d_state}, dt_rank={self.dt_rank}"

    def _sequence(
        self, x: Tensor, state: MambaState | None, padding: Padding | None, cu_seqlens: Tensor | None
    ) -> Tensor:
        xz = self.in_proj(x)
        if padding is None and cu_seqlens is None and self._mixes(xz, state):
            return self.out_proj(self._mixed(xz, state))
        x, z = xz.chunk(2, dim=-1)  # [B, L, D]
        x = self.conv1d(x, None if state is None else state.conv, padding=padding, cu_seqlens=cu_seqlens)
        delta, delta_bias, B, C = self._select(x)
        if padding is not None:
            delta = padding.without_step(delta)
        result = selective_scan_fn(
            x.transpose(1, 2),
            delta.transpose(1, 2),
            self.A if self.fixed_A is None or torch.is_grad_enabled() else self.fixed_A,
            B.transpose(1, 2),
            C.transpose(1, 2),
            D=self.D,
            z=z.transpose(1, 2),
            delta_bias=delta_bias,
            delta_softplus=True,
            return_last_state=state is not None,
            initial_state=None if state is None else state.ssm.to(state_dtype(x)),
            cu_seqlens=cu_seqlens,
        )
        if state is None:
            assert isinstance(result, Tensor)
            y = result
        else:
            y, last_state = result
            state.ssm.copy_(last_state.detach())
        return self.out_proj(y.transpose(1, 2))

    def _mixes(self, xz: Tensor, state: MambaState | None) -> bool:
        """Whether a call may go by `_mixed`, which reads the weights instead of calling the modules."""
        if torch.compiler.is_compiling() or is_transformed() or is_forward_mode():
            return False
        linears = (self.x_proj, self.dt_proj)
        if not all(is_plain(linear, nn.Linear) for linear in linears) or self.x_proj.bias is not None:
            return False
        if not is_plain(self.conv1d, CausalConv1d) or self.mixer_rms_eps is not None:
            return False
        if state is not None and (
            state.conv.dtype != xz.dtype
            or state.ssm.dtype not in (xz.dtype, state_dtype(xz))
            or self._needs_gradient(xz)
        ):
            return False
        cast = torch.is_autocast_enabled(xz.device.type)
        dtype = torch.get_autocast_dtype(xz.device.type) if cast else self.x_proj.weight.dtype
        return (
            type(xz) is Tensor
            and xz.is_contiguous()
            and xz.numel() > 0
            and xz.dtype == dtype
            and (cast or self.dt_proj.weight.dtype == dtype)
        )

    def _mixed(self, xz: Tensor, state: MambaState | None) -> Tensor:
        weights = (
            self.conv1d.weight.squeeze(1),
            self.conv1d.bias,
            self.x_proj.weight.to(xz.dtype),
            self.dt_proj.weight.to(xz.dtype),
            self.dt_proj.bias,
        )
        if self._needs_gradient(xz):
            return mix(xz, *weights, self.A, self.D)
        A = self.A if self.fixed_A is None or torch.is_grad_enabled() else self.fixed_A
        states = () if state is None else (state.conv, state.ssm)
        return mamba1_sequence(xz, *weights, A, self.D, *states)

    def _needs_gradient(self, xz: Tensor) -> bool:
        return torch.is_grad_enabled() and (xz.requires_grad or needs_gradient(self.parameters()))

    def _select(self, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """Raw delta, what the ops have still to add to it, B and C for [..., D], with N last."""
        sizes = [self.dt_rank, self.d_state, self.d_state]
        low, B, C = self.x_proj(x).split(sizes, dim=-1)
        if self.mixer_rms_eps is not None:
            low, B, C = (
                F.rms_norm(wide(part), part.shape[-1:], eps=self.mixer_rms_eps).to(x.dtype)
                for part in (low, B, C)
            )
        # An exact type, because a subclass or a hook may compute something else than its weight says.
        if type(self.dt_proj) is nn.Linear and not has_hooks(self.dt_proj):
            return F.linear(low, self.dt_proj.weight), self.dt_proj.bias, B, C
        return self.dt_proj(low), None, B, C

    def _states_of(self, inference_params: Any, batch: int) -> MambaState:
        if self.layer_idx is None:
            raise ValueError(
                "Mamba1: inference_params keeps states by layer_idx, which this block has none of; "
                "give layer_idx when making the block, or pass state"
            )
        states = inference_params.key_value_memory_dict
        if self.layer_idx not in states:
            states[self.layer_idx] = self.allocate_inference_cache(batch)
        return MambaState(*states[self.layer_idx])

    def _allocate(
        self,
        batch: int,
        kept: int,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        ssm_dtype: torch.dtype | None,
    ) -> MambaState:
        if ssm_dtype is not None and not ssm_dtype.is_floating_point:
            raise ValueError(f"Mamba1: ssm_dtype must be a real floating dtype, got {ssm_dtype}")
        weight = self.A_log
        device = weight.device if device is None else torch.device(device)
        dtype = self.conv1d.weight.dtype if dtype is None else dtype
        ssm_dtype = torch.promote_types(dtype, torch.float32) if ssm_dtype is None else ssm_dtype
        if (ssm_dtype == torch.float64) != (dtype == torch.float64):
            raise ValueError(
                f"Mamba1: ssm_dtype must be float64 exactly if dtype is, got {ssm_dtype} with {dtype}"
            )
        return MambaState(
            conv=torch.zeros(batch, self.d_inner, kept, device=device, dtype=dtype),
            ssm=torch.zeros(batch, self.d_inner, self.d_state, device=device, dtype=ssm_dtype),
        )

    def _require(self, x: Tensor) -> None:
        if x.dim() != 3 or x.shape[-1] != self.d_model:
            raise ValueError(
                f"Mamba1: hidden_states must be [batch, length, d_model = {self.d_model}], "
                f"got {list(x.shape)}"
            )
