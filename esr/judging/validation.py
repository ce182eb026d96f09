"""A judge measured against the labelled responses, and the annotators against each other: the ceiling beside it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.metrics import cohen_kappa_score

from esr.judging.annotations import NEAR, spearman
from esr.judging.labels import Labelled
from esr.judging.offline import is_degraded
from esr.statistics import intervals
from esr.statistics.estimates import Estimate
from esr.storage.records import Annotation, Attempt, Judgement, Trial

MIDDLE = 20.0, 40.0  # scores around the calibration target
FIGURES = (
    "restart_precision", "restart_recall", "multi_attempt_kappa", "score_spearman", "score_error", "middle_error",
    "direction_kappa",
)  # fmt: skip


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
    """`FIGURES` of a judge over the responses it scored, and their numbers; rates are clustered by response.

    restart_precision: share of judged restarts that start within `NEAR` characters of one that some annotator found.
    restart_recall: share of the restarts that all annotators found. score_spearman, score_error (mean absolute
    difference, points): of first attempts, against the annotators' mean. middle_error: the annotators' mean minus the
    judge's where the judge gives `MIDDLE`. direction_kappa: of "the last attempt is better than the first", where both
    find a restart. Raises ValueError unless both lists are of the same responses in the same order.
    """
    if [row.response.id for row in labelled] != [j.trial_id for j in judgements]:
        raise ValueError("Labels and judgements are not of the same responses in the same order.")
    pairs = [(row, j) for row, j in zip(labelled, judgements, strict=True) if _is_scored(j)]
    names = [row.response.id for row, _ in pairs]
    found, wanted = [], []
    for name, (row, judgement) in zip(names, pairs, strict=True):
        starts = [attempt.start for attempt in judgement.attempts[1:]]
        found += [(name, _near(start, _every_start(row))) for start in starts]
        wanted += [(name, _near(start, starts)) for start in row.shared_starts]
    theirs = np.array([_mean_score(row.annotations, 0) for row, _ in pairs])
    judged = np.array([j.attempts[0].score for _, j in pairs], float)
    middle = (judged >= MIDDLE[0]) & (judged <= MIDDLE[1])
    return {
        "n": len(labelled),
        "n_scored": len(pairs),
        "n_restarts": len(wanted),
        "restart_precision": _rate(found, **interval),
        "restart_recall": _rate(wanted, **interval),
        "multi_attempt_kappa": _kappa([(bool(row.shared_starts), len(j.attempts) > 1) for row, j in pairs]),
        "score_spearman": spearman(theirs, judged, **interval),
        "score_error": intervals.mean(np.abs(judged - theirs), names, **interval),
        "middle_error": intervals.mean((theirs - judged)[middle], np.array(names)[middle], **interval),
        "direction_kappa": _kappa(directions(pairs)),
        "n_directions": len(directions(pairs)),
    }


def directions(pairs: Sequence[tuple[Labelled, Judgement]]) -> list[tuple[bool, bool]]:
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


def _every_start(row: Labelled) -> list[int]:
    return [start for annotation in row.annotations for start in annotation.starts]


def _near(start: int, others: Sequence[int]) -> bool:
    return any(abs(start - other) <= NEAR for other in others)


def _rate(events: Sequence[tuple[str, bool]], **interval) -> Estimate:
    return intervals.rate([event for _, event in events], [name for name, _ in events], **interval)


def _kappa(pairs: Sequence[tuple[bool, bool]]) -> float | None:
    """Cohen's kappa; None where one side never varies."""
    if not pairs or len({a for a, _ in pairs}) < 2 or len({b for _, b in pairs}) < 2:
        return None
    return float(cohen_kappa_score(*zip(*pairs, strict=True)))
