"""Checkpoints: what is saved is what is loaded, and what does not fit is refused by name."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mamba_aot import MambaLM, MambaLMConfig, SSMConfig, from_pretrained, save_pretrained


def make(**options) -> MambaLM:
    torch.manual_seed(0)
    return MambaLM(MambaLMConfig(n_layer=2, vocab_size=32, ssm=SSMConfig(d_model=16, d_state=4), **options))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_pretrained(make(), tmp_path / "model")
    return tmp_path / "model"


def edit_config(directory: Path, **changes) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trip(tmp_path: Path, tied: bool, dtype: torch.dtype) -> None:
    model = make(tie_embeddings=tied).to(dtype)
    save_pretrained(model, tmp_path)
    loaded = from_pretrained(tmp_path)
    assert loaded.config == model.config
    assert not loaded.training
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    assert (loaded.lm_head.weight is loaded.embedding.weight) == tied
    ids = torch.arange(10).unsqueeze(0)
    torch.testing.assert_close(loaded(ids), model(ids), rtol=0, atol=0)
    loaded(ids).float().sum().backward()


def test_dtype_on_load(saved: Path) -> None:
    assert {parameter.dtype for parameter in from_pretrained(saved, dtype=torch.bfloat16).parameters()} == {
        torch.bfloat16
    }


def test_only_the_two_files_are_written(saved: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == ["config.json", "model.safetensors"]


def test_tied_head_is_stored_once(saved: Path) -> None:
    assert "lm_head.weight" not in load_file(saved / "model.safetensors")


def test_missing_file(saved: Path) -> None:
    (saved / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        from_pretrained(saved)


def test_unknown_config_keys_are_named(saved: Path) -> None:
    ssm = json.loads((saved / "config.json").read_text())["ssm"]
    edit_config(saved, n_heads=3)
    with pytest.raises(ValueError, match="does not know: n_heads"):
        from_pretrained(saved)
    path = saved / "config.json"
    config = json.loads(path.read_text())
    del config["n_heads"]
    path.write_text(json.dumps(config | {"ssm": ssm | {"spin": 1}}))
    with pytest.raises(ValueError, match=r"does not know: ssm\.spin"):
        from_pretrained(saved)


def test_config_of_another_model_is_refused(saved: Path) -> None:
    edit_config(saved, model_type="mamba2")
    with pytest.raises(ValueError, match=r"model_type .* must be .mamba_aot., .*; got 'mamba2'"):
        from_pretrained(saved)


def test_a_value_of_another_type_is_a_sentence(saved: Path) -> None:
    edit_config(saved, norm_eps="small")
    with pytest.raises(ValueError, match="norm_eps must be float, got 'small'"):
        from_pretrained(saved)
    (saved / "config.json").write_text('{"model_type": "mamba", "hidden_size": null}')
    with pytest.raises(ValueError, match=r"a value in .*config\.json is of the wrong type"):
        from_pretrained(saved)


def test_weights_that_do_not_fit_are_named(saved: Path) -> None:
    weights = load_file(saved / "model.safetensors")
    weights["layers.0.mixer.D"] = torch.zeros(3)
    weights["layers.9.mixer.D"] = torch.zeros(3)
    del weights["norm_f.weight"]
    save_file(weights, saved / "model.safetensors")
    with pytest.raises(ValueError, match="must be those of the model") as caught:
        from_pretrained(saved)
    for part in (
        "layers.9.mixer.D is unknown",
        "norm_f.weight is missing",
        "layers.0.mixer.D must be [32], got [3]",
    ):
        assert part in str(caught.value)


def test_broken_files_are_a_sentence(saved: Path) -> None:
    (saved / "model.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="must be a safetensors file"):
        from_pretrained(saved)
    (saved / "config.json").write_text("{")
    with pytest.raises(ValueError, match="must be JSON"):
        from_pretrained(saved)
