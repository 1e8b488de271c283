"""Bidirectional: both directions of the same sequence, row by row where rows differ in length."""

import pytest
import torch

from mamba_aot import Bidirectional, Mamba, Mamba1, SSMConfig

MIXERS = {"Mamba1": lambda: Mamba1(16, d_state=4), "Mamba": lambda: Mamba(SSMConfig(d_model=16, d_state=4))}


@pytest.mark.parametrize("kind", MIXERS)
def test_is_one_block_each_way(kind: str) -> None:
    torch.manual_seed(0)
    both, x = Bidirectional(MIXERS[kind](), MIXERS[kind]()), torch.randn(2, 9, 16)
    expected = both.forward_mixer(x) + both.backward_mixer(x.flip(1)).flip(1)
    torch.testing.assert_close(both(x), expected, rtol=0, atol=0)
    # The first output depends on the last input, and with one module for both a palindrome stays one.
    changed = x.clone()
    changed[:, -1] += 1
    assert not torch.allclose(both(changed)[:, 0], both(x)[:, 0])
    shared = Bidirectional(both.forward_mixer, both.forward_mixer)
    palindrome = x + x.flip(1)
    torch.testing.assert_close(shared(palindrome), shared(palindrome).flip(1))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", MIXERS)
def test_padded_rows_equal_the_rows_alone(kind: str, side: str) -> None:
    torch.manual_seed(0)
    both, x = Bidirectional(MIXERS[kind](), MIXERS[kind]()), torch.randn(3, 9, 16)
    rows = [slice(9 - n, 9) if side == "left" else slice(0, n) for n in (9, 4, 1)]
    mask = torch.zeros(3, 9)
    for index, row in enumerate(rows):
        mask[index, row] = 1
    y = both(x, attention_mask=mask)
    for index, row in enumerate(rows):
        alone = both(x[index : index + 1, row])
        torch.testing.assert_close(y[index : index + 1, row], alone, rtol=1e-4, atol=1e-6)
