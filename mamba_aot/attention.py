"""Causal attention, for models that mix it with Mamba blocks, and the keys and values it keeps.

Sizes: B batch, L length, H query heads, K key and value heads, P channels of a head, S slots of the cache.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mamba_aot.padding import Padding


@dataclass(frozen=True)
class AttentionConfig:
    """What an `Attention` layer is made of.

    Attributes:
        n_heads: Query heads.
        n_kv_heads: Key and value heads, a divisor of `n_heads`; None for as many.
        head_dim: Channels of a head; None for d_model / n_heads.
        rotary_dim: Channels of each head that the position rotates, even; None for all of them, 0 for no
            position at all.
        rotary_base: Base of the wavelengths of the rotation.
        bias: Whether the four projections have a bias.
    """

    n_heads: int = 8
    n_kv_heads: int | None = None
    head_dim: int | None = None
    rotary_dim: int | None = None
    rotary_base: float = 10000.0
    bias: bool = False

    def __post_init__(self) -> None:
        for name in ("n_heads", "n_kv_heads", "head_dim"):
            value = getattr(self, name)
            if value is None and name != "n_heads":
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"AttentionConfig: {name} must be an integer of at least 1, got {value!r}")
        if self.n_kv_heads is not None and self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"AttentionConfig: n_kv_heads must divide n_heads = {self.n_heads}, got {self.n_kv_heads}"
            )
        if not 0 < self.rotary_base < math.inf:
            raise ValueError(
                f"AttentionConfig: rotary_base must be finite and above 0, got {self.rotary_base!r}"
            )
        if self.rotary_dim is not None and (self.rotary_dim < 0 or self.rotary_dim % 2):
            raise ValueError(
                f"AttentionConfig: rotary_dim must be even and at least 0, got {self.rotary_dim!r}"
            )


@dataclass
class KeyValueState:
    """What one `Attention` layer remembers between two calls.

    Attributes:
        keys, values: [B, K, S + 1, P]; the last slot takes what is written for padding and is never read.
        lengths: Slots in use, int64 [B].
    """

    keys: Tensor
    values: Tensor
    lengths: Tensor


class Attention(nn.Module):
    """Causal attention with rotary positions and grouped key and value heads.

    The attention itself is `torch.nn.functional.scaled_dot_product_attention`.

    Args:
        d_model: Width of the sequence that goes in and out.
        config: Heads and options.
        device: Where the parameters live.
        dtype: Dtype of the parameters.

    Source: Su et al., "RoFormer", arXiv 2104.09864, in the form that rotates channel i with i + P / 2;
    Ainslie et al., "GQA", arXiv 2305.13245.
    """

    def __init__(
        self,
        d_model: int,
        config: AttentionConfig,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if config.head_dim is None and d_model % config.n_heads:
            raise ValueError(
                f"Attention: n_heads must divide d_model = {d_model}, got {config.n_heads}; or give head_dim"
            )
        self.d_model = d_model
        self.n_heads = config.n_heads
        self.n_kv_heads = config.n_kv_heads or config.n_heads
        self.head_dim = config.head_dim or d_model // config.n_heads
        self.rotary_dim = self.head_dim if config.rotary_dim is None else config.rotary_dim
        self.rotary_base = config.rotary_base
        if self.rotary_dim > self.head_dim or self.rotary_dim % 2:
            raise ValueError(
                f"Attention: rotary_dim must be even and at most head_dim = {self.head_dim}, "
                f"got {self.rotary_dim}"
            )

        def linear(inputs: int, outputs: int) -> nn.Linear:
            return nn.Linear(inputs, outputs, bias=config.bias, device=device, dtype=dtype)

        self.q_proj = linear(d_model, self.n_heads * self.head_dim)
        self.k_proj = linear(d_model, self.n_kv_heads * self.head_dim)
        self.v_proj = linear(d_model, self.n_kv_heads * self.head_dim)
        self.o_proj = linear(self.n_heads * self.head_dim, d_model)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-normal weights, zero biases."""
        for projection in (self.q_proj, self.k_proj, self.v_proj, self.o_proj):
            nn.init.xavier_normal_(projection.weight)
            if projection.bias is not None:
                nn.init.zeros_(projection.bias)

    def forward(
        self,
        x: Tensor,
        state: KeyValueState | None = None,
        *,
        padding: Padding | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> Tensor:
        """Attends over a sequence, and over what `state` holds of it.

        Args:
            x: [B, L, d_model].
            state: Keys and values of the tokens before; those of `x` are written behind them.
            padding: Rows of different lengths.
            cu_seqlens: Where the sequences packed in one row end, int32 [sequences + 1]; the mask that keeps
                them apart takes L * L bytes. Not together with `state`.

        Returns:
            [B, L, d_model].

        Raises:
            ValueError: A shape is not as above, or on a CPU the state has too few slots.
            RuntimeError: On a GPU the state has too few slots.
        """
        if x.dim() != 3 or x.shape[-1] != self.d_model:
            raise ValueError(
                f"Attention: the input must be [batch, length, d_model = {self.d_model}], got {list(x.shape)}"
            )
        if cu_seqlens is not None and state is not None:
            raise ValueError(
                "Attention: packed sequences have no state of keys and values; "
                "give the sequences as rows, with padding"
            )
        if state is not None and state.lengths.shape[0] != x.shape[0]:
            raise ValueError(
                f"Attention: the state must be of the batch size of the input, {x.shape[0]}, "
                f"got {state.lengths.shape[0]}; allocate_state({x.shape[0]}) makes one"
            )
        q, k, v = (
            projection(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )  # [B, H or K, L, P]
        positions = torch.arange(x.shape[1], device=x.device)
        mask = None
        if cu_seqlens is not None:
            sequence = torch.searchsorted(cu_seqlens, positions.int(), right=True)
            mask = (sequence[:, None] == sequence) & (positions[:, None] >= positions)
            positions = positions - cu_seqlens[sequence - 1]
        elif state is not None:
            positions = positions + state.lengths[:, None]  # [B, L]
        q, k = self._rotate(q, positions), self._rotate(k, positions)
        if state is not None:
            k, v = self._keep(state, k, v, positions, padding)
            mask = (torch.arange(k.shape[2], device=x.device) <= positions[..., None]).unsqueeze(1)
        # Padding is behind the tokens of its row: causal order already keeps it out of their sight.
        y = F.scaled_dot_product_attention(
            q,
            k.to(q.dtype),
            v.to(q.dtype),
            attn_mask=mask,
            is_causal=mask is None,
            enable_gqa=self.n_kv_heads != self.n_heads,
        )
        return self.o_proj(y.transpose(1, 2).flatten(2))

    @torch.no_grad()
    def step(self, x: Tensor, state: KeyValueState) -> Tensor:
        """Attends from one more token, [B, d_model] to [B, d_model]; moves `state` on, in place."""
        return self(x.unsqueeze(1), state).squeeze(1)

    def allocate_state(
        self,
        batch: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        max_length: int,
    ) -> KeyValueState:
        """An empty state of `max_length` slots for each of `batch` sequences."""
        if max_length < 0:
            raise ValueError(f"Attention: max_length must be at least 0, got {max_length}")
        weight = self.k_proj.weight
        device = weight.device if device is None else torch.device(device)
        shape = (batch, self.n_kv_heads, max_length + 1, self.head_dim)
        dtype = weight.dtype if dtype is None else dtype
        return KeyValueState(
            keys=torch.zeros(shape, device=device, dtype=dtype),
            values=torch.zeros(shape, device=device, dtype=dtype),
            lengths=torch.zeros(batch, device=device, dtype=torch.int64),
        )

    def extra_repr(self) -> str:
        return f"n_heads={self.n_heads}, n_kv_heads={self.n_kv_heads}, head_dim={self.head_dim}"

    def _keep(
        self, state: KeyValueState, k: Tensor, v: Tensor, positions: Tensor, padding: Padding | None
    ) -> tuple[Tensor, Tensor]:
        """Writes new keys and values behind the ones in `state`; returns all of them, [B, K, S + 1, P]."""
        capacity = state.keys.shape[2] - 1
        lengths = state.lengths + (k.shape[2] if padding is None else padding.lengths)
        fits = (lengths <= capacity).all()
        if not fits.is_cpu or torch.compiler.is_compiling():
            sentence = "Attention: the state has too few slots; allocate_state takes a larger max_length"
            torch.ops.aten._assert_async.msg(fits, sentence)
        elif not fits:
            raise ValueError(
                f"Attention: the state has {capacity} slots, {int(lengths.max())} tokens must fit; "
                "allocate_state takes a larger max_length"
            )
        slots = positions if padding is None else torch.where(padding.absent, capacity, positions)
        index = slots[:, None, :, None].expand_as(k)
        k, v = k.to(state.keys.dtype), v.to(state.values.dtype)
        if torch.is_grad_enabled():
            # Autograd needs what this call attends to, and the next call overwrites `state`.
            keys, values = state.keys.scatter(2, index, k), state.values.scatter(2, index, v)
            state.keys.copy_(keys.detach())
            state.values.copy_(values.detach())
        else:
            keys, values = state.keys.scatter_(2, index, k), state.values.scatter_(2, index, v)
        state.lengths.copy_(lengths)
        return keys, values

    def _rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        """Rotates the first `rotary_dim` channels of [B, heads, L, P] by `positions`, [L] or [B, L]."""
        if self.rotary_dim == 0:
            return x
        steps = torch.arange(0, self.rotary_dim, 2, device=x.device, dtype=torch.float32) / self.rotary_dim
        angles = positions[..., None] * self.rotary_base**-steps
        if angles.dim() == 3:
            angles = angles.unsqueeze(1)
        cos, sin = angles.cos(), angles.sin()
        turned, rest = x.split([self.rotary_dim, self.head_dim - self.rotary_dim], dim=-1)
        first, second = turned.float().chunk(2, dim=-1)
        turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
        return torch.cat([turned.to(x.dtype), rest], dim=-1)
