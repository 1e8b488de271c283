"""Generation: seeded, equal to what the whole sequence would say, and cut as asked."""

import pytest
import torch

from mamba_aot import MambaLM, MambaLMConfig, SSMConfig, generate, stream
from mamba_aot.generation import sample


def make() -> MambaLM:
    torch.manual_seed(0)
    model = MambaLM(MambaLMConfig(n_layer=2, vocab_size=32, ssm=SSMConfig(d_model=16, d_state=4)))
    # Far enough from uniform for the most probable token to be clear.
    torch.nn.init.normal_(model.embedding.weight, std=0.3)
    return model.eval()


PROMPT = torch.tensor([3, 1, 4, 1, 5])


def test_greedy_equals_the_argmax_of_the_whole_sequence() -> None:
    model = make()
    out = generate(model, PROMPT, 20, temperature=0)
    logits = model(out.unsqueeze(0))[0]
    assert torch.equal(out[5:], logits[4:-1].argmax(-1))


def test_logprobs_are_those_of_the_model() -> None:
    model = make()
    tokens = list(stream(model, PROMPT, 8, temperature=0.7, seed=1))
    assert [token.index for token in tokens] == list(range(8))
    whole = torch.cat([PROMPT, torch.cat([token.ids for token in tokens])])
    expected = model(whole.unsqueeze(0)).log_softmax(-1)[0, 4:-1].gather(-1, whole[5:, None]).squeeze(-1)
    torch.testing.assert_close(torch.cat([t.logprobs for t in tokens]), expected, rtol=1e-4, atol=1e-4)


def test_a_seed_gives_the_same_tokens() -> None:
    model = make()
    first = generate(model, PROMPT, 30, seed=5)
    assert torch.equal(first, generate(model, PROMPT, 30, seed=5))
    assert not torch.equal(first, generate(model, PROMPT, 30, seed=6))


def test_a_batch_is_generated_together() -> None:
    model = make()
    prompts = torch.stack([PROMPT, PROMPT.flip(0)])
    out = generate(model, prompts, 10, temperature=0)
    assert out.shape == (2, 15)
    for row, prompt in zip(out, prompts, strict=True):
        assert torch.equal(row, generate(model, prompt, 10, temperature=0))


def test_no_new_tokens() -> None:
    assert torch.equal(generate(make(), PROMPT, 0), PROMPT)


def draws(logits: torch.Tensor, **options) -> set[int]:
    generator = torch.Generator().manual_seed(0)
    return set(sample(logits.expand(500, -1), generator=generator, **options).tolist())


def test_sampling_is_cut_as_asked() -> None:
    logits = torch.tensor([[0.1, 0.5, 0.15, 0.25]]).log()
    assert draws(logits) == {0, 1, 2, 3}
    assert draws(logits, top_k=2) == {1, 3}
    assert draws(logits, top_p=0.7) == {1, 3}
    assert draws(logits, top_p=0.01) == {1}
    assert draws(logits, top_k=3, top_p=0.99) == {1, 2, 3}
    assert draws(logits, temperature=0) == {1}
    assert draws(logits, temperature=0.01) == {1}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"temperature": -1.0}, "temperature must be finite and at least 0, got -1.0"),
        ({"top_k": 0}, "top_k must be at least 1, got 0"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0.0"),
        ({"max_new_tokens": -1}, "max_new_tokens must be at least 0"),
        ({"prompt": torch.zeros(0, dtype=torch.int64)}, "and not empty"),
        ({"prompt": torch.zeros(3)}, "of dtype int64 or int32"),
    ],
)
def test_bad_input_is_a_sentence(options: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        stream(**{"model": make(), "prompt": PROMPT, "max_new_tokens": 1, **options})
