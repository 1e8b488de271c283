"""Captured steps that outlive a call: who gets them, and that they draw what new ones draw."""

from collections.abc import Callable

import pytest
import torch
from test_generation import PROMPT, make
from torch import Tensor

from mamba_aot import DecodingGraphs, decoding, generate, prompt_graphs
from mamba_aot.decoder import Decoder
from mamba_aot.decoding import prefill
from mamba_aot.decoding_graph import casting_anew
from mamba_aot.kept_graphs import CapturedStep, graph_key
from mamba_aot.prompt_graphs import PromptGraphs, fill, padded_length
from mamba_aot.sampling import Sampling
from mamba_aot.states import named_tensors


class CountCaptures:
    """How many steps decoding captures within it."""

    def __enter__(self) -> "CountCaptures":
        self.count, self._capture = 0, decoding.capture_step
        decoding.capture_step = self._counted
        return self

    def __exit__(self, *_: object) -> None:
        decoding.capture_step = self._capture

    def _counted(self, decoder: Decoder) -> Callable[[], None]:
        self.count += 1
        return self._capture(decoder)


@pytest.mark.gpu
@pytest.mark.parametrize("layers", ["M", "m", "Mmaf"])
def test_a_kept_graph_draws_what_a_new_one_draws(layers: str) -> None:
    model, graphs = make(layers).cuda(), DecodingGraphs()
    options = dict(repetition_penalty=1.3, stop_tokens=[7], top_k=20)
    with CountCaptures() as captured:
        # Prompts are padded to 16, 32 and 64 tokens, so that some graphs read more than one.
        long = PROMPT.repeat(20)
        pairs = [(PROMPT, PROMPT[:2]), (long[:20], PROMPT[:4]), (PROMPT[:1], PROMPT), (long[:60], long[:33])]
        for pair in [*pairs, pairs[1]]:
            prompts = [prompt.cuda() for prompt in pair]
            # The same number of slots for attention.
            tokens = 80 - max(map(len, prompts))
            kept = generate(model, prompts, tokens, seed=3, graphs=graphs, **options)
            eager = generate(model, prompts, tokens, seed=3, cuda_graph=False, **options)
            assert all(torch.equal(a, b) for a, b in zip(kept, eager, strict=True))
            # Weights that have changed in place are those of the next call, A among them.
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(1.1)
    assert captured.count == 1
    assert len(graphs) == 1


@pytest.mark.gpu
def test_a_graph_reads_a_prompt_as_the_model_does(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = make("Mmaf").cuda(), [PROMPT.cuda(), PROMPT[:2].cuda()]
    decoder = Decoder(model, model.allocate_state(2, max_length=20), rows, Sampling(), ())
    prompts = PromptGraphs(decoder)
    with torch.inference_mode(), model.fixed_decays():
        for given in (rows, [rows[1], rows[0]], rows):
            decoder.restart(given, None)
            logits = prompts.read(given)
            state = model.allocate_state(2, max_length=20)
            torch.testing.assert_close(logits, prefill(model, given, state, None))
            for (name, kept), (_, new) in zip(
                named_tensors(decoder.state), named_tensors(state), strict=True
            ):
                # The last slot of attention takes what padding leaves.
                kept, new = (x[:, :, :-1] if name.endswith((".keys", ".values")) else x for x in (kept, new))
                torch.testing.assert_close(kept, new)
    monkeypatch.setattr(prompt_graphs, "MOST_WORK", 0)
    assert prompts.read(rows) is None


@pytest.mark.parametrize(
    ("lengths", "parameters", "wanted"),
    [
        ([1], 10**6, 16),
        ([16, 3], 10**6, 16),
        ([3, 17], 10**6, 32),
        ([64], 10**6, 64),
        ([4096], 130 * 10**6, 4096),
        ([4097], 130 * 10**6, None),
        ([256], 28 * 10**8, 256),
        ([200, 1], 28 * 10**8, None),
    ],
)
def test_what_prompts_are_padded_to(lengths: list[int], parameters: int, wanted: int | None) -> None:
    rows = [torch.zeros(length, dtype=torch.int64) for length in lengths]
    assert padded_length(rows, parameters) == wanted


@pytest.mark.parametrize("layers", ["M", "m", "Mmaf"])
def test_padded_prompts_are_read_like_others(layers: str) -> None:
    model = make(layers)
    ids, mask = torch.full((3, 16), 5), torch.ones(3, 16, dtype=torch.bool)
    for rows in ([PROMPT, PROMPT[:2], PROMPT[1:4].int()], [PROMPT[:1], PROMPT.repeat(4)[:16], PROMPT[2:]]):
        fill(ids, mask, rows)
        assert [row[kept].tolist() for row, kept in zip(ids, mask, strict=True)] == [r.tolist() for r in rows]
        states = [model.allocate_state(3, max_length=20) for _ in range(2)]
        with torch.inference_mode():
            logits = model(ids, states[0], attention_mask=mask, last_only=True)
        torch.testing.assert_close(logits, prefill(model, rows, states[1], None))
        for _ in range(3):
            tokens = logits.argmax(-1)
            logits = model.step(tokens, states[0])
            torch.testing.assert_close(logits, model.step(tokens, states[1]))


@pytest.mark.gpu
def test_a_kept_graph_is_for_what_it_was_made_for() -> None:
    model, graphs = make("m").cuda(), DecodingGraphs()
    prompt, other = PROMPT.cuda(), PROMPT[:3].cuda()
    wanted = [generate(model, p, 20, temperature=0) for p in (prompt, other)]
    streams = [model.stream(p, 20, temperature=0, graphs=graphs) for p in (prompt, other)]
    with CountCaptures() as captured:
        # At the same time, so that neither may have the other's graph.
        drawn = [[token.ids for token in pair] for pair in zip(*streams, strict=True)]
        assert captured.count == 2
        assert len(graphs) == 2
        for row, (p, whole) in enumerate(zip((prompt, other), wanted, strict=True)):
            assert torch.equal(torch.cat([p, *(ids[row] for ids in drawn)]), whole)
        # One that is not read to its end is given back, too.
        next(iter(model.stream(prompt, 20, temperature=0, graphs=graphs)))
        assert captured.count == 2
        assert len(graphs) == 2
        # An answer too short for a graph of its own takes a kept one.
        assert len(list(model.stream(prompt, 2, temperature=0, graphs=graphs))) == 2
        assert captured.count == 2
        state = model.allocate_state(1)
        generate(model, prompt, 20, temperature=0, graphs=graphs, state=state)
        assert captured.count == 3
        generate(model, prompt.expand(2, -1), 20, temperature=0, graphs=graphs)
        generate(model, prompt, 20, temperature=0.5, graphs=graphs)
        assert captured.count == 5
        assert len(graphs) == 4
        model.bfloat16()
        generate(model, prompt, 20, temperature=0, graphs=graphs)
        assert captured.count == 6
        assert len(graphs) == 4
    graphs.clear()
    assert len(graphs) == 0


@pytest.mark.gpu
def test_a_graph_kept_from_autocast_holds_what_it_reads() -> None:
    model, graphs, prompt = make("m").cuda(), DecodingGraphs(), PROMPT.cuda()
    spoiled: list[Tensor] = []
    for _ in range(2):
        with torch.autocast("cuda", torch.bfloat16):
            eager = generate(model, prompt, 20, temperature=0, cuda_graph=False)
            kept = generate(model, prompt, 20, temperature=0, graphs=graphs)
        assert torch.equal(kept, eager)
        # In the place of weights that the context had cast.
        spoiled += [torch.full_like(p, torch.nan, dtype=torch.bfloat16) for p in model.parameters()]
    assert len(graphs) == 1


@pytest.mark.parametrize("enabled", [True, False])
def test_a_capture_keeps_autocast_but_not_what_it_has_cast(enabled: bool) -> None:
    weight, seen = torch.nn.Parameter(torch.ones(2, 2)), []

    def cast() -> Tensor:
        # What autograd keeps of a product is the weight that it takes.
        with torch.autograd.graph.saved_tensors_hooks(lambda t: seen.append(t) or t, lambda t: t):
            return torch.ones(3, 2, dtype=torch.bfloat16 if enabled else None, requires_grad=True) @ weight

    with torch.autocast("cpu", torch.bfloat16, enabled):
        first = cast()
        with casting_anew("cpu"):
            assert torch.is_autocast_enabled("cpu") == enabled
            assert torch.get_autocast_dtype("cpu") == torch.bfloat16
            anew = cast()
        assert anew.dtype == first.dtype == (torch.bfloat16 if enabled else torch.float32)
    places = {t.data_ptr() for t in seen if t.shape == weight.shape}
    assert len(places) == (2 if enabled else 1)


def test_kept_steps_are_for_one_call_at_a_time() -> None:
    model = make()
    decoders = [Decoder(model, model.allocate_state(1), [PROMPT], Sampling(), ()) for _ in range(3)]
    steps = [CapturedStep(decoder, decoder.advance, []) for decoder in decoders]
    graphs = DecodingGraphs(most=2)
    assert graphs.take("a") is None
    for key, step in zip("aab", steps, strict=True):
        graphs.give(key, step)
    # The first is the one unused for longest.
    assert len(graphs) == 2
    assert graphs.take("a") is steps[1]
    assert graphs.take("a") is None
    assert graphs.take("b") is steps[2]
    assert len(graphs) == 0
    with pytest.raises(ValueError, match="most must be at least 1, got 0"):
        DecodingGraphs(most=0)


def test_a_decoder_that_starts_again_draws_what_a_new_one_draws() -> None:
    model = make("Mmaf")
    rows, others = [PROMPT, PROMPT[:2]], [PROMPT[:3], PROMPT[1:4]]

    def drawn(decoder: Decoder, rows: list[Tensor]) -> list[Tensor]:
        with torch.inference_mode():
            decoder.start(prefill(model, rows, decoder.state, None))
            tokens = [decoder.ids.clone()]
            for _ in range(10):
                decoder.advance()
                tokens.append(decoder.ids.clone())
        return tokens

    def new(rows: list[Tensor]) -> Decoder:
        state = model.allocate_state(2, max_length=20)
        decoder = Decoder(model, state, rows, Sampling(repetition_penalty=1.5), (7,))
        decoder.generator = torch.Generator().manual_seed(3)
        return decoder

    decoder = new(rows)
    first = drawn(decoder, rows)
    decoder.restart(others, 3)
    assert all(
        torch.equal(a, b) for a, b in zip(drawn(decoder, others), drawn(new(others), others), strict=True)
    )
    decoder.restart(rows, 3)
    assert all(torch.equal(a, b) for a, b in zip(drawn(decoder, rows), first, strict=True))


def test_on_a_cpu_no_graph_is_kept() -> None:
    model, graphs = make(), DecodingGraphs()
    kept = generate(model, PROMPT, 20, temperature=0, graphs=graphs)
    assert torch.equal(kept, generate(model, PROMPT, 20, temperature=0))
    assert len(graphs) == 0


def test_what_a_kept_graph_depends_on() -> None:
    model = make("m")
    key = graph_key(model, 2, 10, "how")
    assert key == graph_key(model, 2, 10, "how") == graph_key(model, 2, 20, "how")
    others = [
        graph_key(model, 3, 10, "how"),
        graph_key(model, 2, 10, "other"),
        graph_key(make("m"), 2, 10, "how"),
    ]
    with torch.autocast("cpu", torch.bfloat16):
        others.append(graph_key(model, 2, 10, "how"))
    assert key not in others
    hybrid = make("Mmaf")
    assert graph_key(hybrid, 2, 10) != graph_key(hybrid, 2, 20)
