"""What a `MambaLM` is made of."""

import dataclasses
import math
from dataclasses import dataclass, field
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from mamba_aot.attention import AttentionConfig
from mamba_aot.layers import SSMConfig
from mamba_aot.mlp import MLPConfig

T = TypeVar("T")

LAYER_KINDS = {
    "M": "Mamba: complex state, gated decay, as `ssm` says",
    "m": "Mamba1: the published block",
    "a": "Attention",
    "f": "GatedMLP",
}


@dataclass(frozen=True)
class Mamba1Config:
    """What a `Mamba1` layer has beside the sizes of `SSMConfig`; see `Mamba1`.

    Attributes:
        dt_init: Start of the projection to Δ, "random" or "constant".
        dt_scale: Its size, times R^-1/2.
        dt_init_floor: Smallest Δ at the start, whatever `SSMConfig.dt_min` is.
        mixer_rms_eps: Of the norms of Δ's input, B and C, or None for no such norms.
    """

    dt_init: Literal["random", "constant"] = "random"
    dt_scale: float = 1.0
    dt_init_floor: float = 1e-4
    mixer_rms_eps: float | None = None


@dataclass(frozen=True)
class MambaLMConfig:
    """What a `MambaLM` is made of.

    Attributes:
        n_layer: Number of layers.
        vocab_size: Number of tokens; 256 is one per byte.
        ssm: The Mamba layers; `ssm.d_model` is the width of the model. `Mamba1` layers take their sizes,
            dt_min, dt_max and biases from it.
        norm_eps: Added to the mean square, or the variance, in every norm.
        tie_embeddings: Whether the head shares the weight of the embedding.
        layers: One letter per layer, repeated until there are `n_layer`: "M" `Mamba`, "m" `Mamba1`, "a"
            `Attention`, "f" `GatedMLP`. "mfmfaf" alternates sequence layers and MLPs, one in three attention.
        norm: "rms" or "layer".
        residual_in_fp32: Whether what the layers add up to is float32 in a model of narrower weights.
        mamba1: Further options of the `Mamba1` layers.
        attention: The attention layers.
        mlp: The MLPs.
    """

    n_layer: int = 4
    vocab_size: int = 256
    ssm: SSMConfig = field(default_factory=SSMConfig)
    norm_eps: float = 1e-5
    tie_embeddings: bool = True
    layers: str = "M"
    norm: Literal["rms", "layer"] = "rms"
    residual_in_fp32: bool = False
    mamba1: Mamba1Config = field(default_factory=Mamba1Config)
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    mlp: MLPConfig = field(default_factory=MLPConfig)

    def __post_init__(self) -> None:
        for name in ("n_layer", "vocab_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"MambaLMConfig: {name} must be an integer of at least 1, got {value!r}")
        if not self.layers or not set(self.layers) <= set(LAYER_KINDS):
            kinds = ", ".join(f'"{letter}" ({kind})' for letter, kind in LAYER_KINDS.items())
            raise ValueError(f"MambaLMConfig: layers must be letters of {kinds}, got {self.layers!r}")
        if self.n_layer % len(self.layers):
            raise ValueError(
                f"MambaLMConfig: layers must repeat until there are n_layer = {self.n_layer}, "
                f"got {len(self.layers)} letters in {self.layers!r}"
            )
        for name, value in (("norm_eps", self.norm_eps), ("mamba1.mixer_rms_eps", self.mamba1.mixer_rms_eps)):
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"MambaLMConfig: {name} must be finite and at least 0, got {value!r}")
        if self.norm not in ("rms", "layer"):
            raise ValueError(f'MambaLMConfig: norm must be "rms" or "layer", got {self.norm!r}')

    @property
    def pattern(self) -> str:
        """The letter of every layer."""
        return self.layers * (self.n_layer // len(self.layers))


def parse(kind: type[T], values: dict[str, Any], source: str, place: str = "") -> T:
    """Makes a configuration, with those inside it, from what JSON gave.

    Args:
        kind: The dataclass.
        values: Its fields by name.
        source: Where they are from, for the error.
        place: Where they are inside, such as "ssm.".

    Raises:
        ValueError: A key is not a field, each is named; or a value is not of the type of its field.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{source}: {place.rstrip('.') or 'it'} must be a JSON object, got {values!r}")
    fields: dict[str, Any] = {f.name: f for f in dataclasses.fields(kind)}  # pyright: ignore[reportArgumentType]
    refuse_unknown(set(values), set(fields), source, place)
    parsed = dict(values)
    for name, value in values.items():
        inner = fields[name].default_factory
        if isinstance(inner, type) and dataclasses.is_dataclass(inner):
            parsed[name] = parse(inner, value, source, f"{place}{name}.")
        elif not _fits(value, fields[name].type):
            raise ValueError(f"{source}: {place}{name} must be {_wanted(fields[name].type)}, got {value!r}")
    return kind(**parsed)


def _fits(value: object, wanted: Any) -> bool:
    """Whether JSON gave a value of the type that a field is annotated with."""
    if get_origin(wanted) in (Union, UnionType):
        return any(_fits(value, one) for one in get_args(wanted))
    if get_origin(wanted) is Literal:
        return value in get_args(wanted)
    # True is an int to Python, and JSON may write a float without a point.
    return type(value) is wanted or (wanted is float and type(value) is int)


def _wanted(annotation: Any) -> str:
    """A field's type in words, for the error."""
    if get_origin(annotation) in (Union, UnionType):
        return " or ".join(_wanted(one) for one in get_args(annotation))
    if get_origin(annotation) is Literal:
        allowed = get_args(annotation)
        return ("one of " if len(allowed) > 1 else "") + ", ".join(map(str, allowed))
    return "null" if annotation is type(None) else annotation.__name__


def refuse_unknown(given: set[str], known: set[str], source: str, place: str = "") -> None:
    """Raises ValueError with the names in `given` that are not in `known`."""
    if unknown := sorted(given - known):
        names = ", ".join(place + name for name in unknown)
        raise ValueError(
            f"{source} has keys that this version does not know: {names}; "
            "another program or a newer mamba_aot may have written it"
        )
