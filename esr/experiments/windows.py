"""Sustained-resistance control (experiment 12): relevance of text by distance from a restart or a prefilled opening.

Steering continues after a restart. If on-topic context alone keeps the text on topic, an equally long on-topic prefill
after the prompt, without a failed attempt, has the same effect. Scores are of windows of tokens, counted from the
restart, from the end of the prefill, or from the start.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from esr.models.alignment import align, whole_characters
from esr.statistics import intervals
from esr.steering.trials import Plan
from esr.storage.records import Judgement, Trial

CONDITIONS = ("after_restart", "after_restart_matched", "prefilled_on_topic", "first_attempt", "unsteered")
KEY = ["latent", "prompt_id", "seed"]
COLUMNS = ["condition", *KEY, "window", "score"]


@dataclass(frozen=True)
class Episode:
    """A steered response that restarts, with token counts at which the first attempt, the restart phrase and the second
    attempt end."""

    trial: Trial
    first_end: int
    restart: int
    end: int


@dataclass(frozen=True)
class Span:
    """Tokens `start` to `end` of a response in a condition."""

    condition: str
    trial: Trial
    start: int
    end: int


def find_episodes(
    trials: Sequence[Trial], judgements: Sequence[Judgement], tokenizer, min_tokens: int
) -> list[Episode]:
    """First restarts with at least `min_tokens` tokens after the restart phrase, up to the next restart or the end."""
    episodes = []
    for trial, judgement in zip(trials, judgements, strict=True):
        if len(judgement.attempts) < 2:
            continue
        second, starts = judgement.attempts[1], align(trial.tokens, tokenizer).starts
        # A token across a border belongs to the restart phrase and is not scored.
        first_end, end = (bisect_right(starts, border) - 1 for border in (second.start, second.end))
        restart = bisect_left(starts, second.start + len(second.restart))
        if end - restart >= min_tokens:
            episodes.append(Episode(trial, first_end, restart, end))
    return episodes


def plan_on_topic_openings(
    episodes: Sequence[Episode], unsteered: Sequence[Trial], opening_tokens: int, tokenizer
) -> list[Plan]:
    """Each episode's steered trial, prefilled with the first `opening_tokens` tokens of the unsteered response to the
    same prompt with the same seed, and with those that complete a character. Episodes with a shorter unsteered response
    are left out."""
    tokens_of = {_key(t): t.tokens for t in unsteered}
    plans = []
    for trial in (episode.trial for episode in episodes):
        tokens = tokens_of.get(_key(trial), [])
        if count := whole_characters(tokens, opening_tokens, tokenizer):
            names = ("latent", "label", "prompt_id", "prompt", "seed", "boost", "layer")
            fields = {name: getattr(trial, name) for name in names}
            plans.append(Plan("prefilled_on_topic", prefill=tuple(tokens[:count]), **fields))
    return plans


def find_spans(
    episodes: Sequence[Episode], prefilled: Sequence[Trial], unsteered: Sequence[Trial], opening_tokens: int
) -> list[Span]:
    """Spans to score in windows, by condition.

    after_restart: from the end of the restart phrase. after_restart_matched: from `opening_tokens` tokens later, to
    match the prefill. prefilled_on_topic: from the end of the prefill. first_attempt: from the start to the restart.
    unsteered: the same prompts without steering.
    """
    keys = {_key(e.trial) for e in episodes}
    plain = [t for t in unsteered if _key(t) in keys]
    return [
        *(Span("after_restart", e.trial, e.restart, e.end) for e in episodes),
        *(Span("after_restart_matched", e.trial, e.restart + opening_tokens, e.end) for e in episodes),
        *(Span("prefilled_on_topic", t, 0, len(t.tokens)) for t in prefilled),
        *(Span("first_attempt", e.trial, 0, e.first_end) for e in episodes),
        *(Span("unsteered", t, 0, len(t.tokens)) for t in plain),
    ]


def window_scores(spans: Sequence[Span], windows: Sequence[Sequence[int]], tokenizer, scorer) -> pd.DataFrame:
    """Relevance 0-100 of every window, tokens [first, last) of a span; columns `COLUMNS`.

    Omits windows longer than the span: shorter texts score differently.
    """
    rows, texts, trials = [], [], []
    for span in spans:
        alignment = align(span.trial.tokens, tokenizer)
        for first, last in windows:
            if span.start + last <= span.end:
                row = {name: getattr(span.trial, name) for name in KEY}
                rows.append(row | {"condition": span.condition, "window": name_of(first, last)})
                texts.append(alignment.slice(span.start + first, span.start + last))
                trials.append(span.trial)
    scores = scorer.score([t.prompt for t in trials], texts, [t.label for t in trials])
    return pd.DataFrame([row | {"score": float(s)} for row, s in zip(rows, scores, strict=True)], columns=COLUMNS)


def sustained_rates(frame: pd.DataFrame, windows: Sequence[Sequence[int]], **interval) -> dict:
    """`{condition: {window: mean score}}` of experiment 12, with intervals clustered by latent.

    matched_difference: after_restart_matched minus prefilled_on_topic over trials with the window in both. Nulls and n
    0 where no response restarts.
    """
    result: dict = {condition: {} for condition in (*CONDITIONS, "matched_difference")}
    for name in [name_of(first, last) for first, last in windows]:
        scores = {c: frame[(frame.window == name) & (frame.condition == c)].set_index(KEY).score for c in CONDITIONS}
        scores["matched_difference"] = (scores["after_restart_matched"] - scores["prefilled_on_topic"]).dropna()
        for condition, values in scores.items():
            result[condition][name] = intervals.mean(values, values.index.get_level_values("latent"), **interval)
    return result


def name_of(first: int, last: int) -> str:
    return f"{first}-{last}"


def _key(trial: Trial) -> tuple[int, str, int]:
    return trial.latent, trial.prompt_id, trial.seed
