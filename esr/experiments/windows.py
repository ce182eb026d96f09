"""Sustained-resistance control (experiment 12): how on-topic is text at a given distance from where it began?

After a restart the steering is still on. If what follows stays on topic only because the model reads its own on-topic
words, then the same number of on-topic words put in right after the prompt, without any failed attempt, should do as
well. Answers are scored in windows of tokens, counted from the restart, from the end of what was put in, or from the
answer's start.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from esr.statistics import intervals
from esr.steering.trials import Plan
from esr.storage.records import Judgement, Trial

CONDITIONS = ("after_restart", "after_restart_matched", "prefilled_on_topic", "first_attempt", "unsteered")
KEY = ["latent", "prompt_id", "seed"]
COLUMNS = ["condition", *KEY, "window", "score"]


@dataclass(frozen=True)
class Episode:
    """A steered answer that restarts, as counts of its tokens: the first attempt is the first `first_end` of them, the
    first restart's phrase is over after `restart`, and what follows it ends after `end`."""

    trial: Trial
    first_end: int
    restart: int
    end: int


@dataclass(frozen=True)
class Stretch:
    """Tokens `start` to `end` of an answer, one after the other, under the name of its condition."""

    condition: str
    trial: Trial
    start: int
    end: int


def text_lengths(tokens: Sequence[int], tokenizer) -> list[int]:
    """Characters of the text of the first 0, 1, 2, ... tokens."""
    return [len(tokenizer.decode(tokens[:count], skip_special_tokens=True)) for count in range(len(tokens) + 1)]


def find_episodes(trials: Sequence[Trial], judgements: Sequence[Judgement], tokenizer, least: int) -> list[Episode]:
    """First restarts with at least `least` tokens after the restart phrase, up to the next restart or the end."""
    episodes = []
    for trial, judgement in zip(trials, judgements, strict=True):
        if len(judgement.attempts) < 2:
            continue
        second = judgement.attempts[1]
        lengths = text_lengths(trial.tokens, tokenizer)
        # A token that straddles a place belongs to the restart phrase: to neither of the texts that are scored.
        first_end, end = (bisect_right(lengths, place) - 1 for place in (second.start, second.end))
        restart = bisect_left(lengths, second.start + len(second.restart))
        if end - restart >= least:
            episodes.append(Episode(trial, first_end, restart, end))
    return episodes


def opening_plans(episodes: Sequence[Episode], unsteered: Sequence[Trial], opening: int) -> list[Plan]:
    """The steered trial of every episode once more, the answer begun with the first `opening` tokens of the unsteered
    answer to the same prompt with the same seed. Episodes whose unsteered answer is shorter have none."""
    own = {(t.latent, t.prompt_id, t.seed): t.tokens for t in unsteered}
    plans = []
    for trial in (episode.trial for episode in episodes):
        tokens = own.get((trial.latent, trial.prompt_id, trial.seed), [])
        if len(tokens) >= opening:
            names = ("latent", "label", "prompt_id", "prompt", "seed", "boost", "layer")
            fields = {name: getattr(trial, name) for name in names}
            plans.append(Plan("prefilled_on_topic", prefill=tuple(tokens[:opening]), **fields))
    return plans


def stretches(
    episodes: Sequence[Episode], prefilled: Sequence[Trial], unsteered: Sequence[Trial], opening: int
) -> list[Stretch]:
    """What is scored in windows, by condition.

    after_restart: from the end of the restart phrase. after_restart_matched: from `opening` tokens later, where as many
    tokens since the restart stand before as were put in under prefilled_on_topic, counted from the end of what was put
    in. first_attempt: from the answer's start to its restart. unsteered: the same prompts without steering.
    """
    keys = {(e.trial.latent, e.trial.prompt_id, e.trial.seed) for e in episodes}
    plain = [t for t in unsteered if (t.latent, t.prompt_id, t.seed) in keys]
    return [
        *(Stretch("after_restart", e.trial, e.restart, e.end) for e in episodes),
        *(Stretch("after_restart_matched", e.trial, e.restart + opening, e.end) for e in episodes),
        *(Stretch("prefilled_on_topic", t, 0, len(t.tokens)) for t in prefilled),
        *(Stretch("first_attempt", e.trial, 0, e.first_end) for e in episodes),
        *(Stretch("unsteered", t, 0, len(t.tokens)) for t in plain),
    ]


def window_scores(parts: Sequence[Stretch], windows: Sequence[Sequence[int]], tokenizer, scorer) -> pd.DataFrame:
    """Relevance 0-100 of every window, [from, to) tokens of a stretch, that the stretch fills; columns `COLUMNS`.

    A window the stretch does not fill is left out: shorter texts score differently.
    """
    rows, texts = [], []
    for part in parts:
        for low, high in windows:
            if part.start + high <= part.end:
                own = {name: getattr(part.trial, name) for name in KEY}
                rows.append(own | {"condition": part.condition, "window": name_of(low, high), "trial": part.trial})
                tokens = part.trial.tokens[part.start + low : part.start + high]
                texts.append(tokenizer.decode(tokens, skip_special_tokens=True))
    asked = [row.pop("trial") for row in rows]
    scores = scorer.score([t.prompt for t in asked], texts, [t.label for t in asked])
    return pd.DataFrame([row | {"score": float(s)} for row, s in zip(rows, scores, strict=True)], columns=COLUMNS)


def sustained_rates(frame: pd.DataFrame, windows: Sequence[Sequence[int]], **interval) -> dict:
    """`{condition: {window: mean score}}` of experiment 12, with intervals clustered by latent.

    matched_difference: after_restart_matched less prefilled_on_topic over trials that fill the window in both. Nulls
    and n 0 where no answer restarts.
    """
    result: dict = {condition: {} for condition in (*CONDITIONS, "matched_difference")}
    for name in [name_of(low, high) for low, high in windows]:
        scores = {c: frame[(frame.window == name) & (frame.condition == c)].set_index(KEY).score for c in CONDITIONS}
        scores["matched_difference"] = (scores["after_restart_matched"] - scores["prefilled_on_topic"]).dropna()
        for condition, own in scores.items():
            result[condition][name] = intervals.mean(own, own.index.get_level_values("latent"), **interval)
    return result


def name_of(low: int, high: int) -> str:
    return f"{low}-{high}"
