"""What self-corrections are made of: prompts, latents and texts that the study leaves out.

Responses are on topic and unsteered. Openings are steered by latents that the experiments never steer with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from jaxtyping import Float
from torch import Tensor

from esr.models.alignment import align, sentence_ends
from esr.sae.corpus import Corpus
from esr.sae.on_policy import requests_and_responses
from esr.steering.trials import Plan
from esr.storage.digests import seeded, trial_seed
from esr.storage.records import Latent, Prompt, Record, Trial

MIN_CORPUS_WORDS = 30  # shorter documents of the corpus are no responses
MIN_WORDS = 5  # shorter beginnings of a text are not scored
AHEAD = 2  # ends of sentences: a good beginning scores low as long as it is short, and shows what it is soon


class TrainingText(Record):
    """A prompt and its response, steered by the latent of `label`, or unsteered where that is ""."""

    prompt_id: str
    prompt: str
    latent: int
    label: str
    boost: float
    text: str
    tokens: list[int]
    finish_reason: Literal["stop", "length"]


class SentenceEnd(NamedTuple):
    """Tokens of a text up to the end of a sentence, and the best score, 0-100, up to there or the `AHEAD` next."""

    tokens: int
    score: float


class ScoredText(NamedTuple):
    text: TrainingText
    ends: tuple[SentenceEnd, ...]


def split_prompts(prompts: Sequence[Prompt], n_development: int, seed: int) -> tuple[list[Prompt], list[Prompt]]:
    """Training prompts, and `n_development` held-out ones. Raises ValueError when either would be empty."""
    if not 0 < n_development < len(prompts):
        raise ValueError(
            f"n_development is {n_development}; with {len(prompts)} prompts, 1 to {len(prompts) - 1} work."
        )
    held_out = set(seeded(seed, "prompts").sample(range(len(prompts)), n_development))
    return [p for i, p in enumerate(prompts) if i not in held_out], [prompts[i] for i in sorted(held_out)]


def development_latents(drawn: Sequence[Latent], n: int, min_concreteness: float) -> list[Latent]:
    """`n` latents to choose settings on: as concrete as the study's, but left out of it as they fire on a prompt.

    Raises ValueError when there are fewer.
    """
    usable = [x for x in drawn if x.reason == "fires on a prompt" and x.label and x.concreteness >= min_concreteness]
    if len(usable) < n:
        raise ValueError(
            f"Of {len(drawn)} drawn latents {len(usable)} serve to choose settings on, and {n} are needed: draw more "
            "(scales: latents) or lower finetune.n_development."
        )
    return usable[:n]


def training_latents(
    directions: Float[Tensor, "latents d_model"], held_out: Sequence[int], n: int, max_cosine: float, seed: int
) -> list[int]:
    """`n` latents drawn from all but the held-out ones and those whose direction is within `max_cosine` of one.

    Raises ValueError when fewer are left.
    """
    nearest = (directions @ directions[list(held_out)].T).abs().amax(1)
    left = [i for i in range(len(directions)) if i not in set(held_out) and nearest[i] <= max_cosine]
    if len(left) < n:
        raise ValueError(
            f"{len(left)} latents are unlike the {len(held_out)} held out, and n_latents is {n}: lower it, or raise "
            f"max_cosine ({max_cosine:g})."
        )
    return sorted(seeded(seed, "latents").sample(left, n))


def plan_openings(
    prompts: Sequence[Prompt], latents: Sequence[int], boosts: tuple[float, float], per_prompt: int, seed: int
) -> list[Plan]:
    """Plans of `per_prompt` steered texts per prompt, each with a drawn latent and boost (in median residual norms)."""
    rng = seeded(seed, "openings")
    plans = []
    for prompt in prompts:
        for repeat in range(per_prompt):
            latent, boost = rng.choice(list(latents)), round(rng.uniform(*boosts), 3)
            drawn = trial_seed(seed, latent, prompt.id, repeat + 1)
            plans.append(Plan("opening", latent, "", prompt.id, prompt.text, drawn, boost))
    return plans


def training_texts(trials: Sequence[Trial]) -> list[TrainingText]:
    return [TrainingText(**{name: getattr(trial, name) for name in TrainingText.model_fields}) for trial in trials]


def corpus_responses(corpus: Corpus, tokenizer, n: int, seed: int) -> list[TrainingText]:
    """`n` responses of the SAE's training corpus, which covers many more subjects than the prompts.

    Documents do not record how they ended and count as cut by the length limit. Raises ValueError when fewer than `n`
    have 30 words or more.
    """
    requests, responses = requests_and_responses(corpus, tokenizer, len(corpus.starts))
    usable = [i for i, response in enumerate(responses) if len(response.split()) >= MIN_CORPUS_WORDS]
    if n > len(usable):
        raise ValueError(f"{n} responses of the corpus are needed; {len(usable)} of its documents are long enough.")
    return [
        TrainingText(
            prompt_id=f"corpus-{i}",
            prompt=requests[i],
            latent=0,
            label="",
            boost=0.0,
            text=responses[i],
            tokens=list(tokenizer(responses[i], add_special_tokens=False).input_ids),
            finish_reason="length",
        )
        for i in seeded(seed, "corpus").sample(usable, n)
    ]


def select(responses: Sequence[TrainingText], scorer, min_score: float, max_score: float) -> list[TrainingText]:
    """Responses that score `min_score` to `max_score`.

    A steered text may be on topic, a plain response off topic; training on either as the other would teach needless
    restarts. scorer: esr.judging.relevance.Scorer.
    """
    responses = [response for response in responses if response.text.strip()]
    scores = scorer.score([a.prompt for a in responses], [a.text for a in responses], [a.label for a in responses])
    return [a for a, score in zip(responses, scores, strict=True) if min_score <= score <= max_score]


def score_sentence_ends(texts: Sequence[TrainingText], scorer, tokenizer) -> list[ScoredText]:
    """Each text with the relevance of its beginnings, one up to every end of a sentence.

    Of a model that ends no sentence in any text, the whole texts. scorer: esr.judging.relevance.Scorer.
    """
    parts: list[list[tuple[int, str]]] = []
    for text in texts:
        alignment = align(text.tokens, tokenizer)
        ends = ((n, alignment.slice(0, n)) for n in sentence_ends(alignment))
        parts.append([(n, part) for n, part in ends if len(part.split()) >= MIN_WORDS])
    if not any(parts):
        parts = [[(len(text.tokens), text.text)] for text in texts]
    rows = [(text.prompt, part, text.label) for text, some in zip(texts, parts, strict=True) for _, part in some]
    scores = iter(scorer.score(*zip(*rows, strict=True)) if rows else ())
    return [
        ScoredText(text, _ends([n for n, _ in some], [float(next(scores)) for _ in some]))
        for text, some in zip(texts, parts, strict=True)
    ]


def _ends(counts: Sequence[int], scores: Sequence[float]) -> tuple[SentenceEnd, ...]:
    return tuple(SentenceEnd(n, max(scores[i : i + AHEAD + 1])) for i, n in enumerate(counts))
