"""Synthetic self-corrections for fine-tuning (paper, experiment 4): off-topic opening, explicit restart, response.

The model learns to restart, not to stray: prompt and opening carry no loss. An opening is a text steered by latents
that the experiments never steer with, or the start of the response to another prompt. Plain responses, with loss on
every token, teach the model not to restart without need.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from itertools import product
from typing import Literal

from pydantic import Field

from esr.models.chat import chat_tokens
from esr.sae.corpus import Corpus
from esr.sae.on_policy import requests_and_responses
from esr.steering.trials import Plan
from esr.storage.digests import seeded, trial_seed
from esr.storage.records import Latent, Prompt, Record, Trial

# A restart joins a halt, a verdict and an announcement, in every combination. Most halts share one first word, whose
# weight is the sum of theirs: sampling below temperature 1 would suppress a choice among many first words.
HALTS = {
    "Wait,": 8, "Wait, no,": 3, "Wait, sorry,": 2, "Wait, hold on,": 2, "Wait a moment,": 2, "Wait, I'm sorry,": 1,
    "Sorry,": 1, "I'm sorry,": 1, "Hold on,": 1, "Hang on,": 1, "Oops,": 1, "Oh no,": 1,
}  # fmt: skip
VERDICTS = (
    "that's not right.",
    "this is not what you asked.",
    "I've drifted away from your question.",
    "I got sidetracked.",
    "this has nothing to do with your question.",
    "that doesn't answer the question.",
    "I've lost the thread.",
    "I'm wandering off the topic.",
    "I was talking about the wrong thing.",
    "none of this is right, it is unrelated.",
)
ANNOUNCEMENTS = (
    "Let me start over.",
    "Let me start again.",
    "Let me begin again.",
    "Let me try that again.",
    "I'll start over from the beginning.",
    "I should start afresh.",
    "Let me get back to your question.",
    "Let me go back to the topic.",
    "Let me answer your actual question.",
    "I need to start from scratch.",
)
AFTER_RESTART = (" ", "\n\n")
REMINDERS = ("", "", "", "You asked: {}", "The question was: {}", "Your question was: {}")  # names the task again
SENTENCE_END = re.compile(r"[.!?]+(?=\s|$)")
BREAK = re.compile(r"[.!?]$|\n$")  # a token that ends a sentence or a line
LAST_WORD = re.compile(r"[^\W\d][.!?]$")  # of a sentence; not the number of a list's item
MIN_WORDS, MAX_WORDS = 8, 60  # of an opening
MIN_CORPUS_WORDS = 30  # shorter documents of the corpus are no responses
FROM_STEERING = 0.6  # share of steered openings; the others open another prompt's response
Kind = Literal["self_correction", "plain"]


class Example(Record):
    """A training text: `tokens` include the chat template; those from `loss_from` on carry loss.

    decisions: indices, with loss, of a restart's tokens and of tokens after a sentence or line, where one could begin.
    They are few and carry what the model is to learn.
    interruptions: indices within the opening, after its sentences, where the restart could also begin: the target there
    is its first token, not the opening's next token.
    latent, boost: steering of the opening, applied to the whole text in training: the model learns to restart while
    steered. boost 0 for unsteered openings and plain responses.
    """

    kind: Kind
    prompt_id: str
    tokens: list[int]
    loss_from: int = Field(ge=1)
    decisions: list[int]
    interruptions: list[int]
    latent: int
    boost: float


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


def restart_phrases() -> list[str]:
    """Every restart of the grammar; `esr.judging.restarts.find_restarts` finds each of them after a sentence."""
    return [" ".join(parts) for parts in product(HALTS, VERDICTS, ANNOUNCEMENTS)]


def split_prompts(prompts: Sequence[Prompt], n_development: int, seed: int) -> tuple[list[Prompt], list[Prompt]]:
    """Training prompts, and `n_development` held-out ones. Raises ValueError when either would be empty."""
    if not 0 < n_development < len(prompts):
        raise ValueError(
            f"n_development is {n_development}; with {len(prompts)} prompts, 1 to {len(prompts) - 1} work."
        )
    held_out = set(seeded(seed, "prompts").sample(range(len(prompts)), n_development))
    return [p for i, p in enumerate(prompts) if i not in held_out], [prompts[i] for i in sorted(held_out)]


def split_latents(
    drawn: Sequence[Latent], n_development: int, min_concreteness: float, min_training_concreteness: float
) -> tuple[list[Latent], list[Latent]]:
    """Training latents for openings, and `n_development` held-out ones; neither contains a steering latent (`kept`).

    Held-out latents have labels as concrete as those of steering latents (`min_concreteness`) but fire on one of the
    prompts; training latents are the other labelled ones of `min_training_concreteness` or more. Raises ValueError when
    there are fewer than `n_development` of the first, or none of the second.
    """
    usable = [x for x in drawn if not x.kept and x.label and x.reason in ("fires on a prompt", "label not concrete")]
    development = [x for x in usable if x.concreteness >= min_concreteness][:n_development]
    chosen = {x.index for x in development}
    training = [x for x in usable if x.concreteness >= min_training_concreteness and x.index not in chosen]
    if len(development) < n_development or not training:
        raise ValueError(
            f"Of {len(drawn)} drawn latents {len(development)} serve to measure on ({n_development} are needed) and "
            f"{len(training)} to train with: draw more latents (scales: latents) or use fewer."
        )
    return training, development


def plan_responses(prompts: Sequence[Prompt], latents: Sequence[Latent], seed: int) -> list[Plan]:
    """Plans of one unsteered response to each prompt, the training target."""
    return [
        Plan("plain", latents[0].index, "", p.id, p.text, trial_seed(seed, latents[0].index, p.id, 0), 0.0)
        for p in prompts
    ]


def plan_openings(
    prompts: Sequence[Prompt], latents: Sequence[Latent], boosts: tuple[float, float], per_prompt: int, seed: int
) -> list[Plan]:
    """Plans of `per_prompt` steered texts per prompt, each with a drawn latent and boost (in median residual norms)."""
    rng = seeded(seed, "openings")
    plans = []
    for prompt in prompts:
        for repeat in range(per_prompt):
            latent, boost = rng.choice(latents), round(rng.uniform(*boosts), 3)
            drawn = trial_seed(seed, latent.index, prompt.id, repeat + 1)
            plans.append(Plan("opening", latent.index, latent.label, prompt.id, prompt.text, drawn, boost))
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
            tokens=_ids(tokenizer, responses[i]),
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


def make_examples(
    responses: Sequence[TrainingText],
    openings: Sequence[TrainingText],
    tokenizer,
    *,
    ratio: float,
    n: int,
    seed: int,
    response_tokens: int,
    recovery_tokens: int,
    stop_token: int,
) -> list[Example]:
    """`n` examples in random order, `round(ratio * n)` of them self-corrections, the others plain responses.

    responses: unsteered, each used about equally often for either kind. openings: steered, of the same prompt or, where
    it has none, of any. Plain responses are cut to `response_tokens`, those after a restart to `recovery_tokens`: plain
    ones teach the rest. Raises ValueError when the ratio is outside 0 to 1 or there are fewer than two responses.
    """
    if not 0 <= ratio <= 1 or len(responses) < 2:
        raise ValueError(
            f"ratio is {ratio} (0 to 1 is allowed) and there are {len(responses)} responses (2 are needed)."
        )
    rng = seeded(seed, ratio, n)
    steered: dict[str, list[TrainingText]] = {}
    for opening in openings:
        steered.setdefault(opening.prompt_id, []).append(opening)
    corrections = round(ratio * n)
    examples = []
    for response in _turns(responses, corrections, rng):
        if openings and rng.random() < FROM_STEERING:
            source = rng.choice(steered.get(response.prompt_id) or openings)
        else:
            source = rng.choice([a for a in responses if a.prompt_id != response.prompt_id])
        example = _correction(response, cut_opening(source.text, rng), tokenizer, recovery_tokens, stop_token, rng)
        examples.append(example.model_copy(update={"latent": source.latent, "boost": source.boost}))
    for response in _turns(responses, n - corrections, rng):
        prompt = list(chat_tokens(tokenizer, response.prompt))
        ends = response.finish_reason == "stop" and len(response.tokens) <= response_tokens
        targets = list(response.tokens[:response_tokens]) + [stop_token] * ends
        examples.append(_example("plain", response, prompt, [], targets, tokenizer))
    rng.shuffle(examples)
    return examples


def _turns(responses: Sequence[TrainingText], n: int, rng: random.Random) -> list[TrainingText]:
    return [a for _ in range(-(-n // len(responses))) for a in rng.sample(list(responses), len(responses))][:n]


def cut_opening(text: str, rng: random.Random) -> str:
    """The first 8 to 60 words of `text` up to the end of a sentence; a full stop replaces a missing end.

    Never within a sentence: models trained on openings broken off there also broke off their plain sentences.
    """
    words = [m.end() for m in re.finditer(r"\S+", text)]
    first, last = words[min(MIN_WORDS, len(words)) - 1], words[min(MAX_WORDS, len(words)) - 1]
    ends = [m.end() for m in SENTENCE_END.finditer(text) if first <= m.end() <= last]
    if not ends:
        return text[:last].strip().rstrip(",;:-") + "."
    return text[: max(rng.choices(ends, k=2))].strip()  # prefer later ends: interruptions precede them


def _correction(response: TrainingText, opening: str, tokenizer, recovery_tokens: int, stop_token: int, rng) -> Example:
    """A self-correction: prompt and opening without loss, then restart and response."""
    reminder = rng.choice(REMINDERS).format(response.prompt)
    restart = _ids(tokenizer, f" {_restart(rng)} {reminder}".rstrip())
    targets = _ids(tokenizer, rng.choice(AFTER_RESTART) + response.text.strip())
    ends = response.finish_reason == "stop" and len(targets) <= recovery_tokens
    prompt, started = list(chat_tokens(tokenizer, response.prompt)), _ids(tokenizer, opening)
    targets = targets[:recovery_tokens] + [stop_token] * ends
    example = _example("self_correction", response, prompt + started, restart, targets, tokenizer)
    sentences = [i for i in range(MIN_WORDS, len(started)) if LAST_WORD.search(tokenizer.decode(started[i - 2 : i]))]
    return example.model_copy(update={"interruptions": [len(prompt) + i for i in sentences]})


def _restart(rng: random.Random) -> str:
    halt = rng.choices(list(HALTS), list(HALTS.values()))
    return " ".join((*halt, rng.choice(VERDICTS), rng.choice(ANNOUNCEMENTS)))


def _ids(tokenizer, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def _example(
    kind: Kind, response: TrainingText, context: list[int], restart: list[int], targets: list[int], tokenizer
) -> Example:
    begin = len(context) + len(restart)
    after_breaks = [begin + i for i in _after_breaks(targets, tokenizer)]
    return Example(
        kind=kind,
        prompt_id=response.prompt_id,
        tokens=[*context, *restart, *targets],
        loss_from=len(context),
        decisions=[*range(len(context), begin), *after_breaks],
        interruptions=[],
        latent=0,
        boost=0.0,
    )


def _after_breaks(tokens: Sequence[int], tokenizer) -> list[int]:
    """Indices of the tokens that follow the end of a sentence or line."""
    return [i + 1 for i, token in enumerate(tokens[:-1]) if BREAK.search(tokenizer.decode([token]))]
