"""Self-corrections made to fine-tune on (paper, experiment 4): an off-topic opening, an explicit restart, an answer.

The model learns to break off and to answer, not to stray: neither prompt nor opening carries loss. An opening is either
what the model wrote under steering, with latents the study never steers with, or the beginning of its answer to another
prompt. Ordinary answers, with loss on every token, teach it not to restart where nothing is wrong.
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

# A restart is a halt, a verdict on what was said, and the announcement of another try: every combination is one. Most
# begin with one word, whose weight is the sum of theirs: sampling below temperature 1 would starve a choice among many.
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
MIN_CORPUS_WORDS = 30  # shorter documents of the corpus are no answers
FROM_STEERING = 0.6  # share of openings written under steering; the others begin another prompt's answer


class Example(Record):
    """A text to train on: `tokens` from the first of the chat template on; those from `loss_from` on carry loss.

    decisions: places in `tokens`, all of them with loss, of a restart's words and of where one might have begun: behind
    a sentence or a line. They are few, and what is to be learnt is there.
    interruptions: places within the opening, behind its sentences, where the restart might as well begin: its first
    token is to be predicted there, not the opening's own, which is never learnt.
    latent, boost: the push under which the opening was written, and under which the whole text is read in training: the
    model is to break off and answer while it is pushed. boost 0 for openings nobody pushed, and for ordinary answers.
    """

    kind: Literal["self_correction", "plain"]
    prompt_id: str
    tokens: list[int]
    loss_from: int = Field(ge=1)
    decisions: list[int]
    interruptions: list[int]
    latent: int
    boost: float


class TrainingText(Record):
    """A prompt and what the model wrote, steered towards the latent of `label` or, with "", towards none."""

    prompt_id: str
    prompt: str
    latent: int
    label: str
    boost: float
    text: str
    tokens: list[int]
    finish_reason: Literal["stop", "length"]


def restart_phrases() -> list[str]:
    """Every restart of the grammar; `esr.judging.restarts.find_restarts` finds each of them behind a sentence."""
    return [" ".join(parts) for parts in product(HALTS, VERDICTS, ANNOUNCEMENTS)]


def split_prompts(prompts: Sequence[Prompt], n_development: int, seed: int) -> tuple[list[Prompt], list[Prompt]]:
    """Prompts to train on, and `n_development` left out to measure on. Raises ValueError when none would be left."""
    if not 0 < n_development < len(prompts):
        raise ValueError(
            f"n_development is {n_development}; with {len(prompts)} prompts, 1 to {len(prompts) - 1} work."
        )
    left_out = set(seeded(seed, "prompts").sample(range(len(prompts)), n_development))
    return [p for i, p in enumerate(prompts) if i not in left_out], [prompts[i] for i in sorted(left_out)]


def split_latents(
    drawn: Sequence[Latent], n_development: int, min_concreteness: float, min_training_concreteness: float
) -> tuple[list[Latent], list[Latent]]:
    """Latents for openings, and `n_development` to measure on: no steering latent (`kept`) is in either.

    Development latents have labels as concrete as the study's (`min_concreteness`) but fire on one of its prompts,
    which bars them from steering; training latents are the other labelled ones, at least `min_training` concrete.
    Raises ValueError when there are fewer than `n_development` of the first, or none of the second.
    """
    usable = [x for x in drawn if not x.kept and x.label and x.reason in ("fires on a prompt", "label not concrete")]
    development = [x for x in usable if x.concreteness >= min_concreteness][:n_development]
    chosen = {x.index for x in development}
    training = [x for x in usable if x.concreteness >= min_training_concreteness and x.index not in chosen]
    if len(development) < n_development or not training:
        raise ValueError(
            f"Of {len(drawn)} drawn latents {len(development)} serve to measure on ({n_development} are asked for) and "
            f"{len(training)} to train with: draw more latents (scales: latents) or ask for fewer."
        )
    return training, development


def plan_responses(prompts: Sequence[Prompt], latents: Sequence[Latent], seed: int) -> list[Plan]:
    """One unsteered answer to each prompt: what is trained towards."""
    return [
        Plan("plain", latents[0].index, "", p.id, p.text, trial_seed(seed, latents[0].index, p.id, 0), 0.0)
        for p in prompts
    ]


def plan_openings(
    prompts: Sequence[Prompt], latents: Sequence[Latent], boosts: tuple[float, float], per_prompt: int, seed: int
) -> list[Plan]:
    """`per_prompt` steered texts for each prompt, latent and boost (in median residual norms) drawn for each."""
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
    """`n` answers of the corpus the SAE is trained on: many more subjects than there are prompts, already written.

    Taken as cut by the length limit, since a document does not tell. Raises ValueError when there are fewer than `n` of
    at least 30 words.
    """
    requests, responses = requests_and_responses(corpus, tokenizer, len(corpus.starts))
    usable = [i for i, response in enumerate(responses) if len(response.split()) >= MIN_CORPUS_WORDS]
    if n > len(usable):
        raise ValueError(f"{n} answers of the corpus are asked for; {len(usable)} of its documents are long enough.")
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
    """Answers that score `low` to `high`: a steered text may still be on topic, an ordinary answer may stray.

    Trained on as what it is not, such a text teaches to restart where nothing is wrong. scorer: of
    `esr.judging.relevance`.
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
    """`n` examples in random order, `round(ratio * n)` of them self-corrections, the others ordinary answers.

    answers: unsteered; openings: steered, of the same prompts or, where a prompt has none, of any. Answers take turns,
    so that each is used about equally often for either kind. Ordinary answers are cut to `answer_tokens`, those behind
    a restart to `restarted_tokens`: what they teach beyond their beginning, ordinary ones teach. Raises ValueError when
    the ratio is outside 0 to 1 or there are fewer than two answers.
    """
    if not 0 <= ratio <= 1 or len(responses) < 2:
        raise ValueError(f"ratio is {ratio} (0 to 1 is allowed) and there are {len(responses)} answers (2 are needed).")
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
    rounds = -(-n // len(responses))
    return [a for _ in range(rounds) for a in rng.sample(list(responses), len(responses))][:n]


def cut_opening(text: str, rng: random.Random) -> str:
    """The beginning of `text`, 8 to 60 words if it has them, to the end of a sentence; where none ends, one is ended.

    Never within a sentence: a restart there begins with a break ("...", a dash), and a model that learnt from such
    openings broke off its ordinary sentences too.
    """
    words = [m.end() for m in re.finditer(r"\S+", text)]
    first, last = words[min(MIN_WORDS, len(words)) - 1], words[min(MAX_WORDS, len(words)) - 1]
    ends = [m.end() for m in SENTENCE_END.finditer(text) if first <= m.end() <= last]
    if not ends:
        return text[:last].strip().rstrip(",;:-") + "."
    return text[: max(rng.choices(ends, k=2))].strip()  # later rather than earlier: interruptions stand before it


def _correction(response: TrainingText, opening: str, tokenizer, recovery_tokens: int, stop_token: int, rng) -> Example:
    """Prompt and opening without loss, then the restart and the answer."""
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
    (halt,) = rng.choices(list(HALTS), HALTS.values())
    return " ".join((halt, rng.choice(VERDICTS), rng.choice(ANNOUNCEMENTS)))


def _ids(tokenizer, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def _example(
    kind: str, response: TrainingText, context: list[int], restart: list[int], targets: list[int], tokenizer
) -> Example:
    begin = len(context) + len(restart)
    behind = [begin + place for place in _behind_breaks(targets, tokenizer)]
    return Example(
        kind=kind,
        prompt_id=response.prompt_id,
        tokens=[*context, *restart, *targets],
        loss_from=len(context),
        decisions=[*range(len(context), begin), *behind],
        interruptions=[],
        latent=0,
        boost=0.0,
    )


def _behind_breaks(tokens: Sequence[int], tokenizer) -> list[int]:
    """Places of the tokens that follow the end of a sentence or of a line."""
    return [i + 1 for i, token in enumerate(tokens[:-1]) if BREAK.search(tokenizer.decode([token]))]
