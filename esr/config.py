"""params.yaml and data/models.yaml, read in one place and checked before anything heavy begins.

YAML 1.2 throughout, as DVC reads it (1e-4 is a number, "no" is a word). A wrong key, type or value is one sentence
that names the key, the value and what is allowed.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from ruamel.yaml import YAML

from esr.fetch import AnySource
from esr.paths import DATA, ROOT

PARAMS = ROOT / "params.yaml"
REGISTRY = DATA / "models.yaml"

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class ConfigError(ValueError):
    """What is wrong in params.yaml, in the registry or in a notebook's parameters, in one sentence."""


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=())


class Shared(Section):
    """Parameters every stage may ask for."""

    model: str = "smollm2-135m"
    seed: int


class Generation(Section):
    temperature: float = Field(ge=0, le=2)
    batch_size: Positive
    max_new_tokens: Positive


class Fetch(Section):
    model: str


class TrainSae(Shared):
    documents: Positive
    document_tokens: Positive
    held_out: Positive
    layers: list[Annotated[int, Field(ge=0)]] = Field(min_length=1)
    comparison_tokens: Positive
    tokens: Positive
    d_sae: Positive
    k: Positive


class Sae(Shared):
    documents: Positive
    show: Positive


class Relevance(Shared):
    documents: Positive
    pairs: Positive


class Latents(Shared):
    n: Positive
    min_concreteness: Share
    min_density: Share
    max_density: Share


class Calibrate(Shared, Generation):
    target: float = Field(gt=0, lt=100)
    max_sd: float = Field(gt=0)
    tolerance: float = Field(gt=0, le=100)
    queries: Positive
    prompts_per_query: Positive


class Steer(Shared, Generation):
    n_prompts: Positive
    n_seeds: Positive


class LlmJudge(Section):
    """A language model as a judge, under a `name` of its own; `model` as inspect-ai names it, provider first.

    An OpenAI-compatible server is `openai-api/<service>/<model>` at `base_url`, its key <SERVICE>_API_KEY.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    model: str = Field(pattern=r"^[^/\s]+/\S+$")
    base_url: str | None = None
    temperature: float | None = Field(default=0.0, ge=0, le=2)  # null for models that take none
    structured: bool = True  # ask for the reply's schema; false for servers that refuse such requests
    max_connections: Positive = 8  # requests at the same time
    max_retries: int = Field(default=5, ge=0)  # of a request that failed, with growing pauses
    timeout_s: Positive = 120  # of one request
    max_tokens: Positive = 1024  # of one reply
    max_cost: float | None = Field(default=None, gt=0)  # USD a run
    usd_per_million_input: float | None = Field(default=None, ge=0)
    usd_per_million_output: float | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _cost_is_known(self):
        if self.max_cost is not None and None in (self.usd_per_million_input, self.usd_per_million_output):
            raise ValueError("max_cost needs usd_per_million_input and usd_per_million_output")
        return self


class Judge(Section):
    """The judge whose numbers are the study's, and those that judge beside it."""

    model: str
    name: Literal["offline"]
    judges: list[LlmJudge] = []

    @model_validator(mode="after")
    def _names_differ(self):
        names = [self.name, *(judge.name for judge in self.judges)]
        if len(set(names)) < len(names):
            raise ValueError(f"each judge needs a name of its own, these are {', '.join(names)}")
        return self


class Measure(Section):
    models: list[str] = Field(min_length=1)
    bases: list[str] = Field(min_length=1)
    seed: int
    confidence: float = Field(gt=0, lt=1)
    resamples: Positive


class Finetune(Shared, Generation):
    ratios: list[Share] = Field(min_length=1)
    chosen: Share
    examples: Positive
    corpus_answers: Positive
    openings_per_prompt: Positive
    opening_tokens: Positive
    min_boost: float = Field(gt=0)
    max_boost: float = Field(gt=0)
    max_opening_score: float = Field(ge=0, le=100)
    min_answer_score: float = Field(ge=0, le=100)
    answer_tokens: Positive
    restarted_tokens: Positive
    n_development: Positive
    n_training: Positive
    min_training: Share
    min_concreteness: Share
    first_layer: Positive
    rank: Positive
    alpha: float = Field(gt=0)
    dropout: float = Field(ge=0, lt=1)
    learning_rate: float = Field(gt=0)
    warm_up: int = Field(ge=0)
    epochs: Positive
    training_batch: Positive
    decision_weight: float = Field(gt=0)
    n_prompts: Positive
    n_unsteered: Positive
    n_beginnings: Positive
    confidence: float = Field(gt=0, lt=1)
    resamples: Positive

    @model_validator(mode="after")
    def _chosen_is_trained(self):
        if self.chosen not in self.ratios:
            raise ValueError(f"chosen is {self.chosen}, which is none of the ratios {self.ratios}: choose one of them")
        return self


class BoostSweep(Shared, Generation):
    levels: list[float] = Field(min_length=2)
    n_prompts: Positive
    base_n_prompts: Positive
    n_seeds: Positive
    confidence: float = Field(gt=0, lt=1)
    resamples: Positive


class MetaPrompts(Shared, Generation):
    n_prompts: Positive
    base_n_prompts: Positive
    n_seeds: Positive
    confidence: float = Field(gt=0, lt=1)
    resamples: Positive


class Detectors(Shared):
    rule: Literal["strict", "auc", "cohens_d"]
    n: Positive
    min_active: Share
    rounds: Positive
    n_random: int = Field(ge=3)
    n_steered: Positive


class Ablate(Shared, Generation):
    n_prompts: Positive
    base_n_prompts: Positive
    n_seeds: Positive
    confidence: float = Field(gt=0, lt=1)
    resamples: Positive


class Activations(Shared):
    n_baselines: Positive
    n_never_restarted: Positive
    bins: int = Field(ge=2)
    confidence: float = Field(gt=0, lt=1)
    resamples: Positive


class Controls(Shared, Generation):
    n: Positive
    base_n: Positive
    least: Positive
    most: Positive
    off_topic: float = Field(ge=0, le=100)
    on_topic: float = Field(ge=0, le=100)
    n_random: int = Field(ge=0)
    min_after: Positive
    opening: Positive
    windows: list[list[Annotated[int, Field(ge=0)]]] = Field(min_length=1)
    confidence: float = Field(gt=0, lt=1)
    resamples: Positive

    @model_validator(mode="after")
    def _ranges_are_not_empty(self):
        if self.most < self.least:
            raise ValueError(f"most is {self.most}, least is {self.least}: give at least as many tokens as least")
        for window in self.windows:
            if len(window) != 2 or window[0] >= window[1]:
                raise ValueError(f"windows has {window}: give [first, last + 1] of tokens, as [0, 32]")
        return self


class Power(Section):
    models: list[str] = Field(min_length=1)
    max_new_tokens: Positive
    power: float = Field(gt=0, lt=1)
    icc: float = Field(ge=0, lt=1)
    trials: list[Positive] = Field(min_length=2)
    tokens_per_second: float = Field(gt=0)
    usd_per_trial: float = Field(ge=0)


class CrossJudge(Section):
    models: list[str] = Field(min_length=1)
    bases: list[str] = Field(min_length=1)
    seed: int
    judges: list[LlmJudge] = []
    confidence: float = Field(gt=0, lt=1)
    resamples: Positive


class Claims(Section):
    models: list[str] = Field(min_length=1)


class Figures(Section):
    models: list[str] = Field(min_length=1)


# The stages, in the order of their notebooks. Sections of params.yaml a stage reads besides its own (of `measure`, the
# level and resamples of intervals):
STAGES: dict[str, tuple[type[Section], tuple[str, ...]]] = {
    "fetch": (Fetch, ()),
    "train_sae": (TrainSae, ()),
    "sae": (Sae, ()),
    "relevance": (Relevance, ()),
    "latents": (Latents, ()),
    "calibrate": (Calibrate, ("generation",)),
    "steer": (Steer, ("generation",)),
    "judge": (Judge, ()),
    "measure": (Measure, ()),
    "figures": (Figures, ()),
    "finetune": (Finetune, ("generation", "measure")),
    "boost_sweep": (BoostSweep, ("generation", "measure")),
    "meta_prompts": (MetaPrompts, ("generation", "measure")),
    "detectors": (Detectors, ()),
    "ablate": (Ablate, ("generation", "measure")),
    "activations": (Activations, ("measure",)),
    "controls": (Controls, ("generation", "measure")),
    "cross_judge": (CrossJudge, ("judge", "measure")),
    "power": (Power, ("generation",)),
    "claims": (Claims, ()),
}


class SaeSource(Section):
    """A SAELens SAE: a folder of this repository, or a published release and the id within it."""

    kind: Literal["folder", "release"]
    path: str | None = None
    release: str | None = None
    id: str | None = None

    @model_validator(mode="after")
    def _complete(self):
        if self.kind == "folder" and not self.path:
            raise ValueError("an SAE of kind folder needs `path`")
        if self.kind == "release" and not (self.release and self.id):
            raise ValueError("an SAE of kind release needs `release` and `id`")
        return self


class Boost(Section):
    """Search bounds and Gaussian prior of the calibration, in units of the median residual norm."""

    low: float = Field(ge=0)
    high: float = Field(gt=0)
    prior_mean: float = Field(gt=0)
    prior_sd: float = Field(gt=0)


class ModelEntry(Section):
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


def load_yaml(path) -> dict:
    if not path.exists():
        raise ConfigError(f"{path} does not exist: run inside a clone of the repository, or set ESR_ROOT to one.")
    try:
        return YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8")) or {}
    except Exception as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None


def load_registry() -> dict[str, ModelEntry]:
    """Model id -> entry. Raises ConfigError."""
    entries = {}
    for model_id, entry in load_yaml(REGISTRY).items():
        if "." in model_id:
            raise ConfigError(f"{REGISTRY}: id {model_id!r} has a dot, which DVC reads as a nested key: use dashes.")
        entries[model_id] = _validate(TypeAdapter(ModelEntry), entry, f"{REGISTRY}: {model_id}")
    return entries


def model_entry(model_id: str) -> ModelEntry:
    """The registry's entry of `model_id`. Raises ConfigError naming the ids there are."""
    registry = load_registry()
    if model_id not in registry:
        raise ConfigError(f"Unknown model {model_id!r}: {REGISTRY.name} has {', '.join(registry)}.")
    return registry[model_id]


def base_of(model_id: str) -> str:
    """The model whose SAE, latents and relevance scorer serve `model_id`: itself, or what it was fine-tuned from.

    Adapters sit above the layer that is steered and read, so that the residual stream there is the base's own.
    """
    source = model_entry(model_id).source
    return source.base if source.kind == "adapter" else model_id


def check_latents(model_id: str, latents: list[int]) -> None:
    """Raises ConfigError unless every index names a latent of the model's SAE; loads no weights."""
    d_sae = model_entry(model_id).d_sae
    for latent in latents:
        if d_sae is None or not 0 <= latent < d_sae:
            raise ConfigError(f"Latent {latent} of {model_id} does not exist: its SAE has latents 0 to {d_sae - 1}.")


def stage_parameters(stage: str, model: str | None = None) -> dict[str, Any]:
    """What params.yaml says for `stage` at the chosen scale, flat, as its notebook takes it; checked.

    Raises ConfigError for an unknown stage, scale or model, and for a wrong key, type or value anywhere in the file.
    """
    if stage not in STAGES:
        raise ConfigError(f"Unknown stage {stage!r}: there are {', '.join(STAGES)}.")
    params = load_yaml(PARAMS)
    _check_file(params)
    model = model or params["models"][0]
    model_entry(model)
    return _assemble(stage, params, model).model_dump()


def notebook_parameters(stage: str, names: dict[str, Any]) -> Section:
    """The parameters cell of a notebook, as a checked object. Call with `globals()`.

    Raises ConfigError naming key, value and what is allowed: papermill's command line passes `false` as the word.
    """
    section, _ = STAGES[stage]
    given = {name: names[name] for name in section.model_fields if name in names}
    checked = _validate(TypeAdapter(section), given, f"notebook {stage}")
    for model in [given["model"]] if "model" in given else given.get("models", []):
        model_entry(model)
    return checked


def _assemble(stage: str, params: dict, model: str) -> Section:
    section, others = STAGES[stage]
    sizes = params["scales"][params["scale"]]
    values = {"model": model, "models": params["models"], "bases": params["bases"], "seed": params["seed"]}
    values = {name: value for name, value in values.items() if name in section.model_fields}
    for name in others:
        given = (params.get(name) or {}) | (sizes.get(name) or {})
        theirs = (STAGES[name][0] if name in STAGES else Generation).model_fields  # what others alone need is left out
        values |= {key: value for key, value in given.items() if key in section.model_fields or key not in theirs}
    values |= (params.get(stage) or {}) | (sizes.get(stage) or {})
    return _validate(TypeAdapter(section), values, f"{PARAMS.name}: {stage}")


def _check_file(params: dict) -> None:
    """Every section of the file, not just the stage's: a mistake is better found before the first stage than in it."""
    known = {"scale", "models", "bases", "seed", "scales", "generation", *STAGES}
    for key in params:
        if key not in known:
            raise ConfigError(f"{PARAMS.name}: unknown key {key!r}; allowed are {', '.join(sorted(known))}.")
    scales = params.get("scales") or {}
    if params.get("scale") not in scales:
        raise ConfigError(f"{PARAMS.name}: scale is {params.get('scale')!r}; allowed are {', '.join(scales)}.")
    for name, sizes in scales.items():
        for key in sizes:
            if key not in {"generation", *STAGES}:
                raise ConfigError(f"{PARAMS.name}: scales.{name} has the unknown section {key!r}.")
    for key in ("models", "bases"):
        _check_models(key, params.get(key))
    for model in params["models"]:
        if base_of(model) not in params["bases"]:
            raise ConfigError(
                f"{PARAMS.name}: models has {model!r}, whose SAE and latents are those of {base_of(model)!r}: "
                "add that to bases."
            )
    for stage in STAGES:
        _assemble(stage, params, params["models"][0])


def _check_models(key: str, models: Any) -> None:
    if not isinstance(models, list) or not models:
        raise ConfigError(f"{PARAMS.name}: {key} is {models!r}; a list of ids of {REGISTRY.name} is expected.")
    for model in models:
        if model_entry(model).sae is None:
            raise ConfigError(f"{PARAMS.name}: {key} has {model!r}, which has no SAE in {REGISTRY.name}.")
        if key == "bases" and base_of(model) != model:
            raise ConfigError(f"{PARAMS.name}: bases has {model!r}, which was fine-tuned from {base_of(model)!r}.")


def _validate(adapter: TypeAdapter, values: Any, where: str):
    try:
        return adapter.validate_python(values)
    except ValidationError as error:
        # A misspelt key is also a missing one: name the misspelling.
        problem = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        key = ".".join(map(str, problem["loc"])) or "the entry"
        if problem["type"] == "extra_forbidden":
            message = f"{where}: unknown key {key!r}"
            fields = (
                getattr(getattr(adapter, "_type", None), "model_fields", None) if len(problem["loc"]) == 1 else None
            )
            raise ConfigError(f"{message}; allowed are {', '.join(fields)}." if fields else f"{message}.") from None
        if problem["type"] == "missing":
            raise ConfigError(f"{where}: {key} is missing; write it there or under scales.") from None
        raise ConfigError(f"{where}: {key} is {problem['input']!r}; {_lower(problem['msg'])}.") from None


def _lower(message: str) -> str:
    message = message.removeprefix("Value error, ")
    return message[:1].lower() + message[1:]
