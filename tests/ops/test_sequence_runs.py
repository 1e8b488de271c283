"""sequence_runs against a walk step by step, and what it refuses."""

import itertools
import re

import pytest
import torch
from torch import Tensor

from mamba_aot.ops.sequence_runs import sequence_runs


def runs_of_steps(index: list[int]) -> list[list[int]]:
    """What sequence_runs says of a row, step by step."""
    starts, ends = [], []
    for _, run in itertools.groupby(enumerate(index), key=lambda step: max(step[1], -1)):
        steps = [t for t, _ in run]
        padding = index[steps[0]] < 0
        starts += [-1 - steps[0] if padding else steps[0]] * len(steps)
        ends += [-steps[-1] - 1 if padding else steps[-1] + 1] * len(steps)
    return [starts, ends]


@pytest.mark.parametrize("length", [0, 1, 63, 1024, 1025, 9000])
@pytest.mark.parametrize("mean", [1, 40, 3000, 10**6])
def test_runs_of_any_length(length: int, mean: int, device: str) -> None:
    generator = torch.Generator().manual_seed(length + mean)
    begins = torch.rand(3, length, generator=generator) < 1 / mean
    # Neighbours may have one index, and padding several.
    index = torch.randint(-3, 4, (3, length), generator=generator, dtype=torch.int32)
    index = index.gather(1, begins.cumsum(1).clamp(max=max(length - 1, 0)))
    strided = torch.stack([index, index], dim=2)[..., 0].to(device)
    wanted = torch.tensor([runs_of_steps(row) for row in index.tolist()], dtype=torch.int32)
    assert torch.equal(sequence_runs(strided).cpu(), wanted.transpose(0, 1))
    torch.library.opcheck(torch.ops.mamba_aot.sequence_runs.default, (strided,))


SENTENCES: dict[str, tuple[Tensor, str]] = {
    "dtype": (torch.zeros(2, 3), "seq_idx must be int32 (a sequence index per step), got float32"),
    "rank": (torch.zeros(3, dtype=torch.int32), "seq_idx must be [batch, length] (2 dimensions), got [3]"),
}


@pytest.mark.parametrize(("seq_idx", "sentence"), SENTENCES.values(), ids=SENTENCES)
def test_wrong_arguments_are_refused(seq_idx: Tensor, sentence: str, device: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"sequence_runs: {sentence}")):
        sequence_runs(seq_idx.to(device))
