"""Published layouts of checkpoints: what mamba_ssm wrote is read, what one can't say is refused by name."""

import json
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file

from mamba_aot import Mamba1Config, MambaLM, MambaLMConfig, SSMConfig, from_pretrained, save_pretrained

SSM = SSMConfig(d_model=16, d_state=4)


def make(**options) -> MambaLM:
    torch.manual_seed(0)
    return MambaLM(MambaLMConfig(2, 32, SSM, **{"layers": "m", **options})).eval()


def as_published(model: MambaLM, directory: Path) -> None:
    """Writes `model` as the state-spaces models were published: a pickle with the head, padded."""
    directory.mkdir()
    config = {
        "d_model": 16,
        "n_layer": 2,
        "vocab_size": 27,
        "ssm_cfg": {"d_state": 4},
        "rms_norm": model.config.norm == "rms",
        "residual_in_fp32": True,
        "fused_add_norm": True,
        "pad_vocab_size_multiple": 8,
    }
    (directory / "config.json").write_text(json.dumps(config))
    weights = {
        name if name.startswith("lm_head") else f"backbone.{name}": tensor
        for name, tensor in model.state_dict().items()
    }
    torch.save(weights, directory / "pytorch_model.bin")


def edit_config(directory: Path, **changes) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def published(tmp_path: Path) -> Path:
    as_published(make(), tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_published_pickles_are_read(tmp_path: Path, norm: str) -> None:
    model, ids = make(norm=norm), torch.arange(12).unsqueeze(0)
    as_published(model, tmp_path / "model")
    loaded = from_pretrained(tmp_path / "model")
    assert loaded.config.vocab_size == 32
    assert loaded.config.residual_in_fp32
    assert loaded.lm_head.weight is loaded.embedding.weight
    torch.testing.assert_close(loaded(ids), model(ids), rtol=0, atol=0)


@pytest.mark.parametrize("layout", ["transformers", "mamba_ssm", "mamba_aot"])
@pytest.mark.parametrize("tied", [True, False])
def test_every_layout_comes_back_as_it_was(tmp_path: Path, layout, tied: bool) -> None:
    options = dict(tie_embeddings=tied, mamba1=Mamba1Config(dt_init="constant", dt_scale=0.5))
    model, ids = make(**options), torch.arange(12).unsqueeze(0)
    save_pretrained(model, tmp_path, layout=layout)
    loaded = from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(ids), model(ids), rtol=0, atol=0)
    # The public layouts write the rank that "auto" stands for.
    save_pretrained(loaded, tmp_path / "again", layout=layout)
    assert from_pretrained(tmp_path / "again").config == loaded.config


def test_shards_of_one_save_replace_those_of_another(tmp_path: Path) -> None:
    model = make()
    save_pretrained(model, tmp_path, max_shard_size=5_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    shards = sorted(path.name for path in tmp_path.glob("model-*"))
    assert len(shards) > 2
    assert shards == sorted(set(index["weight_map"].values()))
    assert index["metadata"]["total_size"] == sum(p.numel() * 4 for p in model.parameters())
    assert all((tmp_path / name).stat().st_size < 15_000 for name in shards)
    before = from_pretrained(tmp_path).state_dict()
    with torch.no_grad():
        model.norm_f.weight.fill_(2)
    save_pretrained(model, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert (load_file(tmp_path / "model.safetensors")["backbone.norm_f.weight"] == 2).all()
    assert (before["norm_f.weight"] == 1).all()


def test_auto_takes_transformers_where_it_can(tmp_path: Path) -> None:
    for options, kind in (({}, "mamba"), ({"norm": "layer"}, "mamba_aot"), ({"layers": "mf"}, "mamba_aot")):
        save_pretrained(make(**options), tmp_path)
        assert json.loads((tmp_path / "config.json").read_text())["model_type"] == kind
        assert from_pretrained(tmp_path).config.layers == options.get("layers", "m")


@pytest.mark.parametrize(
    ("options", "layout", "sentence"),
    [
        ({"layers": "mf"}, "transformers", "holds Mamba1 layers .* only, this model has 'mf'"),
        ({"layers": "M"}, "mamba_ssm", "holds Mamba1 layers"),
        ({"norm": "layer"}, "transformers", 'norm "rms" only'),
        ({"mamba1": Mamba1Config(mixer_rms_eps=1e-6)}, "mamba_ssm", "no norms inside the mixer"),
        ({"norm_eps": 1e-6}, "mamba_ssm", "norm_eps 1e-5 only"),
    ],
)
def test_what_a_layout_cannot_hold_is_refused(tmp_path: Path, options, layout, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        save_pretrained(make(**options), tmp_path, layout=layout)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"moe": 8}, "does not know: moe"),
        ({"ssm_cfg": {"d_state": 4, "headdim": 64}}, r"does not know: ssm_cfg\.headdim"),
        ({"ssm_cfg": {"layer": "Mamba2"}}, r"ssm_cfg\.layer in .* must be 'Mamba1', got 'Mamba2'"),
        ({"attn_layer_idx": [1]}, r"attn_layer_idx in .* must be \[\], got \[1\]"),
        ({"d_intermediate": 64}, "d_intermediate in .* must be 0, got 64"),
        ({"pad_vocab_size_multiple": 0}, "is of the wrong type, or 0 where none may be: "),
    ],
)
def test_other_models_of_mamba_ssm_are_refused_by_name(published: Path, changes, sentence: str) -> None:
    edit_config(published, **changes)
    with pytest.raises(ValueError, match=sentence):
        from_pretrained(published)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"sliding_window": 8}, "does not know: sliding_window"),
        ({"mixer_rms_eps": 1e-6}, "does not know: mixer_rms_eps"),
        ({"hidden_act": "gelu"}, "hidden_act in .* must be 'silu' or 'swish', got 'gelu'"),
        ({"intermediate_size": 40}, "intermediate_size in .* must be a multiple of hidden_size = 16, got 40"),
        ({"tie_word_embeddings": False}, "lm_head.weight is missing"),
        ({"hidden_size": 0}, "is of the wrong type, or 0 where none may be: "),
        ({"time_step_scale": None}, "is of the wrong type, or 0 where none may be: "),
        ({"time_step_floor": "x"}, "is of the wrong type, or 0 where none may be: "),
    ],
)
def test_other_models_of_transformers_are_refused_by_name(tmp_path: Path, changes, sentence: str) -> None:
    save_pretrained(make(), tmp_path)
    edit_config(tmp_path, **changes)
    with pytest.raises(ValueError, match=sentence):
        from_pretrained(tmp_path)


def test_intermediate_size_overrules_expand(tmp_path: Path) -> None:
    save_pretrained(make(), tmp_path)
    edit_config(tmp_path, expand=16)
    assert from_pretrained(tmp_path).config.ssm.expand == 2


def test_two_different_heads_are_not_tied(published: Path) -> None:
    weights = torch.load(published / "pytorch_model.bin")
    weights["lm_head.weight"] = weights["lm_head.weight"] + 1
    torch.save(weights, published / "pytorch_model.bin")
    with pytest.raises(ValueError, match="the weights hold two different ones"):
        from_pretrained(published)


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harm-was-done",)


def test_a_pickle_of_more_than_tensors_runs_nothing(
    published: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"backbone.norm_f.weight": Harmful()}, published / "pytorch_model.bin")
    with pytest.raises(ValueError, match="must be a pickle of tensors alone"):
        from_pretrained(published)
    assert not (tmp_path / "harm-was-done").exists()
    torch.save([torch.zeros(1)], published / "pytorch_model.bin")
    with pytest.raises(ValueError, match="must hold a dict of tensors, got list"):
        from_pretrained(published)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    save_pretrained(make(), tmp_path, max_shard_size=5_000)
    shard = sorted(tmp_path.glob("model-*"))[1]
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=f"names {shard.name}, which is missing"):
        from_pretrained(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match="must be JSON with a weight_map"):
        from_pretrained(tmp_path)


def test_hub_names_are_fetched(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def snapshot_download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        calls.append((name, revision, allow_patterns))
        return str(published)

    hub = ModuleType("huggingface_hub")
    hub.snapshot_download = snapshot_download  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    model = from_pretrained("state-spaces/tiny", revision="v1")
    assert model.config.n_layer == 2
    # There is no safetensors file: the pickle is asked for next.
    assert [(name, revision) for name, revision, _ in calls] == [("state-spaces/tiny", "v1")] * 2
    assert any("safetensors" in pattern for pattern in calls[0][2])
    assert not any(".bin" in pattern for pattern in calls[0][2])
    assert "pytorch_model*.bin" in calls[1][2]


def test_hub_names_without_the_hub_are_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        ImportError, match=r'huggingface_hub must be installed: pip install "mamba-aot\[hf\]"'
    ):
        from_pretrained("state-spaces/tiny")
    for name in ("./nothing", "nothing", "a/b/c"):
        with pytest.raises(FileNotFoundError, match="there is no such directory"):
            from_pretrained(name)
