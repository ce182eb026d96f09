"""Detection control (experiment 11): does the off-topic text alone make the model restart?

An *opening* is a response up to the end of a sentence. The off-topic opening of a steered response is prefilled, token
by token as generated, without steering. The continuation is compared, trial by trial, with the rest of the steered
response ("live"), with those after an opening for another prompt ("foreign") and after an on-topic opening of the model
("on_topic"), and with those under ablation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy import ndarray

from esr.experiments.run import paired
from esr.judging.offline import OfflineJudge
from esr.judging.restarts import Restart
from esr.models.alignment import Alignment, align, sentence_ends
from esr.paths import data_dir
from esr.statistics import intervals, metrics, outcomes
from esr.statistics.effects import mcnemar_exact, paired_difference, ratio, relative_reduction
from esr.steering.trials import Plan
from esr.storage.digests import digest, seeded
from esr.storage.files import read_rows
from esr.storage.records import AblationSet, Judgement, Trial

BASELINE = "prefilled"  # the condition others are compared with
PREFILLED = ("prefilled", "prefilled_steered", "foreign", "on_topic")


@dataclass(frozen=True)
class Openings:
    """A steered trial and its three prefilled openings, as token ids.

    off_topic: of the steered response. on_topic: of the unsteered response to the same prompt with the same seed.
    foreign: of the unsteered response to another prompt.
    """

    trial: Trial
    off_topic: tuple[int, ...]
    on_topic: tuple[int, ...]
    foreign: tuple[int, ...]


@dataclass(frozen=True)
class OpeningRule:
    """Limits on openings: their number of tokens, and `max_score` (0-100) of an off-topic one."""

    min_tokens: int
    max_tokens: int
    max_score: float


def sentence_cut(alignment: Alignment, min_tokens: int, max_tokens: int) -> int | None:
    """Number of tokens of the shortest opening of at least `min_tokens` tokens that ends with a sentence.

    None where no sentence ends at a token border within `max_tokens` tokens. The first end applies whether or not the
    response restarts later.
    """
    return next((count for count in sentence_ends(alignment) if min_tokens <= count <= max_tokens), None)


def usable_opening(trial: Trial, tokenizer, rule: OpeningRule, restarts: Sequence[Restart]) -> tuple[int, ...]:
    """Tokens of the trial's opening; empty where there is none, or where it contains the start of a restart."""
    alignment = align(trial.tokens, tokenizer)
    count = sentence_cut(alignment, rule.min_tokens, rule.max_tokens)
    if count is None:
        return ()
    return () if restarts and restarts[0].start < alignment.starts[count] else tuple(trial.tokens[:count])


def find_openings(
    steered: Sequence[Trial],
    unsteered: Sequence[Trial],
    tokenizer,
    judge: OfflineJudge,
    rule: OpeningRule,
    *,
    n: int,
    seed: int,
) -> list[Openings]:
    """Openings of at most `n` steered trials, drawn by seed; smaller draws are prefixes of larger ones.

    Each trial's foreign opening is drawn among the other prompts' unsteered
    responses. Trials without all three openings are excluded from every condition.
    """
    on_topic = {_key(t): (t, opening) for t, opening in _usable(unsteered, tokenizer, judge, rule)}
    off_topic = [(t, opening) for t, opening in _usable(steered, tokenizer, judge, rule) if opening]
    texts = [tokenizer.decode(opening, skip_special_tokens=True) for _, opening in off_topic]
    scores = judge.scorer.score([t.prompt for t, _ in off_topic], texts, [t.label for t, _ in off_topic])
    found = []
    for (trial, opening), score in zip(off_topic, scores, strict=True):
        matching = on_topic.get(_key(trial), (None, ()))[1]
        others = [tokens for other, tokens in on_topic.values() if tokens and other.prompt_id != trial.prompt_id]
        if score <= rule.max_score and matching and others:
            foreign = seeded(seed, "foreign", _key(trial)).choice(others)
            found.append(Openings(trial, opening, matching, foreign))
    return sorted(found, key=lambda openings: digest(seed, _key(openings.trial)))[:n]


def _usable(trials: Sequence[Trial], tokenizer, judge: OfflineJudge, rule: OpeningRule):
    restarts = judge.detector.find([t.prompt for t in trials], [t.text for t in trials])
    return [(t, usable_opening(t, tokenizer, rule, found)) for t, found in zip(trials, restarts, strict=True)]


def _key(trial: Trial) -> tuple[int, str, int]:
    return trial.latent, trial.prompt_id, trial.seed


def detection_plans(found: Sequence[Openings], ablations: dict[str, tuple[int, ...]]) -> list[Plan]:
    """Plans of every condition of experiment 11 but "live", whose responses exist.

    Only "prefilled_steered" steers. ablations: condition -> latents zero-ablated on prompt, off-topic opening and
    continuation.
    """
    plans = []
    for openings in found:
        trial = openings.trial
        plain = Plan(BASELINE, trial.latent, trial.label, trial.prompt_id, trial.prompt, trial.seed, 0.0, trial.layer)
        plain = replace(plain, prefill=openings.off_topic)
        plans += [
            plain,
            replace(plain, condition="prefilled_steered", boost=trial.boost),
            replace(plain, condition="foreign", prefill=openings.foreign),
            replace(plain, condition="on_topic", prefill=openings.on_topic),
            *(replace(plain, condition=name, ablate=latents) for name, latents in ablations.items()),
        ]
    return plans


def competence_plans(found: Sequence[Openings], phrases: Mapping[str, int], tokenizer, seed: int) -> list[Plan]:
    """Steered plans that continue an off-topic opening with a restart behind it ("restarted") and, as a placebo, alone.

    Can a model answer the prompt after a restart? Without the placebo ("opening"), one that resists steering everywhere
    passes too. phrases: restarts and their weights, drawn for each opening.
    """
    plans = []
    for openings in found:
        trial = openings.trial
        drawn = seeded(seed, "restart", _key(trial)).choices(list(phrases), list(phrases.values()))[0]
        restart = tokenizer.encode(f" {drawn}", add_special_tokens=False)
        alone = Plan("opening", trial.latent, trial.label, trial.prompt_id, trial.prompt, trial.seed, trial.boost,
                     trial.layer, prefill=openings.off_topic)  # fmt: skip
        plans += [replace(alone, condition="restarted", prefill=(*openings.off_topic, *restart)), alone]
    return plans


def competence(
    plans: Sequence[Plan], untuned: Sequence[float], tuned: Sequence[float], *, min_on_topic_score: float, **interval
) -> dict:
    """Per condition of `competence_plans`, what two models' continuations score and how many are on topic.

    untuned, tuned: scores of continuations, 0-100, indexed like `plans`. score_difference: tuned minus untuned.
    beyond_placebo: that of "restarted" minus that of "opening", over the same openings. Intervals are clustered by
    latent.
    """
    frame = pd.DataFrame({
        "condition": [plan.condition for plan in plans], "latent": [plan.latent for plan in plans],
        "untuned": np.asarray(untuned, float), "tuned": np.asarray(tuned, float),
    })  # fmt: skip
    frame["gain"] = frame.tuned - frame.untuned
    restarted, opening = (frame[frame.condition == name].reset_index(drop=True) for name in ("restarted", "opening"))
    result: dict = {}
    for condition, rows in (("restarted", restarted), ("opening", opening)):
        result[condition] = {"score_difference": intervals.mean(rows.gain, rows.latent, **interval)}
        for name in ("untuned", "tuned"):
            on_topic = rows[name] >= min_on_topic_score
            result[condition][name] = {
                "score": intervals.mean(rows[name], rows.latent, **interval),
                "on_topic_rate": intervals.rate(on_topic, rows.latent, **interval),
            }
    return result | {"beyond_placebo": intervals.mean(restarted.gain - opening.gain, opening.latent, **interval)}


def live_trials(found: Sequence[Openings], tokenizer) -> list[Trial]:
    """The steered responses with their off-topic opening as prefill and the rest as continuation."""
    trials = []
    for openings in found:
        trial, count = openings.trial, len(openings.off_topic)
        changes = {
            "id": digest("live", trial.id, count),
            "condition": "live",
            "prefill": list(openings.off_topic),
            "tokens": trial.tokens[count:],
            "text": align(trial.tokens, tokenizer).slice(count, len(trial.tokens)),
        }
        trials.append(trial.model_copy(update=changes))
    return trials


def whole(trial: Trial, tokenizer) -> tuple[Trial, int]:
    """The trial with prefill and continuation as one response, and the character where the continuation begins.

    A judge must see both: a restart is a second attempt. The prefill counts towards the length limit, which gives every
    condition as many tokens to restart as the live response.
    """
    tokens = [*trial.prefill, *trial.tokens][: trial.max_new_tokens]
    alignment = align(tokens, tokenizer)
    return trial.model_copy(update={"tokens": tokens, "text": alignment.text}), alignment.starts[len(trial.prefill)]


def judge_continuations(
    trials: Sequence[Trial], tokenizer, judge: OfflineJudge
) -> tuple[list[Judgement], Float[ndarray, " trials"]]:
    """Judgements of whole responses, with restarts in continuations alone, and each continuation's relevance 0-100."""
    responses, starts = zip(*(whole(trial, tokenizer) for trial in trials), strict=True) if trials else ((), ())
    judgements = [
        restarts_after(judgement, start) for judgement, start in zip(judge.judge(responses), starts, strict=True)
    ]
    continuations = [response.text[start:] for response, start in zip(responses, starts, strict=True)]
    scores = judge.scorer.score([t.prompt for t in trials], continuations, [t.label for t in trials])
    return judgements, scores


def restarts_after(judgement: Judgement, start: int) -> Judgement:
    """The judgement with attempts before character `start` joined to their predecessor, which keeps its score."""
    attempts = judgement.attempts[:1]
    for attempt in judgement.attempts[1:]:
        if attempt.start >= start:
            attempts.append(attempt)
        else:
            attempts[-1] = attempts[-1].model_copy(update={"end": attempt.end})
    return judgement.model_copy(update={"attempts": attempts})


def detection_rates(
    frame: pd.DataFrame,
    cuts: pd.DataFrame,
    scores: Sequence[float],
    conditions: Sequence[str],
    *,
    min_on_topic_score: float,
    **interval,
) -> dict:
    """`{condition: rates}` of experiment 11.

    frame, cuts: metrics.table and outcomes.cut_table of the judgements; scores: of the continuations.

    Adds to outcomes.rates, which are of prefill and continuation: silent_on_topic_rate (no restart and a continuation
    of at least `min_on_topic_score`); of the multi-attempt rate against "prefilled", paired_difference, its exact
    McNemar p_value and relative_reduction, or for "prefilled" ratio_to_live, its rate over that of "live". Without
    trials: nulls and n 0.
    """
    on_topic = pd.Series(scores, frame.index, float) >= min_on_topic_score
    frame = frame.assign(silent=~metrics.multi_attempt(frame) & on_topic)
    result: dict = {}
    for condition in conditions:
        rows = frame[(frame.condition == condition) & metrics.scored(frame)]
        silent = intervals.rate(rows.silent, rows.latent, **interval)
        result[condition] = outcomes.rates(rows, cuts, **interval) | {"silent_on_topic_rate": silent}
        other = "live" if condition == BASELINE else BASELINE
        measured = len(rows) and (frame.condition == other).any()
        before, after = paired(frame, other, condition) if measured else (rows[:0], rows[:0])
        events = metrics.multi_attempt(before), metrics.multi_attempt(after)
        if condition == BASELINE:
            result[condition]["ratio_to_live"] = ratio(events[1], events[0], after.latent, **interval)
        else:
            result[condition] |= {
                "paired_difference": paired_difference(*events, after.latent, **interval),
                "relative_reduction": relative_reduction(*events, after.latent, **interval),
                "p_value": mcnemar_exact(*events).p_value if measured else None,
            }
    return result


def read_ablations(model: str, n_random: int) -> dict[str, tuple[int, ...]]:
    """The detectors and the first `n_random` random sets of the stage `detectors`, as `{condition: latents}`.

    Raises FileNotFoundError or ValueError naming the file and what it lacks.
    """
    path = data_dir("detectors", model) / "sets.jsonl"
    sets = {row.condition: tuple(row.latents) for row in read_rows(path, AblationSet)}
    names = ["detectors", *(f"random_{i + 1}" for i in range(n_random))]
    for name in names:
        if not sets.get(name):
            raise ValueError(f"{path} has no latents for {name!r}: lower controls.n_random or run `detectors` again.")
    return {f"{BASELINE}_{name}": sets[name] for name in names}
