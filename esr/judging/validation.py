"""A judge measured against the labelled responses, and the annotators against each other: the ceiling beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from scipy.stats import bootstrap, rankdata, spearmanr
from sklearn.metrics import cohen_kappa_score

from esr.judging.labels import Labelled, is_near
from esr.judging.offline import is_degraded
from esr.judging.restarts import Restart
from esr.statistics import intervals, metrics, outcomes
from esr.statistics.estimates import Estimate
from esr.storage.digests import digest
from esr.storage.records import Annotation, Attempt, Judgement, RestartCase, Trial

MIDDLE = 20.0, 40.0  # scores around the calibration target
DECILES = 10
FIGURES = (
    "restart_precision", "restart_recall", "multi_attempt_precision", "multi_attempt_recall", "multi_attempt_kappa",
    "score_spearman", "score_error", "middle_error", "direction_kappa",
)  # fmt: skip
Pairs = Sequence[tuple[Labelled, Judgement]]


def subset(labelled: Sequence[Labelled], n: int) -> list[Labelled]:
    """`n` of the labelled responses, always the same, in an order that tells nothing about them."""
    return sorted(labelled, key=lambda row: digest(row.response.id))[:n]


def as_trials(labelled: Sequence[Labelled]) -> list[Trial]:
    """Labelled responses as trials for a judge; settings of generation are empty."""
    return [
        Trial(
            id=x.id, model=x.model, condition=x.condition, latent=x.latent, label=x.label, prompt_id=x.id,
            prompt=x.prompt, seed=0, boost=x.boost, layer=0, max_new_tokens=0, temperature=0.0, repetition_penalty=1.0,
            tokens=[], text=x.text, finish_reason="length",
        )
        for x in (row.response for row in labelled)
    ]  # fmt: skip


def as_judgements(labelled: Sequence[Labelled], annotator: int) -> list[Judgement]:
    """One of the annotators as a judge."""
    judgements = []
    for row, trial in zip(labelled, as_trials(labelled), strict=True):
        theirs = row.annotations[annotator]
        bounds = [0, *theirs.starts, len(row.response.text)]
        attempts = [
            Attempt(start=a, end=b, restart="", score=score)
            for a, b, score in zip(bounds, bounds[1:], theirs.scores, strict=False)
        ]
        shared = {name: getattr(trial, name) for name in ("model", "condition", "latent", "prompt_id", "seed")}
        judgements.append(
            Judgement(trial_id=trial.id, judge=theirs.annotator, outcome="scored", attempts=attempts,
                      degraded=is_degraded(trial.text), **shared)
        )  # fmt: skip
    return judgements


def measure(labelled: Sequence[Labelled], judgements: Sequence[Judgement], **interval) -> dict:
    """A judge over the labelled responses that it scored; rates are clustered by response.

    restart_precision: share of judged restarts that start within ten characters of one that some annotator found.
    restart_recall: share of the restarts that all annotators found. multi_attempt_precision, multi_attempt_recall: the
    same of whether a response restarts at all, which is what the study counts; multi_attempt_agreement and
    multi_attempt_kappa: on that, against "all annotators found a restart". score_spearman, score_error (mean absolute
    difference, points): of first attempts, against the annotators' mean. middle_error: the annotators' mean minus the
    judge's where the judge gives `MIDDLE`. by_decile: mean scores of both by decile of the annotators'.
    direction_agreement, direction_kappa: on whether the last attempt is better than the first, where both find a
    restart. Raises ValueError unless both lists are of the same responses in the same order.
    """
    if [row.response.id for row in labelled] != [j.trial_id for j in judgements]:
        raise ValueError("Labels and judgements are not of the same responses in the same order.")
    pairs = [(row, j) for row, j in zip(labelled, judgements, strict=True) if _is_scored(j)]
    counts = {"n": len(labelled), "n_scored": len(pairs), "n_restarts": sum(len(row.shared_starts) for row, _ in pairs)}
    return counts | _of_restarts(pairs, interval) | _of_scores(pairs, interval) | _of_directions(pairs, interval)


def _of_restarts(pairs: Pairs, interval: dict) -> dict:
    found, wanted, restarting, known = [], [], [], []
    for row, judgement in pairs:
        name, starts = row.response.id, [attempt.start for attempt in judgement.attempts[1:]]
        found += [(name, is_near(start, row.every_start)) for start in starts]
        wanted += [(name, is_near(start, starts)) for start in row.shared_starts]
        restarting += [(name, bool(row.every_start))] if starts else []
        known += [(name, bool(starts))] if row.shared_starts else []
    both = [(bool(row.shared_starts), len(j.attempts) > 1) for row, j in pairs]
    return {
        "restart_precision": _rate(found, **interval),
        "restart_recall": _rate(wanted, **interval),
        "multi_attempt_precision": _rate(restarting, **interval),
        "multi_attempt_recall": _rate(known, **interval),
        "multi_attempt_agreement": _agreement(both, **interval),
        "multi_attempt_kappa": _kappa(both),
    }


def _of_scores(pairs: Pairs, interval: dict) -> dict:
    names = np.array([row.response.id for row, _ in pairs])
    theirs = np.array([_mean_score(row.annotations, 0) for row, _ in pairs])
    judged = np.array([j.attempts[0].score for _, j in pairs], float)
    middle = (judged >= MIDDLE[0]) & (judged <= MIDDLE[1])
    return {
        "score_spearman": spearman(theirs, judged, **interval),
        "score_error": intervals.mean(np.abs(judged - theirs), names, **interval),
        "middle_error": intervals.mean((theirs - judged)[middle], names[middle], **interval),
        "by_decile": by_decile(theirs, judged),
    }


def _of_directions(pairs: Pairs, interval: dict) -> dict:
    turns = directions(pairs)
    return {
        "n_directions": len(turns),
        "direction_agreement": _agreement(turns, **interval),
        "direction_kappa": _kappa(turns),
    }


def ceiling(labelled: Sequence[Labelled], **interval) -> dict:
    """The second annotator measured against the first, as `measure` does with a judge: nobody agrees better."""
    first = [replace(row, annotations=row.annotations[:1]) for row in labelled]
    return measure(first, as_judgements(labelled, 1), **interval)


def of_cases(cases: Sequence[RestartCase], found: Sequence[Sequence[Restart]], **interval) -> dict[str, Estimate]:
    """Precision and recall of the restarts found in written cases, clustered by case."""
    judged = [(c.id, is_near(r.start, c.starts)) for c, restarts in zip(cases, found, strict=True) for r in restarts]
    wanted = [
        (c.id, is_near(start, [r.start for r in restarts]))
        for c, restarts in zip(cases, found, strict=True) for start in c.starts
    ]  # fmt: skip
    return {"restart_precision": _rate(judged, **interval), "restart_recall": _rate(wanted, **interval)}


def of_recovery(labelled: Sequence[Labelled], judgements: Sequence[Judgement], **interval) -> dict[str, Estimate]:
    """Precision and recall of whole responses that recover, beside those of which all annotators say so."""
    found = outcomes.recovered(metrics.table(judgements))
    known = [all(by.recovered for by in row.annotations) for row in labelled]
    both = [(row.response.id, bool(f), k) for row, f, k in zip(labelled, found, known, strict=True)]
    return {
        "precision": _rate([(name, k) for name, f, k in both if f], **interval),
        "recall": _rate([(name, f) for name, f, k in both if k], **interval),
    }


def directions(pairs: Pairs) -> list[tuple[bool, bool]]:
    """Whether the last attempt is better than the first, for annotators and judge, where both find a restart."""
    return [
        (_mean_score(row.annotations, -1) > _mean_score(row.annotations, 0), _last(j) > _first(j))
        for row, j in pairs if row.shared_starts and len(j.attempts) > 1
    ]  # fmt: skip


def _is_scored(judgement: Judgement) -> bool:
    return judgement.outcome == "scored" and None not in (judgement.attempts[0].score, judgement.attempts[-1].score)


def _first(judgement: Judgement) -> float:
    return float(judgement.attempts[0].score or 0)


def _last(judgement: Judgement) -> float:
    return float(judgement.attempts[-1].score or 0)


def _mean_score(annotations: Sequence[Annotation], attempt: int) -> float:
    return float(np.mean([annotation.scores[attempt] for annotation in annotations]))


def _rate(events: Sequence[tuple[str, bool]], **interval) -> Estimate:
    return intervals.rate([event for _, event in events], [name for name, _ in events], **interval)


def _agreement(pairs: Sequence[tuple[bool, bool]], **interval) -> Estimate:
    """Share of pairs that agree, each of one response."""
    return _rate([(str(i), a == b) for i, (a, b) in enumerate(pairs)], **interval)


def _kappa(pairs: Sequence[tuple[bool, bool]]) -> float | None:
    """Cohen's kappa; None where one side never varies."""
    if not pairs or len({a for a, _ in pairs}) < 2 or len({b for _, b in pairs}) < 2:
        return None
    return float(cohen_kappa_score(*zip(*pairs, strict=True)))


def spearman(
    one: intervals.Values, other: intervals.Values, *, confidence: float, n_bootstrap: int, seed: int
) -> Estimate:
    """Rank correlation of independent pairs with a percentile bootstrap interval; None where one side does not vary."""
    one, other = np.asarray(one, float), np.asarray(other, float)
    if len(one) < 3 or min(np.ptp(one), np.ptp(other)) == 0:
        return Estimate.of(None, None, None, len(one))

    def correlation(a, b, axis=-1):  # spearmanr of all resamples at once
        a, b = ((r := rankdata(x, axis=axis)) - r.mean(axis, keepdims=True) for x in (a, b))
        with np.errstate(invalid="ignore"):  # a resample may not vary
            return (a * b).sum(axis) / np.sqrt((a**2).sum(axis) * (b**2).sum(axis))

    ends = bootstrap(
        (one, other), correlation, paired=True, method="percentile", confidence_level=confidence,
        n_resamples=n_bootstrap, rng=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    return Estimate.of(spearmanr(one, other).statistic, *_finite(ends), len(one))


def by_decile(annotators: intervals.Values, judge: intervals.Values) -> list[dict]:
    """Mean scores of annotators and judge by decile of the annotators' score; ties stay together.

    Empty when the annotators gave fewer than two different scores.
    """
    frame = pd.DataFrame({"annotators": annotators, "judge": judge})
    if frame.annotators.nunique() < 2:
        return []
    tenths = pd.qcut(frame.annotators, DECILES, duplicates="drop")
    means = frame.groupby(tenths, observed=True).agg(
        annotators=("annotators", "mean"), judge=("judge", "mean"), n=("judge", "size")
    )
    return means.to_dict("records")


def matched_auc(
    scorer, responses: Sequence[Trial], foreign: dict[str, str], *, confidence: float, n_bootstrap: int, seed: int
) -> Estimate:
    """AUC of scores for telling responses scored with their prompt from responses scored with another prompt.

    The interval resamples prompts. foreign: prompt -> the other prompt its responses are scored with.
    """
    texts = [t.text for t in responses]
    matched = scorer.score([t.prompt for t in responses], texts, [""] * len(texts))
    mismatched = scorer.score([foreign[t.prompt] for t in responses], texts, [""] * len(texts))
    prompts, codes = np.unique([t.prompt for t in responses], return_inverse=True)
    every = np.arange(len(prompts))
    member = codes == every[:, None]
    above = (matched[:, None] > mismatched) + 0.5 * (matched[:, None] == mismatched)
    wins = member @ above @ member.T  # of the first prompt's matched scores against the second's mismatched ones

    def area(drawn, axis=-1):
        times = (np.moveaxis(drawn, axis, -1)[..., None] == every).sum(axis=-2)  # draws of each prompt
        return ((times @ wins) * times).sum(axis=-1) / (times @ member.sum(axis=1)) ** 2

    ends = bootstrap(
        (every,), area, method="percentile", confidence_level=confidence, n_resamples=n_bootstrap,
        rng=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    return Estimate.of(area(every), *_finite(ends), len(responses))


def _finite(ends) -> tuple[float | None, float | None]:
    """Ends of an interval; None where all resamples are equal."""
    low, high = (float(end) if np.isfinite(end) else None for end in (ends.low, ends.high))
    return low, high
