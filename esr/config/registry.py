"""The model registry, data/models.yaml: an entry says everything about a model."""

from __future__ import annotations

import datetime
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, field_validator, model_validator

from esr.config.inheritance import with_base
from esr.config.schema import ConfigError, Positive, Section, load_yaml, meant, validate
from esr.config.sources import AnySource
from esr.paths import DATA

REGISTRY = DATA / "models.yaml"
Layer = Annotated[int, Field(ge=0)]
# Stages of the study that an entry chooses; fetch to judge run on every model
Experiment = Literal[
    "finetune", "boost_sweep", "meta_prompts", "detectors", "ablate", "activations", "controls"
]  # fmt: skip
# Arguments of vLLM's engine that this project sets itself, or under which edits would not be seen to arrive
NOT_FOR_VLLM = {
    "model": "it is the model's own folder",
    "dtype": "it follows from the machine",
    "seed": "every response has its own",
    "generation_config": "sampling settings come from params.yaml",
    "skip_tokenizer_init": "prompts are token ids",
    "enable_prefix_caching": "responses to equal prompts have other edits",
    "async_scheduling": "a pass may then run beyond the end of a response",
    "enforce_eager": "hooks need the eager mode",
    "worker_extension_cls": "it is that of vllm-lens",
    "speculative_config": "draft tokens pass without edits",
    "enable_lora": "adapters are merged",
}
OF_SAES = {"detectors", "ablate", "activations", "controls"}  # read or ablate latents


class Sae(Section):
    """A sparse autoencoder on the output of `layer` with `d_sae` latents."""

    layer: Layer
    d_sae: Positive


class FolderSae(Sae):
    """A SAELens SAE in a folder, here or trained by the stage train_sae; a relative path starts at the repository's
    root."""

    kind: Literal["folder"]
    path: str = Field(min_length=1)


class ReleaseSae(Sae):
    """A published SAE: a release of SAELens' list and an id in it."""

    kind: Literal["release"]
    release: str = Field(min_length=1)
    id: str = Field(min_length=1)


class HubSae(Sae):
    """A SAELens SAE in the folder `path` of a repository of the Hugging Face hub."""

    kind: Literal["hub"]
    id: str = Field(pattern=r"^[\w.-]+/[\w.-]+$", examples=["google/gemma-scope-2b-pt-res"])
    path: str = Field(min_length=1)
    revision: str = "main"


SaeSource = Annotated[FolderSae | ReleaseSae | HubSae, Field(discriminator="kind")]


class Concepts(Section):
    """Steering without an SAE: one difference of means per concept of the file `path`, at the output of `layer`."""

    path: str = Field(min_length=1)
    layer: Layer


class MadeLabels(Section):
    """Labels made of the words that distinguish a latent's strongest contexts."""

    kind: Literal["made"]


class FileLabels(Section):
    """Labels in a JSON Lines file of rows {"index", "label"}."""

    kind: Literal["file"]
    path: str = Field(min_length=1)


class NeuronpediaLabels(Section):
    """Labels of Neuronpedia, by its ids of model and SAE."""

    kind: Literal["neuronpedia"]
    model: str = Field(min_length=1)
    sae: str = Field(min_length=1)


AnyLabels = Annotated[MadeLabels | FileLabels | NeuronpediaLabels, Field(discriminator="kind")]


class Boost(Section):
    """Search bounds and Gaussian prior of the calibration, in `unit`.

    residual_norm: the median norm of the residual stream at the steered layer. raw: the residual stream's own units, in
    which the paper's bounds are given.
    """

    unit: Literal["residual_norm", "raw"] = "residual_norm"
    min: float = Field(ge=0)
    max: float = Field(gt=0)
    prior_mean: float = Field(gt=0)
    prior_sd: float = Field(gt=0)

    @model_validator(mode="after")
    def _bounds_are_in_order(self):
        if not self.min < self.max:
            raise ValueError(f"min ({self.min:g}) must be below max ({self.max:g}): lower min or raise max")
        return self


class Sampling(Section):
    """Sampling settings of this model alone; temperature: null for that of params.yaml."""

    temperature: float | None = Field(default=None, ge=0, le=2)
    repetition_penalty: float = Field(default=1.0, gt=0)


class Template(Section):
    """What the chat template is given. system: text of the system turn; put before the prompt where the template has no
    such role; null for none. date: the day that the template prints; null for the template's fixed one, and 2025-01-01
    where it would print today."""

    system: str | None = None
    date: Annotated[datetime.date, Field(strict=False)] | None = None


# Fields that an entry with steering vectors needs, as they may be written
STEERED_WITH = {
    "n_layers": "26",
    "steer_layer": "16",
    "boost": "{min: 0.0, max: 1.2, prior_mean: 0.45, prior_sd: 0.2}",
}


class ModelEntry(Section):
    """A model. One with an `sae` or `concepts` can be steered, and then has layers and a boost.

    source: one, or several of the same files, tried in order. tuned_from: the model whose SAE, layers, latents and
    scorer this one shares; every field but `NOT_SHARED` is then the base's, `OF_BASE` always, others unless given.
    corpus: a file of this model's responses, shipped; the stage `corpus` generates them where there is none.
    experiments: stages that run on the model beyond those that run on all. params: settings of this model in place of
    those of params.yaml, laid out as there; esr.config.stages checks them. backend: what runs the model where it
    generates, is read or scored; vllm: arguments of vLLM's engine, such as tensor_parallel_size.
    """

    source: Annotated[list[AnySource], Field(min_length=1, examples=["{kind: hub, id: Qwen/Qwen2.5-7B-Instruct}"])]
    license: str = Field(examples=["Apache-2.0"])
    n_layers: Positive | None = None
    tuned_from: str | None = None
    sae: SaeSource | None = None
    concepts: Concepts | None = None
    steer_layer: Layer | None = None
    labels: AnyLabels = MadeLabels(kind="made")
    corpus: str | None = None
    boost: Boost | None = None
    sampling: Sampling = Sampling()
    template: Template = Template()
    experiments: list[Experiment] = []
    backend: Literal["transformers", "vllm"] = "transformers"
    vllm: dict[str, str | int | float | bool] = {}
    params: dict[str, dict[str, Any]] = {}

    @field_validator("source", mode="before")
    @classmethod
    def _one_or_several(cls, source: Any):
        return source if isinstance(source, list) else [source]

    @model_validator(mode="after")
    def _fits_together(self):
        if self.sae and self.concepts:
            raise ValueError("it has both sae and concepts: steering vectors come from one of them, remove the other")
        if self.steerable:
            for name, example in STEERED_WITH.items():
                if getattr(self, name) is None:
                    vectors = "sae" if self.sae else "concepts"
                    raise ValueError(f"it has {vectors}, but no {name}, which steering needs: add {name}: {example}")
            layers, last = {"steer_layer": self.steer_layer, "sae.layer": self.sae_layer}, (self.n_layers or 0) - 1
            layers["concepts.layer"] = self.concepts.layer if self.concepts else None
            for name, layer in layers.items():
                if layer is not None and layer > last:
                    raise ValueError(f"{name} is {layer}, but n_layers is {self.n_layers}: choose 0 to {last}")
        elif self.experiments:
            raise ValueError(
                f"experiments has {self.experiments[0]}, and it has no sae or concepts to steer with: remove "
                "experiments, or add one of the two"
            )
        if not self.sae and (wrong := OF_SAES & set(self.experiments)):
            raise ValueError(f"experiments has {sorted(wrong)[0]}, which reads latents of an SAE: remove it or add sae")
        if "finetune" in self.experiments and self.sae and self.sae.layer > (self.steer_layer or 0):
            raise ValueError(
                f"experiments has finetune, whose adapters begin above steer_layer {self.steer_layer} and would change "
                f"what the SAE of layer {self.sae.layer} reads: remove finetune, or steer at the layer of the SAE"
            )
        needs_detectors = {"ablate", "activations", "controls"} & set(self.experiments)
        if needs_detectors and "detectors" not in self.experiments:
            raise ValueError(
                f"experiments has {sorted(needs_detectors)[0]} without detectors, which it reads: add detectors"
            )
        return self

    @model_validator(mode="after")
    def _backend_runs_it(self):
        if self.vllm and self.backend != "vllm":
            raise ValueError(f"vllm has settings, and backend is {self.backend}: write backend: vllm, or remove vllm")
        for name in self.vllm.keys() & NOT_FOR_VLLM:
            raise ValueError(f"vllm.{name} cannot be set, because {NOT_FOR_VLLM[name]}: remove it")
        if self.backend == "vllm" and "finetune" in self.experiments:
            raise ValueError(
                "backend is vllm, and experiments has finetune, which trains with transformers: remove finetune, or "
                "write backend: vllm at the fine-tuned model alone"
            )
        return self

    @property
    def steerable(self) -> bool:
        return self.sae is not None or self.concepts is not None

    @property
    def sae_layer(self) -> int | None:
        return self.sae.layer if self.sae else None

    @property
    def d_sae(self) -> int | None:
        return self.sae.d_sae if self.sae else None


def load_registry() -> dict[str, ModelEntry]:
    """Model id -> entry. Raises ConfigError."""
    return dict(_entries(REGISTRY, REGISTRY.read_bytes() if REGISTRY.is_file() else b""))


@lru_cache(maxsize=1)  # a stage asks dozens of times, and each reading takes 30 ms
def _entries(path: Path, _content: bytes) -> dict[str, ModelEntry]:
    written = load_yaml(path)
    entries = {}
    for model_id in written:
        if not isinstance(model_id, str) or "." in model_id or "/" in model_id:
            raise ConfigError(
                f"{REGISTRY}: id {model_id!r} has a dot or slash, or is no text: use letters, digits and dashes."
            )
        fields = with_base(model_id, written, list(ModelEntry.model_fields), str(REGISTRY))
        entries[model_id] = validate(TypeAdapter(ModelEntry), fields, f"{REGISTRY}: {model_id}")
    for model_id, entry in entries.items():
        for source in entry.source:
            if source.kind == "adapter" and entry.tuned_from is None:
                raise ConfigError(
                    f"{REGISTRY}: {model_id} is an adapter without tuned_from: add tuned_from, the entry that it was "
                    "trained on."
                )
    return entries


def model_entry(model_id: str, where: str = "") -> ModelEntry:
    """The entry of `model_id`, which was named `where`. Raises ConfigError with the known ids."""
    registry = load_registry()
    if model_id not in registry:
        close, known = meant(model_id, list(registry)), ", ".join(registry)
        raise ConfigError(f"Unknown model {model_id!r}{where}{close}: {REGISTRY} has {known}.")
    return registry[model_id]


def required(value: int | None, model_id: str, name: str) -> int:
    """`value`, the field `name` of an entry, for callers that cannot do without. Raises ConfigError when it is None."""
    if value is None:
        raise ConfigError(
            f"{model_id} cannot be steered, as it has no {name} in {REGISTRY}: add it, or choose another model."
        )
    return value


def base_of(model_id: str) -> str:
    """The model whose SAE, latents and relevance scorer serve `model_id`: itself, or the one it was fine-tuned from."""
    base = model_entry(model_id).tuned_from
    return model_id if base is None else base_of(base)


def check_latents(model_id: str, latents: list[int]) -> None:
    """Raise ConfigError unless every index is a latent of the model's SAE; loads no weights."""
    d_sae = required(model_entry(model_id).d_sae, model_id, "sae")
    for latent in latents:
        if not 0 <= latent < d_sae:
            raise ConfigError(f"Latent {latent} of {model_id} does not exist: its SAE has latents 0 to {d_sae - 1}.")
