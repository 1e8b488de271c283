"""Rows of different lengths in one batch."""

from dataclasses import dataclass

import torch
from torch import Tensor

# Its exponential is 0 in every dtype, with any bias; float16 still holds it.
_NO_STEP = -30000.0


@dataclass(frozen=True)
class Padding:
    """A batch [B, L] whose rows hold their tokens at the start and padding behind.

    Layers compute on this order, in which a row's tokens follow on its state wherever the caller had put its
    padding; `to_start` and `back` lead into it and out.

    Attributes:
        lengths: Tokens of each row, int64 [B].
        first: Where the tokens of each row begin in the caller's order, int64 [B].
        seq_idx: 0 at a token and -1 at padding, int32 [B, L], as the convolution takes it.
    """

    lengths: Tensor
    first: Tensor
    seq_idx: Tensor

    @staticmethod
    def of_mask(owner: str, mask: Tensor, batch: int, length: int) -> "Padding":
        """Reads an attention mask: nonzero at tokens, [B, L], the tokens of each row in one piece.

        Raises:
            ValueError: Another shape; on a CPU also a hole between tokens. On a GPU and in compiled code none
                is looked for.
        """
        if mask.shape != (batch, length):
            raise ValueError(
                f"{owner}: attention_mask must be [batch, length] = {[batch, length]}, got {list(mask.shape)}"
            )
        present = mask != 0
        lengths = present.sum(1)
        # Of the equal largest values the first one counts.
        first = present.int().argmax(1) if length else lengths
        padding = Padding.behind(lengths, length, first)
        seen = mask.is_cpu and not torch.compiler.is_compiling()
        if seen and not torch.equal(padding.to_start(present), padding.seq_idx == 0):
            raise ValueError(
                f"{owner}: the tokens of each row of attention_mask must be in one piece, with padding "
                "before or behind them, got a row with padding between tokens"
            )
        return padding

    @staticmethod
    def behind(lengths: Tensor, length: int, first: Tensor | None = None) -> "Padding":
        """Rows whose first `lengths` [B] of `length` positions are tokens."""
        positions = torch.arange(length, device=lengths.device)
        seq_idx = torch.where(positions < lengths[:, None], 0, -1).int()
        return Padding(lengths, torch.zeros_like(lengths) if first is None else first, seq_idx)

    @property
    def absent(self) -> Tensor:
        """True at padding, bool [B, L]."""
        return self.seq_idx < 0

    def without_step(self, delta: Tensor) -> Tensor:
        """Raw step sizes [B, L, D] whose softplus is 0 at padding: there the scan's state stays as it is."""
        return delta.masked_fill(self.absent.unsqueeze(-1), _NO_STEP)

    def to_start(self, x: Tensor) -> Tensor:
        """[B, L, ...] in the caller's order to this one."""
        return self._turn(x, self.first)

    def back(self, x: Tensor) -> Tensor:
        """[B, L, ...] in this order to the caller's."""
        return self._turn(x, -self.first)

    def last(self, x: Tensor) -> Tensor:
        """The last token of each row of [B, L, ...] in this order, [B, ...]; of an empty row the first."""
        return x[torch.arange(x.shape[0], device=x.device), (self.lengths - 1).clamp(min=0)]

    def _turn(self, x: Tensor, by: Tensor) -> Tensor:
        length = x.shape[1]
        positions = torch.arange(length, device=x.device)
        index = (positions + by[:, None]) % max(length, 1)
        return x[torch.arange(x.shape[0], device=x.device)[:, None], index]
