"""What the references share: arithmetic dtypes, and where packed sequences lie."""

import itertools

import torch
from torch import Tensor


def sequences(seq_idx: Tensor | None, cu_seqlens: Tensor | None) -> list[tuple[int, int, int, int | None]]:
    """(batch row, first step, step after the last, row of the initial states if any) of packed sequences."""
    if cu_seqlens is not None:
        ends = cu_seqlens.tolist()
        return [(0, start, stop, i) for i, (start, stop) in enumerate(itertools.pairwise(ends))]
    found: list[tuple[int, int, int, int | None]] = []
    assert seq_idx is not None
    for row, indices in enumerate(seq_idx.tolist()):
        start = 0
        for stop in range(1, len(indices) + 1):
            if stop == len(indices) or indices[stop] != indices[start]:
                if indices[start] >= 0:
                    found.append((row, start, stop, row if start == 0 else None))
                start = stop
    return found


def wide(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """`tensor` in the arithmetic dtype of a sequence of `dtype`, complex if it is complex."""
    real = torch.float64 if dtype == torch.float64 else torch.float32
    return tensor.to(real.to_complex() if tensor.is_complex() else real)
