"""MambaLM: a language model of Mamba blocks, with attention and MLPs between them where wanted."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mamba_aot import decoding
from mamba_aot.config import MambaLMConfig
from mamba_aot.decoding import GeneratedToken, Prompt
from mamba_aot.fused_step import Handed, logits_of
from mamba_aot.mamba1 import Mamba1
from mamba_aot.modules import Mamba
from mamba_aot.padding import Padding
from mamba_aot.recompute import RECOMPUTE, Recompute, run
from mamba_aot.stack import Layer, LayerState, make_norm

State = tuple[LayerState, ...]


class MambaLM(nn.Module):
    """Embedding, layers, a last norm and a head: token ids in, logits of the next token out.

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
        # What layers keep for their backward while training; see `mamba_aot.recompute.run`.
        self._recompute: Recompute = "none"
        width = config.ssm.d_model
        self.embedding = nn.Embedding(config.vocab_size, width, device=device, dtype=dtype)
        self.layers = nn.ModuleList(
            Layer(config, kind, device=device, dtype=dtype) for kind in config.pattern
        )
        self.norm_f = make_norm(config, device, dtype)
        self.lm_head = nn.Linear(width, config.vocab_size, bias=False, device=device, dtype=dtype)
        if config.tie_embeddings:
            self.lm_head.weight = self.embedding.weight
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The start of embedding and head, and smaller outputs of the layers, which start themselves."""
        nn.init.normal_(self.embedding.weight, std=0.02)
        if not self.config.tie_embeddings:
            nn.init.normal_(self.lm_head.weight, std=0.02)
        for layer in self._layers():
            layer.scale_output(self.config.n_layer)

    @property
    def device(self) -> torch.device:
        """Where the embedding lives."""
        return self.embedding.weight.device

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return self.config.vocab_size

    @property
    def recompute(self) -> Recompute:
        """What layers compute again in the backward instead of keeping it: "none", "selective" or "full".

        It matters only while the model is in training mode; results are the same.
        """
        return self._recompute

    @recompute.setter
    def recompute(self, mode: Recompute) -> None:
        if mode not in RECOMPUTE:
            raise ValueError(f"MambaLM: recompute must be one of {', '.join(RECOMPUTE)}, got {mode!r}")
        self._recompute = mode

    def forward(
        self,
        ids: Tensor,
        state: State | None = None,
        *,
        attention_mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        last_only: bool = False,
    ) -> Tensor:
        """Logits of the token after each position.

        Args:
            ids: Token ids, integers, [B, L].
            state: From `allocate_state`; what came before, overwritten with what has now come. See
                `Mamba.forward`.
            attention_mask: Nonzero at tokens, [B, L]; the tokens of each row in one piece, padding before or
                behind. Padding changes no state, and its logits mean nothing.
            cu_seqlens: Where the sequences packed in one row, [1, L], end: int32 [sequences + 1], 0 and then
                the lengths summed up. A state has a row for each sequence.
            last_only: Whether the head sees only the last token of each row, or of each packed sequence.

        Returns:
            [B, L, vocab_size]; with `last_only` [B, vocab_size], or [sequences, vocab_size].
        """
        self._require(ids, 2, "[batch, length]", state)
        if attention_mask is not None and cu_seqlens is not None:
            raise ValueError("MambaLM: give attention_mask or cu_seqlens, not both")
        padding = None
        if attention_mask is not None:
            padding = Padding.of_mask("MambaLM", attention_mask, *ids.shape)
            ids = padding.to_start(ids)
        if last_only and ids.shape[1] == 0:
            raise ValueError("MambaLM: last_only needs a token in each row, got a length of 0")
        x, residual = self.embedding(ids), None
        mode = self._recompute if self.training and state is None else "none"
        for index, layer in enumerate(self._layers()):
            layer_state = None if state is None else state[index]
            x, residual = run(mode, layer, x, residual, layer_state, padding, cu_seqlens)
        x = self.norm_f(x, residual)
        if last_only:
            x = _last_tokens(x, padding, cu_seqlens)
        elif padding is not None:
            x = padding.back(x)
        return self.lm_head(x)

    @torch.no_grad()
    def step(self, ids: Tensor, state: State) -> Tensor:
        """Logits after one more token: ids [B] to [B, vocab_size]; moves `state` on, in place."""
        self._require(ids, 1, "[batch]", state)
        layers = self._layers()
        next_norms = [*(layer.norm for layer in layers[1:]), self.norm_f]
        handed = Handed(self.embedding(ids))
        for layer, layer_state, next_norm in zip(layers, state, next_norms, strict=True):
            handed = layer.step(handed, layer_state, next_norm)
        return logits_of(self.norm_f, self.lm_head, handed)

    def loss(self, ids: Tensor, targets: Tensor, **layout: Any) -> Tensor:
        """Mean cross-entropy in nats of `targets`, what follows each of `ids`, both [B, L]; float32.

        Targets of -100 do not count. `layout` is `attention_mask` or `cu_seqlens`, as in `forward`.
        """
        logits = self(ids, **layout)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten().long())

    def stream(self, prompt: Prompt, max_new_tokens: int, **options: Any) -> Iterator[GeneratedToken]:
        """Continues a prompt and yields each token as it is drawn; see `mamba_aot.stream` for the options."""
        return decoding.stream(self, prompt, max_new_tokens, **options)

    @overload
    def generate(self, prompt: Tensor, max_new_tokens: int, **options: Any) -> Tensor: ...

    @overload
    def generate(self, prompt: Sequence[Tensor], max_new_tokens: int, **options: Any) -> list[Tensor]: ...

    def generate(self, prompt: Prompt, max_new_tokens: int, **options: Any) -> Tensor | list[Tensor]:
        """Continues a prompt; returns prompt and new tokens. See `mamba_aot.generate` and its options."""
        return decoding.generate(self, prompt, max_new_tokens, **options)

    def allocate_state(
        self,
        batch: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        max_length: int | None = None,
        ssm_dtype: torch.dtype | None = None,
    ) -> State:
        """An empty state for `batch` sequences, one entry per layer; see `Mamba.allocate_state`.

        A model with attention needs `max_length`, the most tokens that a sequence will have. `ssm_dtype` is
        the dtype of the scans' states of a model of published blocks; see `Mamba1.allocate_state`.

        Raises:
            ValueError: `max_length` is missing, or `ssm_dtype` is not for a layer.
        """
        layers = self._layers()
        return tuple(layer.allocate_state(batch, device, dtype, max_length, ssm_dtype) for layer in layers)

    @contextmanager
    def fixed_decays(self, decays: list[Tensor] | None = None) -> Iterator[list[Tensor]]:
        """Within it, without gradients, every layer's A is computed from its weights once, not at each call.

        The weights must not change meanwhile. Gives the tensors, which a CUDA graph of a step has to keep;
        `decays` are those of an earlier time, to go on with.
        """
        mixers = [layer.mixer for layer in self._layers() if isinstance(layer.mixer, Mamba | Mamba1)]
        fixed = [mixer.A.detach() for mixer in mixers] if decays is None else decays
        for mixer, A in zip(mixers, fixed, strict=True):
            mixer.fixed_A = A
        try:
            yield fixed
        finally:
            for mixer in mixers:
                mixer.fixed_A = None

    def num_parameters(self) -> int:
        """Number of trained numbers, a tied weight counted once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def _layers(self) -> list[Layer]:
        return cast("list[Layer]", list(self.layers))

    def _require(self, ids: Tensor, dims: int, shape: str, state: State | None) -> None:
        if ids.dim() != dims or ids.dtype not in (torch.int64, torch.int32):
            raise ValueError(
                f"MambaLM: ids must be {shape} of dtype int64 or int32, got {list(ids.shape)} of {ids.dtype}"
            )
        if state is not None and len(state) != len(self.layers):
            raise ValueError(
                f"MambaLM: state must have one entry per layer, {len(self.layers)}, got {len(state)}; "
                "allocate_state(batch) makes one"
            )


def _last_tokens(x: Tensor, padding: Padding | None, cu_seqlens: Tensor | None) -> Tensor:
    if padding is not None:
        return padding.last(x)
    return x[:, -1] if cu_seqlens is None else x[0, cu_seqlens[1:] - 1]
