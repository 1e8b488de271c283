"""A block run over a sequence both ways, for data without a direction: images, genomes."""

import torch
from torch import Tensor, nn

from mamba_aot.padding import Padding


class Bidirectional(nn.Module):
    """forward_mixer(x) + reversed(backward_mixer(reversed(x))): every output sees the whole sequence.

    Torch has no negative strides, so the reversed order is made by copying: [B, L, d_model] once on the way
    in and once on the way out. Nothing inside the blocks is flipped, and their kernels read one direction.

    Args:
        forward_mixer: Runs from the first token, such as `Mamba1(d_model)`; takes [B, L, d_model].
        backward_mixer: Runs from the last one. The same module for both shares the weights.
    """

    def __init__(self, forward_mixer: nn.Module, backward_mixer: nn.Module) -> None:
        super().__init__()
        self.forward_mixer = forward_mixer
        self.backward_mixer = backward_mixer

    def forward(self, x: Tensor, *, attention_mask: Tensor | None = None) -> Tensor:
        """[B, L, d_model] to [B, L, d_model].

        Args:
            x: The sequence.
            attention_mask: Nonzero at tokens, [B, L]; the tokens of each row in one piece. What comes out at
                padding means nothing.
        """
        if attention_mask is None:
            return self.forward_mixer(x) + self.backward_mixer(x.flip(1)).flip(1)
        padding = Padding.of_mask("Bidirectional", attention_mask, *x.shape[:2])
        # In this order and in the reversed one, padding has to be behind the tokens.
        x = padding.to_start(x)
        ends = padding.lengths[:, None] - 1 - torch.arange(x.shape[1], device=x.device)
        index = ends % max(x.shape[1], 1)
        rows = torch.arange(x.shape[0], device=x.device)[:, None]
        backward = self.backward_mixer(x[rows, index], padding=padding)[rows, index]
        return padding.back(self.forward_mixer(x, padding=padding) + backward)
