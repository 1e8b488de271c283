"""Sequences packed in one row: blocks and models give what they give for each alone, states included."""

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from mamba_aot import AttentionConfig, Mamba, Mamba1, MambaLM, MambaLMConfig, MambaState, SSMConfig

WIDTH = 16
ENDS = [0, 7, 7, 8, 30]
BLOCKS = {
    "Mamba": lambda: Mamba(SSMConfig(d_model=WIDTH, d_state=4)),
    "Mamba, real": lambda: Mamba(SSMConfig(d_model=WIDTH, d_state=4, A_real=True)),
    "Mamba1": lambda: Mamba1(WIDTH, d_state=4),
}


def cu_seqlens() -> Tensor:
    return torch.tensor(ENDS, dtype=torch.int32)


def sequence() -> Tensor:
    return torch.randn(1, ENDS[-1], WIDTH, generator=torch.Generator().manual_seed(1))


def spans() -> list[tuple[int, int]]:
    return list(pairwise(ENDS))


@pytest.mark.parametrize("kind", BLOCKS)
def test_blocks_keep_sequences_apart_with_their_gradients(kind: str) -> None:
    torch.manual_seed(0)
    block, x = BLOCKS[kind](), sequence().requires_grad_()
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    packed = block(x, cu_seqlens=cu_seqlens())
    alone = torch.cat([block(x[:, a:b]) for a, b in spans()], dim=1)
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-6)
    leaves = [x, *block.parameters()]
    ours, theirs = torch.autograd.grad(packed, leaves, weights), torch.autograd.grad(alone, leaves, weights)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5 * max(1.0, b.abs().max().item()))


@pytest.mark.parametrize("kind", BLOCKS)
def test_states_have_a_row_for_each_sequence(kind: str) -> None:
    torch.manual_seed(0)
    block, x = BLOCKS[kind](), sequence()
    state = block.allocate_state(4)
    state.conv.normal_(generator=torch.Generator().manual_seed(3))
    alone = [MambaState(state.conv[i : i + 1].clone(), state.ssm[i : i + 1].clone()) for i in range(4)]
    packed = block(x, state=state, cu_seqlens=cu_seqlens())
    for index, (a, b) in enumerate(spans()):
        expected = block(x[:, a:b], state=alone[index])
        torch.testing.assert_close(packed[:, a:b], expected, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(state.conv[index : index + 1], alone[index].conv, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(state.ssm[index : index + 1], alone[index].ssm, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layers", ["M", "m", "Mmaf"])
def test_models_keep_sequences_apart(layers: str) -> None:
    torch.manual_seed(0)
    ssm, attention = SSMConfig(d_model=WIDTH, d_state=4), AttentionConfig(n_heads=2)
    model = MambaLM(MambaLMConfig(4, 64, ssm, layers=layers, attention=attention))
    ids = torch.randint(64, (1, ENDS[-1]), generator=torch.Generator().manual_seed(1))
    packed = model(ids, cu_seqlens=cu_seqlens())
    for a, b in spans():
        torch.testing.assert_close(packed[:, a:b], model(ids[:, a:b]), rtol=1e-4, atol=1e-5)
    ends = torch.tensor([0, 7, 8, 30], dtype=torch.int32)
    last = model(ids, cu_seqlens=ends, last_only=True)
    torch.testing.assert_close(last, packed[0, [6, 7, 29]], rtol=1e-4, atol=1e-5)
    loss = model.loss(ids[:, :-1], ids[:, 1:], cu_seqlens=torch.tensor([0, 7, 29], dtype=torch.int32))
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_inference_params_take_packed_prompts() -> None:
    torch.manual_seed(0)
    block, x = Mamba1(WIDTH, d_state=4, layer_idx=0), sequence()
    params = SimpleNamespace(key_value_memory_dict={}, seqlen_offset=0)
    block(x, params, cu_seqlens=cu_seqlens())
    token = torch.randn(4, 1, WIDTH)
    params.seqlen_offset = 1
    got = block(token, params)
    for index, (a, b) in enumerate(spans()):
        whole = block(torch.cat([x[:, a:b], token[index : index + 1]], dim=1))
        torch.testing.assert_close(got[index, 0], whole[0, -1], rtol=1e-4, atol=1e-6)
