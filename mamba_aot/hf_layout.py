"""The layouts that checkpoints come in: what their `config.json` means here, and how their weights are named.

Three are read and written: this package's own, which holds every model; that of transformers (`model_type`
"mamba" and "falcon_mamba"); and that of `mamba_ssm`, in which the state-spaces models were published. The
last two hold stacks of `Mamba1` only.
"""

import dataclasses
from typing import Any, Literal

from mamba_aot.config import Mamba1Config, MambaLMConfig, parse, refuse_unknown
from mamba_aot.layers import SSMConfig

Layout = Literal["mamba_aot", "transformers", "mamba_ssm"]

# Keys of transformers that say nothing about the logits of a given token sequence.
_WITHOUT_EFFECT = {
    "_name_or_path",
    "architectures",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "initializer_range",
    "pad_token_id",
    "rescale_prenorm_residual",
    "torch_dtype",
    "transformers_version",
    "use_associative_scan",
    "use_cache",
    "use_falcon_mambapy",
    "use_mambapy",
}
# The published conversions still hold the keys they were converted from, which say the same again.
_LEFT_OVER = {
    "d_inner",
    "d_model",
    "fused_add_norm",
    "n_layer",
    "pad_vocab_size_multiple",
    "rms_norm",
    "ssm_cfg",
}
_TRANSFORMERS_DEFAULTS: dict[str, Any] = {
    "vocab_size": 50280,
    "hidden_size": 768,
    "state_size": 16,
    "num_hidden_layers": 32,
    "layer_norm_epsilon": 1e-5,
    "expand": 2,
    "conv_kernel": 4,
    "use_bias": False,
    "use_conv_bias": True,
    "hidden_act": "silu",
    "residual_in_fp32": True,
    "time_step_rank": "auto",
    "time_step_scale": 1.0,
    "time_step_min": 0.001,
    "time_step_max": 0.1,
    "time_step_init_scheme": "random",
    "time_step_floor": 1e-4,
    "tie_word_embeddings": True,
    "mixer_rms_eps": 1e-6,
    "intermediate_size": None,
}
_MAMBA_SSM_DEFAULTS: dict[str, Any] = {
    "d_model": 2560,
    "d_intermediate": 0,
    "n_layer": 64,
    "vocab_size": 50277,
    "ssm_cfg": {},
    "attn_layer_idx": [],
    "attn_cfg": {},
    "rms_norm": True,
    "residual_in_fp32": True,
    "fused_add_norm": True,
    "pad_vocab_size_multiple": 8,
    "tie_embeddings": True,
}
_BLOCK_DEFAULTS: dict[str, Any] = {
    "layer": "Mamba1",
    "d_state": 16,
    "d_conv": 4,
    "expand": 2,
    "dt_rank": "auto",
    "dt_min": 0.001,
    "dt_max": 0.1,
    "dt_init": "random",
    "dt_scale": 1.0,
    "dt_init_floor": 1e-4,
    "conv_bias": True,
    "bias": False,
    "use_fast_path": True,
}


def read_config(values: dict[str, Any], source: object) -> tuple[MambaLMConfig, Layout]:
    """The configuration that a parsed `config.json` describes, and its layout.

    Raises:
        ValueError: Another model, a key that is not known, or a value that no model here has; each is named.
        TypeError, ZeroDivisionError: A value of a type, or 0, that nothing can be computed from.
    """
    kind = values.get("model_type")
    if kind == "mamba_aot":
        return _read_own(values, source), "mamba_aot"
    if kind in ("mamba", "falcon_mamba"):
        return _read_transformers(values, source), "transformers"
    if kind is None and {"d_model", "n_layer"} <= set(values):
        return _read_mamba_ssm(values, source), "mamba_ssm"
    raise ValueError(
        f'from_pretrained: model_type in {source} must be "mamba_aot", "mamba" or "falcon_mamba", or be '
        f"absent beside d_model and n_layer, as mamba_ssm writes it; got {kind!r}"
    )


def write_config(config: MambaLMConfig, layout: Layout) -> dict[str, Any]:
    """What `config.json` holds for a model in a layout; raises ValueError if the layout can't hold it."""
    if layout == "mamba_aot":
        return {"model_type": "mamba_aot", **dataclasses.asdict(config)}
    reason = why_not(config, layout)
    if reason is not None:
        raise ValueError(f'save_pretrained: layout "{layout}" {reason}; save it in layout "mamba_aot"')
    return _write_transformers(config) if layout == "transformers" else _write_mamba_ssm(config)


def why_not(config: MambaLMConfig, layout: Layout) -> str | None:
    """Why a public layout can't hold a model, or None if it can."""
    if set(config.pattern) != {"m"}:
        return f'holds Mamba1 layers ("m") only, this model has {config.layers!r}'
    if layout == "transformers" and config.norm != "rms":
        return f'holds models of norm "rms" only, this one has {config.norm!r}'
    if layout == "mamba_ssm" and config.mamba1.mixer_rms_eps is not None:
        return "holds no norms inside the mixer, this model has mixer_rms_eps"
    if layout == "mamba_ssm" and config.norm_eps != 1e-5:
        return f"holds models of norm_eps 1e-5 only, this one has {config.norm_eps}"
    return None


def public_name(name: str, layout: Layout) -> str:
    """The name of a weight of `MambaLM` in a layout."""
    if layout == "mamba_aot" or name.startswith("lm_head."):
        return name
    if layout == "transformers":
        name = name.replace("embedding.", "embeddings.", 1) if name.startswith("embedding.") else name
    return "backbone." + name


def own_name(name: str, layout: Layout) -> str:
    """The name in `MambaLM` of a weight in a layout."""
    if layout == "mamba_aot":
        return name
    name = name.removeprefix("backbone.")
    return name.replace("embeddings.", "embedding.", 1) if name.startswith("embeddings.") else name


def _require(source: object, name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        wanted = " or ".join(repr(a) for a in allowed)
        raise ValueError(f"from_pretrained: {name} in {source} must be {wanted}, got {value!r}")


def _read_own(values: dict[str, Any], source: object) -> MambaLMConfig:
    values = {name: value for name, value in values.items() if name != "model_type"}
    return parse(MambaLMConfig, values, f"from_pretrained: {source}")


def _read_transformers(values: dict[str, Any], source: object) -> MambaLMConfig:
    known = {"model_type"} | set(_TRANSFORMERS_DEFAULTS) | _WITHOUT_EFFECT | _LEFT_OVER
    falcon = values["model_type"] == "falcon_mamba"
    refuse_unknown(set(values), known if falcon else known - {"mixer_rms_eps"}, f"from_pretrained: {source}")
    v = {**_TRANSFORMERS_DEFAULTS, **values}
    _require(source, "hidden_act", v["hidden_act"], ("silu", "swish"))
    # Transformers lets a given intermediate_size overrule expand: FalconMamba was published with both.
    inner = v["intermediate_size"] or v["expand"] * v["hidden_size"]
    if inner % v["hidden_size"]:
        raise ValueError(
            f"from_pretrained: intermediate_size in {source} must be a multiple of hidden_size = "
            f"{v['hidden_size']}, got {inner}"
        )
    return _published(
        v["num_hidden_layers"],
        v["vocab_size"],
        dict(
            d_model=v["hidden_size"],
            d_state=v["state_size"],
            d_conv=v["conv_kernel"],
            expand=int(inner // v["hidden_size"]),
            dt_rank=v["time_step_rank"],
            dt_min=v["time_step_min"],
            dt_max=v["time_step_max"],
            conv_bias=v["use_conv_bias"],
            bias=v["use_bias"],
        ),
        Mamba1Config(
            dt_init=v["time_step_init_scheme"],
            dt_scale=v["time_step_scale"],
            dt_init_floor=v["time_step_floor"],
            mixer_rms_eps=v["mixer_rms_eps"] if falcon else None,
        ),
        norm_eps=v["layer_norm_epsilon"],
        tie_embeddings=v["tie_word_embeddings"],
        residual_in_fp32=v["residual_in_fp32"],
    )


def _read_mamba_ssm(values: dict[str, Any], source: object) -> MambaLMConfig:
    refuse_unknown(set(values), set(_MAMBA_SSM_DEFAULTS), f"from_pretrained: {source}")
    v = {**_MAMBA_SSM_DEFAULTS, **values}
    refuse_unknown(set(v["ssm_cfg"]), set(_BLOCK_DEFAULTS), f"from_pretrained: {source}", "ssm_cfg.")
    block = {**_BLOCK_DEFAULTS, **v["ssm_cfg"]}
    _require(source, "ssm_cfg.layer", block["layer"], ("Mamba1",))
    _require(source, "d_intermediate", v["d_intermediate"], (0,))
    _require(source, "attn_layer_idx", v["attn_layer_idx"], ([],))
    multiple = v["pad_vocab_size_multiple"]
    return _published(
        v["n_layer"],
        -(-v["vocab_size"] // multiple) * multiple,
        {
            "d_model": v["d_model"],
            **{
                name: block[name]
                for name in (
                    "d_state",
                    "d_conv",
                    "expand",
                    "dt_rank",
                    "dt_min",
                    "dt_max",
                    "conv_bias",
                    "bias",
                )
            },
        },
        Mamba1Config(block["dt_init"], block["dt_scale"], block["dt_init_floor"]),
        tie_embeddings=v["tie_embeddings"],
        norm="rms" if v["rms_norm"] else "layer",
        residual_in_fp32=v["residual_in_fp32"],
    )


def _published(
    n_layer: int, vocab_size: int, ssm: dict[str, Any], mamba1: Mamba1Config, **options: Any
) -> MambaLMConfig:
    """The configuration of a stack of `Mamba1`."""
    return MambaLMConfig(
        n_layer,
        vocab_size,
        SSMConfig(**ssm, A_real=True, discretization="euler", decay_gate=False),
        layers="m",
        mamba1=mamba1,
        **options,
    )


def _write_transformers(config: MambaLMConfig) -> dict[str, Any]:
    ssm, mamba1 = config.ssm, config.mamba1
    falcon = mamba1.mixer_rms_eps is not None
    return {
        "model_type": "falcon_mamba" if falcon else "mamba",
        "architectures": ["FalconMambaForCausalLM" if falcon else "MambaForCausalLM"],
        "vocab_size": config.vocab_size,
        "hidden_size": ssm.d_model,
        "state_size": ssm.d_state,
        "num_hidden_layers": config.n_layer,
        "layer_norm_epsilon": config.norm_eps,
        "expand": ssm.expand,
        "intermediate_size": ssm.d_inner,
        "conv_kernel": ssm.d_conv,
        "use_bias": ssm.bias,
        "use_conv_bias": ssm.conv_bias,
        "hidden_act": "silu",
        "residual_in_fp32": config.residual_in_fp32,
        "time_step_rank": ssm.rank,
        "time_step_scale": mamba1.dt_scale,
        "time_step_min": ssm.dt_min,
        "time_step_max": ssm.dt_max,
        "time_step_init_scheme": mamba1.dt_init,
        "time_step_floor": mamba1.dt_init_floor,
        "tie_word_embeddings": config.tie_embeddings,
        **({"mixer_rms_eps": mamba1.mixer_rms_eps} if falcon else {}),
    }


def _write_mamba_ssm(config: MambaLMConfig) -> dict[str, Any]:
    ssm, mamba1 = config.ssm, config.mamba1
    return {
        "d_model": ssm.d_model,
        "n_layer": config.n_layer,
        "vocab_size": config.vocab_size,
        "ssm_cfg": {
            "layer": "Mamba1",
            "d_state": ssm.d_state,
            "d_conv": ssm.d_conv,
            "expand": ssm.expand,
            "dt_rank": ssm.rank,
            "dt_min": ssm.dt_min,
            "dt_max": ssm.dt_max,
            "dt_init": mamba1.dt_init,
            "dt_scale": mamba1.dt_scale,
            "dt_init_floor": mamba1.dt_init_floor,
            "conv_bias": ssm.conv_bias,
            "bias": ssm.bias,
        },
        "rms_norm": config.norm == "rms",
        "residual_in_fp32": config.residual_in_fp32,
        "fused_add_norm": True,
        "pad_vocab_size_multiple": 1,
        "tie_embeddings": config.tie_embeddings,
    }
