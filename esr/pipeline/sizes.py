"""How many responses, documents and training tokens each stage takes on one model, from params.yaml and the prompts.

Counted as the notebooks generate them, for every drawn latent: latents that do not converge make a run shorter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace

from esr.config.registry import base_of, model_entry
from esr.config.schema import load_texts
from esr.config.stages import stage_parameters
from esr.config.study import has_organism
from esr.paths import PROMPTS
from esr.storage.prompts import read_prompts

PROMPT_TOKENS = 42  # mean length of a prompt with its template in paper/numbers/bench.json
Responses = list[tuple[int, int]]  # their number, and the length limit of each in tokens


@dataclass(frozen=True)
class Sizes:
    """What the formulas read: parameters of each stage at the chosen scale, as `sizes["steer"]`, and counts.

    n_latents: steered with, those that do not converge included.
    """

    model: str
    n_latents: int
    n_evaluation: int  # prompts
    n_held_out: int
    n_finetune: int
    n_instructions: int  # meta-prompts
    has_corpus: bool  # shipped
    has_trainings: bool  # of an organism, shipped
    scale: str | None = None  # in place of that of params.yaml

    def __getitem__(self, stage: str) -> SimpleNamespace:
        return parameters(stage, self.model, self.scale)

    @property
    def max_new_tokens(self) -> int:
        return self["steer"].max_new_tokens

    @property
    def n_steered(self) -> int:
        """Responses of the condition `steered` of the stage `steer`."""
        return self.n_latents * self["steer"].n_prompts * self["steer"].n_seeds

    def per_latent(self, stage: str, conditions: int = 1) -> Responses:
        """Responses of a stage with `n_prompts` and `n_seeds` per latent and condition."""
        return [(conditions * self.n_latents * self[stage].n_prompts * self[stage].n_seeds, self.max_new_tokens)]


@cache
def parameters(stage: str, model: str | None = None, scale: str | None = None) -> SimpleNamespace:
    """Raises ConfigError for a mistake in params.yaml."""
    return SimpleNamespace(**stage_parameters(stage, model, scale))


def sizes_of(model: str, scale: str | None = None) -> Sizes:
    """scale: in place of that of params.yaml. Raises ConfigError for a mistake there."""
    root = base_of(model)
    base = model_entry(root)
    counts = {f"n_{split}": len(read_prompts(split)) for split in ("evaluation", "held_out", "finetune")}
    drawn = parameters("concepts" if base.concepts else "latents", root, scale)
    n_latents = drawn.n_concepts if base.concepts else drawn.n_latents
    n_instructions = len(load_texts(PROMPTS / "meta_prompts.yaml", ["distractor"]))
    return Sizes(
        model, n_latents, n_instructions=n_instructions, has_corpus=base.corpus is not None,
        has_trainings=has_organism(root), scale=scale, **counts,
    )  # fmt: skip


def _texts(s: Sizes) -> Responses:
    """Steered texts that examples are made of."""
    p = s["organism"]
    prompts = min(p.n_training_prompts, s.n_finetune - p.n_development)
    return [(prompts * p.openings_per_prompt + p.n_corpus_openings, p.opening_tokens)]


def _n_trained(s: Sizes) -> int:
    """Adapters that the stage `finetune` trains: of every share but that of a shipped organism."""
    p = s["finetune"]
    return sum(not (s.has_trainings and ratio == p.ratio) for ratio in p.ratios)


def _finetune(s: Sizes) -> Responses:
    """The evaluation of every adapter and, under weak steering as well, every training; prefilled openings; texts."""
    p, trained = s["finetune"], _n_trained(s)
    trainings = p.n_trainings if s.has_trainings else 0
    evaluated = (trained + trainings) * (p.n_prompts + p.n_unsteered) + trainings * p.n_prompts
    return [(s.n_latents * evaluated + 7 * p.n_prefills, s.max_new_tokens), *(_texts(s) if trained else [])]


def _controls(s: Sizes) -> Responses:
    """Of each opening four prefilled conditions, the detectors and random sets; of each restart one response."""
    p = s["controls"]
    return [(p.n_prefills * (4 + 1 + p.n_random) + s.n_steered, s.max_new_tokens)]


# Responses that the model generates in each stage, at most
TRIALS: dict[str, Callable[[Sizes], Responses]] = {
    "corpus": lambda s: [] if s.has_corpus else [(s["corpus"].n_documents, s["corpus"].max_document_tokens)],
    "train_sae": lambda s: [(s["train_sae"].n_documents, s["train_sae"].max_document_tokens)],
    "calibrate": lambda s: [
        (s.n_latents * s["calibrate"].n_queries * s["calibrate"].prompts_per_query, s.max_new_tokens)
    ],
    "steer": lambda s: s.per_latent("steer", 2),
    "organism": _texts,
    "finetune": _finetune,
    "boost_sweep": lambda s: s.per_latent("boost_sweep", len(s["boost_sweep"].offsets)),
    "meta_prompts": lambda s: s.per_latent("meta_prompts", s.n_instructions),
    # detectors, held-out ones, the sham, random sets
    "ablate": lambda s: s.per_latent("ablate", 3 + s["detectors"].n_random),
    "controls": _controls,
}
# Documents that the model reads: three passes over held-out ones; prompts; pairs in all prompts and in both halves, and
# steered responses; restarts and responses for comparison
DOCUMENTS: dict[str, Callable[[Sizes], int]] = {
    "sae": lambda s: 3 * s["sae"].n_documents,
    "latents": lambda s: s.n_evaluation + s.n_held_out,
    "detectors": lambda s: 3 * s.n_evaluation * s["detectors"].n_derangements + s["detectors"].n_steered,
    "activations": lambda s: s.n_steered + s["activations"].n_baselines + s["activations"].n_never_restarted,
}


def _trained(s: Sizes) -> int:
    """Tokens that one adapter is trained on."""
    p = s["organism"]
    return p.n_examples * p.epochs * (PROMPT_TOKENS + p.response_tokens)


# Tokens that the model is trained on
TRAINED: dict[str, Callable[[Sizes], int]] = {
    "organism": lambda s: s["organism"].n_trainings * _trained(s),
    "finetune": lambda s: _n_trained(s) * _trained(s),
}
