"""MambaLM: steps equal the sequence, the head is tied, the start is calm, bad input is a sentence."""

import math

import pytest
import torch

from mamba_aot import MambaLM, MambaLMConfig, SSMConfig, copy_state


def make(**options) -> MambaLM:
    torch.manual_seed(0)
    return MambaLM(MambaLMConfig(n_layer=2, vocab_size=64, ssm=SSMConfig(d_model=16, d_state=4), **options))


def ids(batch: int = 2, length: int = 21) -> torch.Tensor:
    return torch.randint(64, (batch, length), generator=torch.Generator().manual_seed(1))


def test_steps_equal_the_sequence() -> None:
    model, tokens = make(), ids()
    state = model.allocate_state(2)
    stepped = torch.stack([model.step(token, state) for token in tokens.unbind(1)], dim=1)
    torch.testing.assert_close(stepped, model(tokens), rtol=1e-4, atol=1e-5)


def test_prompt_then_steps_equal_the_sequence() -> None:
    model, tokens = make(), ids()
    state = model.allocate_state(2)
    first = model(tokens[:, :15], state)
    rest = torch.stack([model.step(token, state) for token in tokens[:, 15:].unbind(1)], dim=1)
    torch.testing.assert_close(torch.cat([first, rest], dim=1), model(tokens), rtol=1e-4, atol=1e-5)


def test_start_knows_nothing() -> None:
    model, tokens = make(), ids()
    assert model.loss(tokens[:, :-1], tokens[:, 1:]).item() == pytest.approx(math.log(64), rel=0.02)


def test_learns_a_repeated_text() -> None:
    model = make()
    tokens = torch.arange(8).repeat(4).expand(2, -1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
        optimizer.step()
    assert model.loss(tokens[:, :-1], tokens[:, 1:]).item() < 0.5


def test_targets_may_be_of_the_dtype_that_ids_may() -> None:
    model, tokens = make(), ids()
    narrow = tokens.int()
    assert torch.equal(model.loss(narrow[:, :-1], narrow[:, 1:]), model.loss(tokens[:, :-1], tokens[:, 1:]))


@pytest.mark.parametrize("tied", [True, False])
def test_head_is_tied_only_if_asked(tied: bool) -> None:
    model = make(tie_embeddings=tied)
    assert (model.lm_head.weight is model.embedding.weight) == tied
    assert model.num_parameters() == make().num_parameters() + (0 if tied else 64 * 16)


def test_reset_starts_again_at_the_same_scale() -> None:
    model = make()
    weight = model.state_dict()["layers.0.mixer.out_proj.weight"]
    scale = weight.std()
    model.reset_parameters()
    torch.testing.assert_close(weight.std(), scale, rtol=0.2, atol=0)


def test_state_does_not_grow() -> None:
    model = make()
    state = model.allocate_state(1)
    before = [(part.conv.shape, part.ssm.shape) for part in state]
    model(ids(1, 200), state)
    assert [(part.conv.shape, part.ssm.shape) for part in state] == before


def test_compiles_to_one_graph() -> None:
    model, tokens = make(), ids(length=5)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(tokens), model(tokens))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: make()(torch.zeros(3, dtype=torch.int64)), r"ids must be \[batch, length\] .* got \[3\]"),
        (lambda: make()(torch.zeros(1, 3)), "of dtype int64 or int32, got .*float32"),
        (lambda: make().step(ids(), make().allocate_state(2)), r"ids must be \[batch\]"),
        (lambda: make()(ids(), make().allocate_state(2)[:1]), "one entry per layer, 2, got 1"),
        (lambda: make()(ids(length=0), last_only=True), "last_only needs a token in each row"),
        (lambda: MambaLMConfig(n_layer=0), "n_layer must be an integer of at least 1, got 0"),
    ],
)
def test_bad_input_is_a_sentence(call, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call()


@pytest.mark.parametrize("layers", ["M", "m"])
def test_decays_are_fixed_for_steps_and_only_meanwhile(layers: str) -> None:
    model, tokens = make(layers=layers), ids()
    state = model.allocate_state(2)
    model.step(tokens[:, 0], state)
    second, third = copy_state(state), copy_state(state)
    expected = model.step(tokens[:, 1], state)
    decays = [p for name, p in model.named_parameters() if name.endswith(("A_log", "A_log_real"))]
    assert len(decays) == 2
    with model.fixed_decays(), torch.no_grad():
        for parameter in decays:
            parameter.add_(3)
        assert torch.equal(model.step(tokens[:, 1], second), expected)
    assert not torch.equal(model.step(tokens[:, 1], third), expected)
