"""The sections of params.yaml, one class per stage; the stages."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from esr.config.judges import LlmJudge
from esr.config.schema import Positive, Section, Share


class Shared(Section):
    """Parameters of stages with a model and a seed."""

    model: str = "smollm2-135m"
    seed: int


class Generation(Section):
    temperature: float = Field(ge=0, le=2)
    batch_size: Positive
    max_new_tokens: Positive


class Fetch(Section):
    model: str


class Corpus(Shared):
    n_documents: Positive
    max_document_tokens: Positive
    n_held_out: Positive
    n_norm_documents: Positive

    @model_validator(mode="after")
    def _some_are_left(self):
        if self.n_held_out >= self.n_documents:
            raise ValueError(f"n_held_out is {self.n_held_out} of n_documents {self.n_documents}: hold out fewer")
        return self


class TrainSae(Shared):
    n_documents: Positive
    max_document_tokens: Positive
    n_held_out: Positive
    layer_offsets: list[int] = Field(min_length=1)
    selection_tokens: Positive
    tokens: Positive
    k: Positive


class Sae(Shared):
    n_documents: Positive
    n_shown: Positive


class Relevance(Shared):
    n_documents: Positive
    n_pairs: Positive


class Latents(Shared):
    n_latents: Positive
    min_concreteness: Share
    min_density: Share
    max_density: Share


class Concepts(Shared):
    n_concepts: Positive
    max_prompt_similarity: float = Field(ge=-1, le=1)


class Calibrate(Shared, Generation):
    target: float = Field(gt=0, lt=100)
    max_sd_ratio: float = Field(gt=0)
    tolerance: float = Field(gt=0, le=100)
    n_queries: Positive
    prompts_per_query: Positive


class Steer(Shared, Generation):
    n_prompts: Positive
    n_seeds: Positive


class Judge(Section):
    """The judge of the reported numbers, and additional judges."""

    model: str
    name: Literal["offline"] = Field(
        description="it is the judge of the reported numbers, and others are listed under judge.judges"
    )
    judges: list[LlmJudge] = []

    @model_validator(mode="after")
    def _names_differ(self):
        names = [self.name, *(judge.name for judge in self.judges)]
        if len(set(names)) < len(names):
            raise ValueError(f"each judge needs a unique name, these are {', '.join(names)}: rename one")
        return self


class Measure(Section):
    models: list[str] = Field(min_length=1)
    seed: int
    confidence: float = Field(gt=0, lt=1)
    n_bootstrap: Positive


class Organism(Shared, Generation):
    n_trainings: Positive
    ratio: Share
    n_examples: Positive
    other_shares: dict[Literal["decision", "unsteered", "redirected", "near_miss"], Share]
    n_corpus_responses: Positive
    n_corpus_openings: int = Field(ge=0)
    openings_per_prompt: Positive
    opening_tokens: Positive
    min_boost: float = Field(gt=0)
    max_boost: float = Field(gt=0)
    max_off_topic_score: float = Field(ge=0, le=100)
    min_on_topic_score: float = Field(ge=0, le=100)
    min_response_score: float = Field(ge=0, le=100)
    response_tokens: Positive
    n_endings: Positive
    n_development: Positive
    n_training_prompts: Positive
    n_latents: Positive
    max_cosine: Share
    min_development_concreteness: Share
    rank: Positive
    lora_alpha: float = Field(gt=0)
    dropout: float = Field(ge=0, lt=1)
    learning_rate: float = Field(gt=0)
    warmup_steps: int = Field(ge=0)
    epochs: Positive
    training_batch_size: Positive
    restart_weight: float = Field(gt=0)
    no_restart_weight: float = Field(gt=0)

    @model_validator(mode="after")
    def _off_and_on_topic_exclude_each_other(self):
        if self.max_off_topic_score >= self.min_on_topic_score:
            raise ValueError(
                f"max_off_topic_score is {self.max_off_topic_score} and min_on_topic_score {self.min_on_topic_score}: "
                "a text would be both, so make the first the smaller"
            )
        return self


class Finetune(Organism):
    ratios: list[Share] = Field(min_length=1)
    max_opening_score: float = Field(ge=0, le=100)
    n_prompts: Positive
    n_unsteered: Positive
    n_prefills: Positive
    confidence: float = Field(gt=0, lt=1)
    n_bootstrap: Positive

    @model_validator(mode="after")
    def _ratio_is_trained(self):
        if self.ratio not in self.ratios:
            raise ValueError(f"ratio is {self.ratio}, which is none of the ratios {self.ratios}: choose one of them")
        return self


class BoostSweep(Shared, Generation):
    offsets: list[float] = Field(min_length=2)
    n_prompts: Positive
    n_seeds: Positive
    confidence: float = Field(gt=0, lt=1)
    n_bootstrap: Positive


class MetaPrompts(Shared, Generation):
    n_prompts: Positive
    n_seeds: Positive
    confidence: float = Field(gt=0, lt=1)
    n_bootstrap: Positive


class Detectors(Shared):
    rule: Literal["strict", "auc", "cohens_d"]
    n_detectors: Positive
    min_active: Share
    n_derangements: Positive
    n_random: int = Field(ge=3)
    n_steered: Positive
    confidence: float = Field(gt=0, lt=1)
    n_bootstrap: Positive


class Ablate(Shared, Generation):
    n_prompts: Positive
    n_seeds: Positive
    confidence: float = Field(gt=0, lt=1)
    n_bootstrap: Positive


class Activations(Shared):
    n_baselines: Positive
    n_never_restarted: Positive
    n_bins: int = Field(ge=2)
    confidence: float = Field(gt=0, lt=1)
    n_bootstrap: Positive


class Controls(Shared, Generation):
    n_prefills: Positive
    min_tokens: Positive
    max_tokens: Positive
    max_off_topic_score: float = Field(ge=0, le=100)
    min_on_topic_score: float = Field(ge=0, le=100)
    n_random: int = Field(ge=0)
    min_tokens_after: Positive
    opening_tokens: Positive
    windows: list[list[Annotated[int, Field(ge=0)]]] = Field(min_length=1)
    confidence: float = Field(gt=0, lt=1)
    n_bootstrap: Positive

    @model_validator(mode="after")
    def _windows_are_not_empty(self):
        for window in self.windows:
            if len(window) != 2 or window[0] >= window[1]:
                raise ValueError(
                    f"windows has {window}, which holds no token: give two numbers, the second larger than the first, "
                    "as [0, 32] for the first 32 tokens"
                )
        return self


class Power(Section):
    models: list[str] = Field(min_length=1)
    max_new_tokens: Positive
    power: float = Field(gt=0, lt=1)
    icc: float = Field(ge=0, lt=1)
    n_trials: list[Positive] = Field(min_length=2)
    tokens_per_second: float = Field(gt=0)
    usd_per_trial: float = Field(ge=0)


class CrossJudge(Section):
    models: list[str] = Field(min_length=1)
    seed: int
    judges: list[LlmJudge] = []
    validated: list[LlmJudge]  # measured on labelled responses alone
    n_validated: Positive
    confidence: float = Field(gt=0, lt=1)
    n_bootstrap: Positive


class Claims(Section):
    models: list[str] = Field(min_length=1)


class Figures(Section):
    models: list[str] = Field(min_length=1)


# Stages in the order of their notebooks: the section's class, and other sections of params.yaml that the stage reads.
STAGES: dict[str, tuple[type[Section], tuple[str, ...]]] = {
    "fetch": (Fetch, ()),
    "corpus": (Corpus, ()),
    "train_sae": (TrainSae, ()),
    "sae": (Sae, ()),
    "relevance": (Relevance, ()),
    "latents": (Latents, ()),
    "concepts": (Concepts, ()),
    "calibrate": (Calibrate, ("generation",)),
    "steer": (Steer, ("generation",)),
    "judge": (Judge, ()),
    "organism": (Organism, ("generation",)),
    "finetune": (Finetune, ("generation", "measure", "organism")),
    "boost_sweep": (BoostSweep, ("generation", "measure")),
    "meta_prompts": (MetaPrompts, ("generation", "measure")),
    "detectors": (Detectors, ("measure",)),
    "ablate": (Ablate, ("generation", "measure")),
    "activations": (Activations, ("measure",)),
    "controls": (Controls, ("generation", "measure")),
    "cross_judge": (CrossJudge, ("judge", "measure")),
    "measure": (Measure, ()),
    "figures": (Figures, ()),
    "power": (Power, ("generation",)),
    "claims": (Claims, ()),
}
