"""Accuracy of a judge against annotators, on the annotated responses of data/judge/annotated.jsonl (RUBRIC.md).

Part `report` measures a judge; part `develop` serves to improve one. The responses are chosen to be hard: restarts and
near misses are far more frequent than in the study, so precision and recall do not transfer to the study's responses.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import bootstrap, rankdata, spearmanr

from esr.judging.offline import is_degraded
from esr.statistics import intervals
from esr.statistics.estimates import Estimate
from esr.storage.records import AnnotatedResponse, Attempt, Judgement, Trial

NEAR = 10  # characters between an annotated and a judged start of an attempt, RUBRIC.md section 3
DECILES = 10


def as_trials(annotated: Sequence[AnnotatedResponse]) -> list[Trial]:
    """Annotated responses as trials for a judge: text, prompt and label; generation settings are empty."""
    return [
        Trial(
            id=x.id, model=x.model, condition=x.condition, latent=number, label=x.label, prompt_id=x.id,
            prompt=x.prompt, seed=0, boost=x.boost, layer=0, max_new_tokens=0, temperature=0.0, repetition_penalty=1.0,
            tokens=[], text=x.text, finish_reason="length",
        )
        for number, x in enumerate(annotated)
    ]  # fmt: skip


def as_judgements(annotated: Sequence[AnnotatedResponse]) -> list[Judgement]:
    """The annotators as a judge of `as_trials`, for agreement with other judges."""
    judgements = []
    for trial, x in zip(as_trials(annotated), annotated, strict=True):
        starts = [0, *x.starts]
        spans = zip(starts, [*x.starts, len(x.text)], x.scores, strict=True)
        shared = {name: getattr(trial, name) for name in ("model", "condition", "latent", "prompt_id", "seed")}
        attempts = [Attempt(start=a, end=b, restart="", score=score) for a, b, score in spans]
        judgements.append(
            Judgement(
                trial_id=x.id, judge="annotators", outcome="scored", attempts=attempts, degraded=is_degraded(x.text),
                **shared,
            )
        )  # fmt: skip
    return judgements


def measure(annotated: Sequence[AnnotatedResponse], judgements: Sequence[Judgement], **interval) -> dict:
    """A judge's accuracy against the annotators; rates are `Estimate`s clustered by response.

    n_unscored: responses without a score from the judge, which are left out.
    restart_precision, restart_recall: of single restarts, which match when they start within `NEAR` characters.
    multi_attempt_precision, multi_attempt_recall: of responses with a restart, which the study counts.
    near_miss_false_rate: share of near misses judged as a restart. score_spearman: of first-attempt scores.
    by_decile: mean scores of both by decile of the annotators' scores.
    Raises ValueError unless `annotated` and `judgements` list the same responses in the same order.
    """
    if [x.id for x in annotated] != [j.trial_id for j in judgements]:
        raise ValueError("Annotations and judgements are not of the same responses in the same order.")
    pairs = [(x, j) for x, j in zip(annotated, judgements, strict=True) if j.outcome == "scored"]
    judged = [(x, a.start, x.starts) for x, j in pairs for a in j.attempts[1:]]
    expected = [(x, start, [a.start for a in j.attempts[1:]]) for x, j in pairs for start in x.starts]
    several = [len(j.attempts) > 1 for _, j in pairs]

    def share(events, ids) -> Estimate:
        return intervals.rate(events, ids, **interval)

    def of_responses(chosen: Sequence[bool], events: Sequence[bool]) -> Estimate:
        rows = [(bool(event), x.id) for keep, event, (x, _) in zip(chosen, events, pairs, strict=True) if keep]
        return share([event for event, _ in rows], [name for _, name in rows])

    genuine = [bool(x.starts) for x, _ in pairs]
    scores = [(x.scores[0], j.attempts[0].score) for x, j in pairs if j.attempts[0].score is not None]
    annotators, judge = np.array(scores, float).reshape(-1, 2).T
    return {
        "n": len(annotated),
        "n_unscored": len(annotated) - len(pairs),
        "restart_precision": share([_near(s, starts) for _, s, starts in judged], [x.id for x, *_ in judged]),
        "restart_recall": share([_near(s, starts) for _, s, starts in expected], [x.id for x, *_ in expected]),
        "multi_attempt_precision": of_responses(several, genuine),
        "multi_attempt_recall": of_responses(genuine, several),
        "near_miss_false_rate": of_responses([x.near_miss for x, _ in pairs], several),
        "score_spearman": spearman(annotators, judge, **interval),
        "by_decile": by_decile(annotators, judge),
    }


def _near(start: int, others: Sequence[int]) -> bool:
    return any(abs(start - other) <= NEAR for other in others)


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
