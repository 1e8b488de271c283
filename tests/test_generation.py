"""Generation: seeded, equal to what the whole sequence would say, and cut as asked."""

import copy
from pathlib import Path

import pytest
import torch

from mamba_aot import (
    AttentionConfig,
    MambaLM,
    MambaLMConfig,
    SSMConfig,
    copy_state,
    generate,
    load_state,
    save_state,
    stream,
)
from mamba_aot.generation import sample
from mamba_aot.states import named_tensors


def make(layers: str = "M") -> MambaLM:
    torch.manual_seed(0)
    config = MambaLMConfig(
        n_layer=max(2, len(layers)),
        vocab_size=32,
        ssm=SSMConfig(d_model=16, d_state=4),
        layers=layers,
        attention=AttentionConfig(n_heads=2),
        tie_embeddings=False,
    )
    model = MambaLM(config)
    # Far enough from uniform for the most probable token to be clear, and another one at almost every step.
    torch.nn.init.normal_(model.embedding.weight, std=1)
    torch.nn.init.normal_(model.lm_head.weight, std=0.5)
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
    found = [token.logprobs for token in tokens if token.logprobs is not None]
    torch.testing.assert_close(torch.cat(found), expected, rtol=1e-4, atol=1e-4)
    without = list(stream(model, PROMPT, 8, temperature=0.7, seed=1, logprobs=False))
    assert torch.equal(torch.cat([t.ids for t in without]), whole[5:])
    assert all(t.logprobs is None for t in without)


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
        ({"prompt": []}, "at least one sequence"),
        ({"prompt": PROMPT.view(1, 1, 5)}, r"or \[batch, length\], got \[1, 1, 5\]"),
        ({"prompt": [PROMPT, PROMPT[:0]]}, r"and not empty, got \[0\]"),
        ({"min_p": 1.5}, r"min_p must be in \[0, 1\], got 1.5"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be finite and above 0"),
        ({"prefill_chunk": 0}, "prefill_chunk must be at least 1"),
        ({"seed": 2**64}, "seed must be an integer of 64 bits, got 18446744073709551616"),
        ({"state": make().allocate_state(2)}, "as many sequences as there are prompts, 1, got 2"),
        ({"cuda_graph": True}, "cuda_graph needs a model on a GPU, this one is on cpu"),
        ({"stop_tokens": [3, 32]}, "stop_tokens must hold tokens from 0 to 31, those of the model, got 32"),
        ({"prompt": PROMPT - 300}, r"prompt must hold tokens from 0 to \d+, those of the model, got -"),
        (
            {"prompt": [PROMPT, PROMPT + 300]},
            r"tokens from 0 to \d+, those of the model, got 3",
        ),
    ],
)
def test_bad_input_is_a_sentence(options: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        stream(**{"model": make(), "prompt": PROMPT, "max_new_tokens": 1, **options})


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"prompt": [1, 2]}, r"prompt must be a tensor of tokens or a list of such tensors, got \[1, 2\]"),
        ({"prompt": "abc"}, "prompt must be a tensor of tokens or a list of such tensors, got 'abc'"),
        ({"prompt": None}, "prompt must be a tensor of tokens or a list of such tensors, got None"),
        ({"stop_tokens": 5}, "stop_tokens must be a sequence of integers, got 5"),
        ({"seed": 1.5}, "seed must be an integer or None, got 1.5"),
        ({"stop_tokens": ["a"]}, "stop_tokens must be a sequence of integers, got"),
        ({"graphs": True}, "graphs must be DecodingGraphs or None, got True"),
    ],
)
def test_other_types_are_a_sentence(options: dict, sentence: str) -> None:
    with pytest.raises(TypeError, match=sentence):
        stream(**{"model": make(), "prompt": PROMPT, "max_new_tokens": 1, **options})


def test_prompts_of_different_lengths_are_continued_as_if_alone() -> None:
    model = make()
    prompts = [PROMPT, PROMPT[:1], PROMPT.repeat(4)]
    together = generate(model, prompts, 10, temperature=0)
    assert len(together) == 3
    for got, prompt in zip(together, prompts, strict=True):
        assert torch.equal(got, generate(model, prompt, 10, temperature=0))


@pytest.mark.parametrize("layers", ["M", "m", "Mmaf"])
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_prompts_may_be_read_in_chunks(layers: str, chunk: int) -> None:
    model = make(layers)
    prompts = [PROMPT.repeat(3), PROMPT[:2], PROMPT]
    expected = generate(model, prompts, 6, temperature=0)
    for got, whole in zip(
        generate(model, prompts, 6, temperature=0, prefill_chunk=chunk), expected, strict=True
    ):
        assert torch.equal(got, whole)


def test_models_stream_and_generate() -> None:
    model = make("mf")
    tokens = list(model.stream(PROMPT, 5, seed=3))
    assert torch.equal(
        torch.cat([PROMPT, *(token.ids for token in tokens)]), model.generate(PROMPT, 5, seed=3)
    )


def test_stop_tokens_end_a_sequence() -> None:
    model = make()
    free = generate(model, PROMPT, 20, temperature=0)[5:].tolist()
    stop = free[4]
    first = free.index(stop)
    assert generate(model, PROMPT, 20, temperature=0, stop_tokens=[stop])[5:].tolist() == free[: first + 1]
    tokens = list(stream(model, PROMPT, 20, temperature=0, stop_tokens=[stop, 31]))
    assert [bool(token.finished) for token in tokens] == [False] * first + [True]


def test_a_finished_sequence_waits_for_the_others() -> None:
    model = make()
    prompts = [PROMPT, PROMPT[:3], PROMPT.flip(0)]
    alone = [generate(model, p, 12, temperature=0)[len(p) :].tolist() for p in prompts]
    stop = alone[0][2]
    expected = [row[: row.index(stop) + 1] if stop in row else row for row in alone]
    got = generate(model, prompts, 12, temperature=0, stop_tokens=[stop])
    assert [row[len(p) :].tolist() for row, p in zip(got, prompts, strict=True)] == expected
    last = list(stream(model, prompts, 12, temperature=0, stop_tokens=[stop]))[-1]
    assert int(last.ids[0]) == stop
    assert bool(last.finished[0])


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_greedy_takes_logits_in_any_memory_order_and_mapped_over(device: str) -> None:
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(0)).to(device)
    wanted = logits.argmax(-1)
    for laid_out in (logits, logits.T.contiguous().T):
        assert torch.equal(sample(laid_out, temperature=0), wanted)
    mapped = torch.vmap(lambda row: sample(row[None], temperature=0)[0])(logits)
    assert torch.equal(mapped, wanted)


def test_repetition_is_penalised() -> None:
    logits = torch.tensor([[2.0, 1.5, -1.0, -1.5]])
    seen = torch.tensor([[True, False, True, False]])
    assert sample(logits, temperature=0).item() == 0
    assert sample(logits, temperature=0, repetition_penalty=2.0, seen=seen).item() == 1
    generator = torch.Generator().manual_seed(0)
    rows = [
        sample(
            logits.expand(4000, -1), repetition_penalty=2.0, seen=seen.expand(4000, -1), generator=generator
        )
    ]
    share = torch.bincount(rows[0], minlength=4) / 4000
    expected = torch.tensor([1.0, 1.5, -2.0, -1.5]).softmax(0)
    torch.testing.assert_close(share, expected, rtol=0, atol=0.03)


def test_the_penalty_sees_the_prompt_and_what_is_drawn() -> None:
    model = make()
    plain = generate(model, PROMPT, 24, temperature=0)[5:].tolist()
    varied = generate(model, PROMPT, 24, temperature=0, repetition_penalty=1e6)[5:].tolist()
    assert len(set(plain)) < 24
    # Each token comes once, and none of the prompt, until the vocabulary of 32 is used up.
    assert len(set(varied)) == 24
    assert not set(varied) & set(PROMPT.tolist())


def test_min_p_cuts_what_is_far_from_the_best() -> None:
    logits = torch.tensor([[0.1, 0.5, 0.15, 0.25]]).log()
    assert draws(logits, min_p=0.4) == {1, 3}
    assert draws(logits, min_p=0.25) == {1, 2, 3}
    assert draws(logits, min_p=1.0) == {1}


@pytest.mark.parametrize("layers", ["M", "m", "Mmaf"])
def test_a_state_on_disk_is_a_prompt_that_was_read(layers: str, tmp_path: Path) -> None:
    model, suffix = make(layers), torch.tensor([9, 2])
    whole = generate(model, torch.cat([PROMPT, suffix]), 8, temperature=0)
    state = model.allocate_state(1, max_length=5)
    model(PROMPT.unsqueeze(0), state)
    save_state(model, state, tmp_path / "prefix.safetensors")
    for _ in range(2):
        again = load_state(model, tmp_path / "prefix.safetensors", max_length=15)
        got = generate(model, suffix, 8, temperature=0, state=again)
        assert torch.equal(got, whole[5:])
    assert [path.name for path in tmp_path.iterdir()] == ["prefix.safetensors"]


def test_a_state_on_disk_keeps_its_dtypes(tmp_path: Path) -> None:
    model = make("ma")
    state = model.allocate_state(2, max_length=5, ssm_dtype=torch.bfloat16)
    model(torch.stack([PROMPT, PROMPT + 1]), state)
    save_state(model, state, tmp_path / "prefix")
    again = load_state(model, tmp_path / "prefix")
    for (name, saved), (_, loaded) in zip(named_tensors(state), named_tensors(again), strict=True):
        assert saved.dtype == loaded.dtype, name
        assert torch.equal(saved, loaded), name


def test_a_state_of_no_tensors_is_kept_as_well(tmp_path: Path) -> None:
    model = make("f")
    save_state(model, model.allocate_state(1), tmp_path / "prefix")
    assert load_state(model, tmp_path / "prefix") == model.allocate_state(1)


@pytest.mark.parametrize("layers", ["M", "m"])
def test_between_two_tokens_the_model_is_as_it_was(layers: str) -> None:
    """Its weights may change, and it may be copied, while someone holds a stream that is not over."""
    model, other = make(layers), make(layers)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    tokens = stream(model, PROMPT, 4, temperature=0)
    next(tokens)
    model.load_state_dict(other.state_dict())
    copied = copy.deepcopy(model)
    with torch.no_grad():
        wanted = other(PROMPT[None])
        assert torch.equal(model(PROMPT[None]), wanted)
        next(tokens)
        assert torch.equal(model(PROMPT[None]), wanted)
        tokens.close()
        assert torch.equal(copied(PROMPT[None]), wanted)


@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"top_p": 0.9}, {"min_p": 0.1}], ids=str)
def test_the_least_temperatures_are_greedy(options: dict) -> None:
    logits = torch.randn(16, 32) * 100
    for temperature in (1e-4, 1e-7, 1e-40, 5e-324):
        assert torch.equal(sample(logits, temperature, **options), logits.argmax(-1))


def test_a_copied_state_is_a_state_of_its_own() -> None:
    model = make("Mf")
    state = model.allocate_state(1)
    model(PROMPT.unsqueeze(0), state)
    before = [tensor.clone() for _, tensor in named_tensors(state)]
    suffix = torch.tensor([9, 2])
    first = generate(model, suffix, 8, temperature=0, state=copy_state(state))
    assert all(torch.equal(a, b) for (_, a), b in zip(named_tensors(state), before, strict=True))
    assert torch.equal(generate(model, suffix, 8, temperature=0, state=state), first)
    assert not any(torch.equal(a, b) for (_, a), b in zip(named_tensors(state), before, strict=True))


def test_states_that_do_not_fit_are_a_sentence(tmp_path: Path) -> None:
    model, path = make("a"), tmp_path / "state"
    state = model.allocate_state(1, max_length=9)
    model(PROMPT.unsqueeze(0), state)
    save_state(model, state, path)
    with pytest.raises(ValueError, match="max_length must be at least 5, got 4"):
        load_state(model, path, max_length=4)
    with pytest.raises(ValueError, match="a model of another configuration"):
        load_state(make("M"), path)
    with pytest.raises(FileNotFoundError, match="there is none"):
        load_state(model, tmp_path / "nothing")
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="must be a safetensors file"):
        load_state(model, path)


@pytest.mark.gpu
@pytest.mark.parametrize("layers", ["M", "m", "Mmaf"])
def test_a_graph_draws_what_steps_draw(layers: str) -> None:
    model = make(layers).cuda()
    prompts = [PROMPT.cuda(), PROMPT[:2].cuda()]
    options = dict(temperature=0, repetition_penalty=1.3, stop_tokens=[7])
    eager = generate(model, prompts, 40, cuda_graph=False, **options)
    graph = generate(model, prompts, 40, cuda_graph=True, **options)
    for a, b in zip(eager, graph, strict=True):
        assert torch.equal(a, b)


@pytest.mark.gpu
def test_a_graph_is_seeded_and_puts_back_what_making_it_changed() -> None:
    model = make().cuda()
    options = dict(temperature=0.9, top_k=20, top_p=0.95, min_p=0.01)
    first = generate(model, PROMPT.cuda(), 60, seed=5, cuda_graph=True, **options)
    assert torch.equal(first, generate(model, PROMPT.cuda(), 60, seed=5, cuda_graph=True, **options))
    assert not torch.equal(first, generate(model, PROMPT.cuda(), 60, seed=6, cuda_graph=True, **options))
    assert torch.equal(first, generate(model, PROMPT.cuda(), 60, seed=5, cuda_graph=False, **options))
    torch.manual_seed(9)
    first = generate(model, PROMPT.cuda(), 60, cuda_graph=True)
    torch.manual_seed(9)
    assert torch.equal(first, generate(model, PROMPT.cuda(), 60, cuda_graph=True))
    # Draws, not one token over and over.
    assert len(set(first.tolist())) > 5


@pytest.mark.gpu
def test_a_graph_leaves_the_state_where_steps_leave_it() -> None:
    model = make("Mmaf").cuda()
    states = []
    for cuda_graph in (False, True):
        state = model.allocate_state(1, max_length=50)
        generate(model, PROMPT.cuda(), 30, temperature=0, state=state, cuda_graph=cuda_graph)
        states.append(state)
    for (name, a), (_, b) in zip(named_tensors(states[0]), named_tensors(states[1]), strict=True):
        torch.testing.assert_close(a, b, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.gpu
def test_memory_does_not_grow_with_what_is_generated() -> None:
    model = make().cuda()

    def peak(tokens: int) -> int:
        torch.cuda.reset_peak_memory_stats()
        for _ in model.stream(PROMPT.cuda(), tokens, cuda_graph=True):
            pass
        return torch.cuda.max_memory_allocated()

    peak(20)
    assert peak(2000) <= peak(50) + 2**16


def test_draws_are_those_of_multinomial() -> None:
    logits = torch.randn(7, 1000, generator=torch.Generator().manual_seed(0))
    expected = torch.multinomial(logits.softmax(-1), 1, generator=torch.Generator().manual_seed(3)).squeeze(
        -1
    )
    assert torch.equal(sample(logits, generator=torch.Generator().manual_seed(3)), expected)
