"""MambaLM: a language model made of Mamba blocks, over bytes unless told otherwise."""

import math
from dataclasses import dataclass, field
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mamba_aot.modules import Block, MambaState, SSMConfig
from mamba_aot.norms import RMSNorm


@dataclass(frozen=True)
class MambaLMConfig:
    """What a `MambaLM` is made of.

    Attributes:
        n_layer: Number of blocks.
        vocab_size: Number of tokens; 256 is one per byte.
        ssm: The blocks; `ssm.d_model` is the width of the model.
        norm_eps: Added to the mean square in every RMSNorm.
        tie_embeddings: Whether the head shares the weight of the embedding.
    """

    n_layer: int = 4
    vocab_size: int = 256
    ssm: SSMConfig = field(default_factory=SSMConfig)
    norm_eps: float = 1e-5
    tie_embeddings: bool = True

    def __post_init__(self) -> None:
        for name in ("n_layer", "vocab_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"MambaLMConfig: {name} must be an integer of at least 1, got {value!r}")


class MambaLM(nn.Module):
    """Embedding, blocks, a last RMSNorm and a head: token ids in, logits of the next token out.

    Args:
        config: The sizes and options.
        device: Where the parameters live.
        dtype: Dtype of the parameters.

    Source: the architecture of Gu & Dao, "Mamba", arXiv 2312.00752, section 3.4 and E.2.1.
    """

    def __init__(
        self,
        config: MambaLMConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        width = config.ssm.d_model
        self.embedding = nn.Embedding(config.vocab_size, width, device=device, dtype=dtype)
        self.layers = nn.ModuleList(
            Block(config.ssm, config.norm_eps, device=device, dtype=dtype) for _ in range(config.n_layer)
        )
        self.norm_f = RMSNorm(width, config.norm_eps, device=device, dtype=dtype)
        self.lm_head = nn.Linear(width, config.vocab_size, bias=False, device=device, dtype=dtype)
        if config.tie_embeddings:
            self.lm_head.weight = self.embedding.weight
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The start of embedding and head, and smaller outputs of the blocks; the blocks start themselves."""
        nn.init.normal_(self.embedding.weight, std=0.02)
        if not self.config.tie_embeddings:
            nn.init.normal_(self.lm_head.weight, std=0.02)
        # n_layer outputs add up in the residual: each starts small enough for the sum to keep its variance.
        for layer in self._blocks():
            nn.init.xavier_normal_(layer.mixer.out_proj.weight, gain=1 / math.sqrt(self.config.n_layer))

    def forward(self, ids: Tensor, state: tuple[MambaState, ...] | None = None) -> Tensor:
        """Logits of the token after each position.

        Args:
            ids: Token ids, integers, [B, L].
            state: From `allocate_state`; what came before, overwritten with what has now come. See
                `Mamba.forward`.

        Returns:
            [B, L, vocab_size].
        """
        self._require(ids, 2, "[batch, length]", state)
        x = self.embedding(ids)
        for index, layer in enumerate(self._blocks()):
            x = layer(x, None if state is None else state[index])
        return self.lm_head(self.norm_f(x))

    @torch.no_grad()
    def step(self, ids: Tensor, state: tuple[MambaState, ...]) -> Tensor:
        """Logits after one more token: ids [B] to [B, vocab_size]; moves `state` on, in place."""
        self._require(ids, 1, "[batch]", state)
        x = self.embedding(ids)
        for layer, layer_state in zip(self._blocks(), state, strict=True):
            x = layer.step(x, layer_state)
        return self.lm_head(self.norm_f(x))

    def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy in nats of `targets`, what follows each of `ids`, both [B, L]; float32."""
        logits = self(ids)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    def allocate_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> tuple[MambaState, ...]:
        """A zero state for `batch` sequences, one entry per layer; see `Mamba.allocate_state`."""
        return tuple(layer.allocate_state(batch, device, dtype) for layer in self._blocks())

    def num_parameters(self) -> int:
        """Number of trained numbers, a tied weight counted once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def _blocks(self) -> list[Block]:
        return cast("list[Block]", list(self.layers))

    def _require(self, ids: Tensor, dims: int, shape: str, state: tuple[MambaState, ...] | None) -> None:
        if ids.dim() != dims or ids.dtype not in (torch.int64, torch.int32):
            raise ValueError(
                f"MambaLM: ids must be {shape} of dtype int64 or int32, got {list(ids.shape)} of {ids.dtype}"
            )
        if state is not None and len(state) != len(self.layers):
            raise ValueError(
                f"MambaLM: state must have one entry per layer, {len(self.layers)}, got {len(state)}; "
                "allocate_state(batch) makes one"
            )
