"""Transformers and peft on the same weights: equal logits both ways, equal tokens, adapters that train."""

from pathlib import Path

import pytest
import torch
import transformers
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor

from mamba_aot import Mamba1Config, MambaLM, MambaLMConfig, SSMConfig, from_pretrained, save_pretrained

VOCABULARY = 61
SIZES = dict(vocab_size=VOCABULARY, hidden_size=32, state_size=8, num_hidden_layers=2)

KINDS = {
    "mamba": lambda: transformers.MambaForCausalLM(transformers.MambaConfig(**SIZES)),
    "mamba, other options": lambda: transformers.MambaForCausalLM(
        transformers.MambaConfig(
            **SIZES,
            use_bias=True,
            use_conv_bias=False,
            conv_kernel=3,
            time_step_rank=5,
            tie_word_embeddings=False,
            layer_norm_epsilon=1e-3,
            residual_in_fp32=False,
        )
    ),
    "falcon_mamba": lambda: transformers.FalconMambaForCausalLM(
        transformers.FalconMambaConfig(**SIZES, tie_word_embeddings=False, expand=3, mixer_rms_eps=1e-3)
    ),
}


@pytest.fixture(params=KINDS)
def theirs(request: pytest.FixtureRequest) -> torch.nn.Module:
    torch.manual_seed(0)
    model = KINDS[request.param]().eval()
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight") or name.endswith("bias"):
            torch.nn.init.normal_(parameter, mean=0.7, std=0.3)
    return model


def ids(batch: int = 2, length: int = 23) -> Tensor:
    return torch.randint(1, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def assert_same_logits(theirs: torch.nn.Module, ours: MambaLM) -> None:
    expected = theirs(ids()).logits
    assert (ours(ids()) - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_their_checkpoint_gives_their_logits(theirs: torch.nn.Module, tmp_path: Path) -> None:
    theirs.save_pretrained(tmp_path)
    assert_same_logits(theirs, from_pretrained(tmp_path))


def test_their_shards_are_read(theirs: torch.nn.Module, tmp_path: Path) -> None:
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert_same_logits(theirs, from_pretrained(tmp_path))


def test_our_checkpoint_is_loaded_by_transformers(theirs: torch.nn.Module, tmp_path: Path) -> None:
    theirs.save_pretrained(tmp_path / "theirs")
    ours = from_pretrained(tmp_path / "theirs")
    for size in (5 * 2**30, 20_000):
        save_pretrained(ours, tmp_path / "ours", max_shard_size=size)
        again, report = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path / "ours", output_loading_info=True
        )
        assert type(again) is type(theirs)
        assert not report["missing_keys"]
        assert not report["unexpected_keys"]
        assert not report["mismatched_keys"]
        assert_same_logits(again, ours)
        assert from_pretrained(tmp_path / "ours").config == ours.config


def test_their_tokens_are_ours(theirs: torch.nn.Module, tmp_path: Path) -> None:
    theirs.save_pretrained(tmp_path)
    ours = from_pretrained(tmp_path)
    mask = torch.ones_like(ids())
    expected = theirs.generate(
        ids(), attention_mask=mask, max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    assert torch.equal(ours.generate(ids(), 12, temperature=0), expected)


@torch.no_grad()
def test_left_padding_is_inert(theirs: torch.nn.Module, tmp_path: Path) -> None:
    theirs.save_pretrained(tmp_path)
    mask = torch.ones_like(ids())
    mask[0, :9] = 0
    # Without padding, because theirs is not inert behind a bias of in_proj.
    expected = torch.cat([theirs(ids()[:1, 9:]).logits[0], theirs(ids()[1:]).logits[0]])
    got = from_pretrained(tmp_path)(ids(), attention_mask=mask)[mask.bool()]
    assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("eps", [None, 1e-6])
def test_a_model_made_here_is_theirs(tmp_path: Path, eps: float | None) -> None:
    torch.manual_seed(0)
    config = MambaLMConfig(
        2, VOCABULARY, SSMConfig(d_model=32), layers="m", mamba1=Mamba1Config(mixer_rms_eps=eps)
    )
    ours = MambaLM(config)
    save_pretrained(ours, tmp_path)
    assert_same_logits(transformers.AutoModelForCausalLM.from_pretrained(tmp_path), ours)


def test_lora_trains_every_projection_and_nothing_else() -> None:
    torch.manual_seed(0)
    model = MambaLM(MambaLMConfig(2, VOCABULARY, SSMConfig(d_model=32), layers="m"))
    before = model(ids())
    targets = ["in_proj", "x_proj", "dt_proj", "out_proj"]
    inject_adapter_in_model(LoraConfig(r=2, target_modules=targets), model)
    torch.testing.assert_close(model(ids()), before)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(3):
        loss = model.loss(ids()[:, :-1], ids()[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * len(targets) * 2
    for name, parameter in trained.items():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
