"""The model registry, data/models.yaml."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, model_validator

from esr.config.schema import ConfigError, Positive, Section, load_yaml, validate
from esr.config.sources import AnySource
from esr.paths import DATA

REGISTRY = DATA / "models.yaml"


class FolderSae(Section):
    """A SAELens SAE in a folder of this repository."""

    kind: Literal["folder"]
    path: str = Field(min_length=1)


class ReleaseSae(Section):
    """A published SAE: a SAELens release and an id in it."""

    kind: Literal["release"]
    release: str = Field(min_length=1)
    id: str = Field(min_length=1)


SaeSource = Annotated[FolderSae | ReleaseSae, Field(discriminator="kind")]


class Boost(Section):
    """Search bounds and Gaussian prior of the calibration, in median residual norms."""

    min: float = Field(ge=0)
    max: float = Field(gt=0)
    prior_mean: float = Field(gt=0)
    prior_sd: float = Field(gt=0)


class ModelEntry(Section):
    """A model. `n_layers`, `sae`, the layers, `d_sae` and `boost` belong to models that can be steered."""

    source: AnySource
    license: str
    n_layers: Positive | None = None
    sae: SaeSource | None = None
    steer_layer: int | None = None
    sae_layer: int | None = None
    d_sae: Positive | None = None
    boost: Boost | None = None
    repetition_penalty: float = Field(default=1.0, gt=0)

    @model_validator(mode="after")
    def _layers_exist(self):
        for name in ("steer_layer", "sae_layer"):
            layer = getattr(self, name)
            if layer is not None and not (self.n_layers and 0 <= layer < self.n_layers):
                raise ValueError(f"{name} is {layer}; n_layers is {self.n_layers}: choose 0 to n_layers - 1")
        return self


def load_registry() -> dict[str, ModelEntry]:
    """Model id -> entry. Raises ConfigError."""
    entries = {}
    for model_id, entry in load_yaml(REGISTRY).items():
        if "." in model_id:
            raise ConfigError(f"{REGISTRY}: id {model_id!r} has a dot, which DVC reads as a nested key: use dashes.")
        entries[model_id] = validate(TypeAdapter(ModelEntry), entry, f"{REGISTRY}: {model_id}")
    return entries


def model_entry(model_id: str) -> ModelEntry:
    """The entry of `model_id`. Raises ConfigError with the known ids."""
    registry = load_registry()
    if model_id not in registry:
        raise ConfigError(f"Unknown model {model_id!r}: {REGISTRY.name} has {', '.join(registry)}.")
    return registry[model_id]


def required(value: int | None, model_id: str, name: str) -> int:
    """`value`, the field `name` of an entry, for callers that cannot do without. Raises ConfigError when it is None."""
    if value is None:
        raise ConfigError(f"{model_id} cannot be steered: it has no {name} in {REGISTRY.name}.")
    return value


def base_of(model_id: str) -> str:
    """The model whose SAE, latents and relevance scorer serve `model_id`: itself, or the base of its adapter.

    Adapters sit above the steered layer and the SAE's layer, where the residual stream is thus that of the base.
    """
    source = model_entry(model_id).source
    return source.base if source.kind == "adapter" else model_id


def check_latents(model_id: str, latents: list[int]) -> None:
    """Raise ConfigError unless every index is a latent of the model's SAE; loads no weights."""
    d_sae = required(model_entry(model_id).d_sae, model_id, "d_sae")
    for latent in latents:
        if not 0 <= latent < d_sae:
            raise ConfigError(f"Latent {latent} of {model_id} does not exist: its SAE has latents 0 to {d_sae - 1}.")
