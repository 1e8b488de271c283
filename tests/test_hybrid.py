"""Models of any pattern of layers: steps, pieces, padded and packed rows equal whole sequences; training."""

from collections import Counter

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mamba_aot import (
    Attention,
    AttentionConfig,
    GatedMLP,
    Mamba1Config,
    MambaLM,
    MambaLMConfig,
    MLPConfig,
    SSMConfig,
)

PATTERNS = ["m", "a", "mf", "Mmaf"]
VOCABULARY = 64


def make(layers: str, **options) -> MambaLM:
    torch.manual_seed(0)
    fields = {
        "n_layer": 4,
        "vocab_size": VOCABULARY,
        "ssm": SSMConfig(d_model=16, d_state=4),
        "attention": AttentionConfig(n_heads=4, n_kv_heads=2),
        "mlp": MLPConfig(d_hidden=24),
        **options,
    }
    model = MambaLM(MambaLMConfig(layers=layers, **fields))
    # Logits far enough apart for a mistake to show.
    torch.nn.init.normal_(model.embedding.weight, std=0.5)
    return model


def tokens(batch: int = 2, length: int = 21) -> Tensor:
    return torch.randint(VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(1))


def steps(model: MambaLM, ids: Tensor, state) -> Tensor:
    return torch.stack([model.step(token, state) for token in ids.unbind(1)], dim=1)


@pytest.mark.parametrize("layers", PATTERNS)
def test_steps_equal_the_sequence(layers: str) -> None:
    model, ids = make(layers), tokens()
    stepped = steps(model, ids, model.allocate_state(2, max_length=21))
    torch.testing.assert_close(stepped, model(ids), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layers", PATTERNS)
def test_pieces_through_a_state_equal_the_whole(layers: str) -> None:
    model, ids = make(layers), tokens()
    state = model.allocate_state(2, max_length=30)
    pieces = [model(ids[:, a:b], state) for a, b in ((0, 2), (2, 3), (3, 16))]
    pieces.append(steps(model, ids[:, 16:], state))
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(ids), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("layers", PATTERNS)
def test_padded_rows_equal_the_rows_alone(layers: str, side: str) -> None:
    model, ids = make(layers), tokens(3, 9)
    mask = torch.zeros(3, 9, dtype=torch.bool)
    rows = [slice(9 - n, 9) if side == "left" else slice(0, n) for n in (9, 4, 1)]
    for index, row in enumerate(rows):
        mask[index, row] = True
    state = model.allocate_state(3, max_length=12)
    logits = model(ids, state, attention_mask=mask)
    last = model(ids, attention_mask=mask, last_only=True)
    follows = model.step(ids[:, 0], state)
    for index, row in enumerate(rows):
        alone = torch.cat([ids[index : index + 1, row], ids[index : index + 1, :1]], dim=1)
        expected = model(alone)[0]
        torch.testing.assert_close(logits[index, row], expected[:-1], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(last[index], expected[-2], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(follows[index], expected[-1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layers", ["a", "af"])
def test_packed_sequences_equal_the_sequences_alone(layers: str) -> None:
    model, ids = make(layers), tokens(1, 20)
    ends = torch.tensor([0, 7, 8, 20], dtype=torch.int32)
    packed = model(ids, cu_seqlens=ends)
    alone = [model(ids[:, a:b]) for a, b in ((0, 7), (7, 8), (8, 20))]
    torch.testing.assert_close(packed, torch.cat(alone, dim=1), rtol=1e-4, atol=1e-4)
    last = model(ids, cu_seqlens=ends, last_only=True)
    torch.testing.assert_close(last, torch.cat([a[:, -1] for a in alone]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layers", PATTERNS)
def test_learns_a_repeated_text(layers: str) -> None:
    model = make(layers)
    text = torch.arange(8).repeat(4).expand(2, -1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        model.loss(text[:, :-1], text[:, 1:]).backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        optimizer.step()
    assert model.loss(text[:, :-1], text[:, 1:]).item() < 0.5


def test_training_through_a_state_reaches_every_parameter() -> None:
    model, ids = make("Mmaf"), tokens()
    state = model.allocate_state(2, max_length=21)
    (model(ids[:, :10], state).square().sum() + model(ids[:, 10:], state).square().sum()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("layers", ["m", "Mmaf"])
def test_compiles_to_one_graph(layers: str) -> None:
    model, ids = make(layers), tokens(length=5)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(ids), model(ids))


def test_layer_norm_and_a_wide_residual() -> None:
    model, ids = make("mf", norm="layer"), tokens()
    exact = model(ids)
    assert {"weight", "bias"} == {name for name, _ in model.norm_f.named_parameters()}
    errors = {}
    for wide in (False, True):
        narrow = make("mf", norm="layer", residual_in_fp32=wide).bfloat16()
        residuals = []
        narrow.layers[2].register_forward_pre_hook(lambda _, args, kept=residuals: kept.append(args[1].dtype))
        errors[wide] = (narrow(ids).float() - exact).abs().mean().item()
        assert residuals == [torch.float32 if wide else torch.bfloat16]
    assert errors[True] < 1.2 * errors[False]


class CountOps(TorchDispatchMode):
    """Counts the calls of this package's ops and of matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("mode", "convolutions", "scans", "products"),
    [("none", 1, 1, 1), ("selective", 2, 1, 1), ("full", 2, 2, 2)],
)
def test_recomputing_changes_memory_and_not_gradients(
    mode, convolutions: int, scans: int, products: int
) -> None:
    def gradients(model: MambaLM) -> tuple[list[Tensor], Counter]:
        with CountOps() as counter:
            model.loss(ids[:, :-1], ids[:, 1:]).backward()
        grads = [parameter.grad for parameter in model.parameters()]
        return [grad for grad in grads if grad is not None], counter.calls

    ids = tokens()
    expected, kept = gradients(make("mm").train())
    model = make("mm").train()
    model.recompute = mode
    got, calls = gradients(model)
    for ours, theirs in zip(got, expected, strict=True):
        assert torch.equal(ours, theirs)
    assert calls["causal_conv1d_fwd"] == 4 * convolutions
    assert calls["selective_scan_fwd"] == 4 * scans
    # in_proj, x_proj, dt_proj and out_proj; out_proj's result is not needed to go backward.
    again = calls["mm"] + calls["addmm"] - kept["mm"] - kept["addmm"]
    assert (again > 0) == (products == 2)


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_recomputing_compiles(mode) -> None:
    ids, plain, model = tokens(), make("Mmaf").train(), make("Mmaf").train()
    model.recompute = mode
    loss = torch.compile(model.loss, fullgraph=True, backend="aot_eager")
    loss(ids[:, :-1], ids[:, 1:]).backward()
    plain.loss(ids[:, :-1], ids[:, 1:]).backward()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_exports_with_any_length() -> None:
    model, length = make("Mmaf").eval(), torch.export.Dim("length", min=2, max=4096)
    program = torch.export.export(model, (tokens(),), dynamic_shapes={"ids": {1: length}})
    torch.testing.assert_close(program.module()(tokens(2, 33)), model(tokens(2, 33)))


def test_attention_is_the_textbook_one() -> None:
    torch.manual_seed(0)
    config = AttentionConfig(n_heads=4, n_kv_heads=2, head_dim=6, rotary_dim=4, rotary_base=100.0, bias=True)
    attention, x = Attention(16, config), torch.randn(2, 7, 16)

    def heads(projection, count: int) -> Tensor:
        return projection(x).view(2, 7, count, 6).transpose(1, 2)

    def rotate(h: Tensor) -> Tensor:
        """Channels i and i + 2 as a complex number that turns by its frequency every step."""
        pairs = torch.complex(h[..., :2], h[..., 2:4])
        turns = torch.exp(1j * torch.arange(7.0)[:, None] * torch.tensor([1.0, 0.1]))
        pairs = pairs * turns
        return torch.cat([pairs.real, pairs.imag, h[..., 4:]], dim=-1)

    q = rotate(heads(attention.q_proj, 4))
    k = rotate(heads(attention.k_proj, 2)).repeat_interleave(2, dim=1)
    v = heads(attention.v_proj, 2).repeat_interleave(2, dim=1)
    scores = (q @ k.transpose(2, 3) / 6**0.5).masked_fill(torch.ones(7, 7).triu(1).bool(), -torch.inf)
    expected = attention.o_proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(2, 7, 24))
    torch.testing.assert_close(attention(x), expected, rtol=1e-4, atol=1e-5)


def test_attention_without_positions_does_not_see_order() -> None:
    torch.manual_seed(0)
    attention, x = Attention(16, AttentionConfig(n_heads=2, rotary_dim=0)), torch.randn(1, 6, 16)
    order = torch.tensor([3, 1, 0, 4, 2, 5])
    torch.testing.assert_close(attention(x[:, order])[:, -1], attention(x)[:, -1], rtol=1e-4, atol=1e-6)


def test_sizes_of_the_gated_mlp() -> None:
    assert GatedMLP(768, MLPConfig()).fc2.weight.shape == (768, 2048)
    mlp, x = GatedMLP(8, MLPConfig(d_hidden=3, bias=True)), torch.randn(2, 8)
    y, gate = mlp.fc1(x)[:, :3], mlp.fc1(x)[:, 3:]
    torch.testing.assert_close(mlp(x), mlp.fc2(y * gate * torch.sigmoid(gate)))


def test_a_full_cache_is_a_sentence() -> None:
    model = make("a")
    state = model.allocate_state(1, max_length=3)
    model(tokens(1, 3), state)
    with pytest.raises(ValueError, match="the state has 3 slots, 4 tokens must fit"):
        model.step(tokens(1, 1)[:, 0], state)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: make("mx"), "layers must be letters of \"M\" .* got 'mx'"),
        (lambda: make("mma"), "layers must repeat until there are n_layer = 4, got 3 letters in 'mma'"),
        (lambda: MambaLMConfig(norm="batch"), 'norm must be "rms" or "layer"'),  # pyright: ignore
        (lambda: MambaLMConfig(norm_eps=-1), "norm_eps must be finite and at least 0, got -1"),
        (lambda: MambaLMConfig(norm_eps=float("nan")), "norm_eps must be finite and at least 0, got nan"),
        (
            lambda: MambaLMConfig(mamba1=Mamba1Config(mixer_rms_eps=-1.0)),
            r"mamba1\.mixer_rms_eps must be finite",
        ),
        (lambda: AttentionConfig(rotary_base=0), "rotary_base must be finite and above 0, got 0"),
        (lambda: make("a").allocate_state(1), "give allocate_state a max_length"),
        (lambda: make("M").allocate_state(1, ssm_dtype=torch.bfloat16), "ssm_dtype is for published blocks"),
        (lambda: AttentionConfig(n_heads=4, n_kv_heads=3), "n_kv_heads must divide n_heads = 4, got 3"),
        (lambda: AttentionConfig(rotary_dim=3), "rotary_dim must be even"),
        (lambda: AttentionConfig(n_heads=0), "n_heads must be an integer of at least 1"),
        (lambda: Attention(10, AttentionConfig(n_heads=4)), "n_heads must divide d_model = 10, got 4"),
        (lambda: Attention(8, AttentionConfig(n_heads=8)), "at most head_dim = 1, got 1"),
        (lambda: MLPConfig(d_hidden=0), "d_hidden must be an integer of at least 1, got 0"),
        (
            lambda: make("m")(tokens(1), attention_mask=tokens(1), cu_seqlens=torch.tensor([0, 21]).int()),
            "attention_mask or cu_seqlens, not both",
        ),
        (
            lambda: make("a")(
                tokens(1), make("a").allocate_state(1, max_length=21), cu_seqlens=torch.tensor([0, 21]).int()
            ),
            "packed sequences have no state of keys and values",
        ),
        (lambda: make("a")(tokens(2), make("a").allocate_state(3, max_length=30)), "batch size .* 2, got 3"),
        (lambda: setattr(make("m"), "recompute", "some"), "one of none, selective, full, got 'some'"),
    ],
)
def test_bad_input_is_a_sentence(call, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call()


def test_options_of_mamba1_reach_the_layers() -> None:
    model = make("m", mamba1=Mamba1Config(mixer_rms_eps=1e-5, dt_init="constant", dt_scale=0.5))
    mixer = model.layers[0].mixer
    assert mixer.mixer_rms_eps == 1e-5
    assert (mixer.dt_proj.weight == 0.5).all()


@pytest.mark.gpu
@pytest.mark.parametrize("layers", PATTERNS)
def test_cuda_equals_cpu(layers: str) -> None:
    cpu, cuda, ids = make(layers), make(layers).cuda(), tokens()
    expected = cpu(ids)
    torch.testing.assert_close(cuda(ids.cuda()).cpu(), expected, rtol=1e-3, atol=1e-3)
    state = cuda.allocate_state(2, max_length=21)
    torch.testing.assert_close(steps(cuda, ids.cuda(), state).cpu(), expected, rtol=1e-3, atol=1e-3)
    mask = torch.ones(2, 21)
    mask[1, :9] = 0
    got = cuda(ids.cuda(), attention_mask=mask.cuda())[mask.bool()].cpu()
    torch.testing.assert_close(got, cpu(ids, attention_mask=mask)[mask.bool()], rtol=1e-3, atol=1e-3)
