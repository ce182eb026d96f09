"""The paper's metrics, one function each, on a table with one row per judged response.

No rate includes a trial without a usable score: `scored` marks those with one, `summarize` counts the rest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from esr.statistics import intervals
from esr.statistics.estimates import Estimate
from esr.storage.records import Judgement, Latent, Threshold

KEY = ["model", "condition", "latent", "prompt_id", "seed"]
PARTS = ["first_restart", "last_restart", "first_third", "last_third"]
COLUMNS = [*KEY, "outcome", "attempts", "first_score", "last_score", "degraded", "unverified", *PARTS]
UNSCORED = ("empty", "run_error", "parse_failure", "truncated")  # outcomes without attempts


def read_trials(path: Path) -> pd.DataFrame:
    """The table of all models' trials that notebook 20 writes. Raises FileNotFoundError."""
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: run the stages up to measure first (dvc repro measure).")
    return pd.read_csv(path)


def table(judgements: Iterable[Judgement]) -> pd.DataFrame:
    """One row per judgement, columns `COLUMNS`; scores 0-100, NaN where the judge gave none.

    first_restart, last_restart: where they begin, 0 the beginning and 1 the end of the response; NaN without one.
    Raises ValueError when a trial appears twice, e.g. from two judges.
    """
    rows = [
        {name: getattr(judgement, name) for name in (*KEY, "outcome", "degraded", "unverified")}
        | {
            "attempts": len(judgement.attempts),
            "first_score": judgement.attempts[0].score if judgement.attempts else None,
            "last_score": judgement.attempts[-1].score if judgement.attempts else None,
        }
        | _parts(judgement)
        for judgement in judgements
    ]
    frame = pd.DataFrame(rows, columns=COLUMNS)
    scores = dict.fromkeys(["first_score", "last_score", *PARTS], float)
    kinds = {"attempts": int, "degraded": bool, "unverified": int} | scores
    frame = frame.astype(kinds)
    repeated = frame[frame.duplicated(KEY)]
    if len(repeated):
        raise ValueError(
            f"{len(repeated)} trials are judged twice, first {dict(repeated.iloc[0][KEY])}: "
            "keep one judge's rows of each."
        )
    return frame


def _parts(judgement: Judgement) -> dict[str, float | None]:
    """Values of `PARTS`; None without a restart or thirds."""
    restarts, thirds = judgement.attempts[1:], judgement.thirds
    return {
        "first_restart": restarts[0].start / judgement.attempts[-1].end if restarts else None,
        "last_restart": restarts[-1].start / judgement.attempts[-1].end if restarts else None,
        "first_third": thirds[0] if thirds else None,
        "last_third": thirds[-1] if thirds else None,
    }


def scored(frame: pd.DataFrame) -> pd.Series:
    """Trials that count: judged without error, not empty, first and last attempt scored.

    No other function handles missing scores. The paper's rates are over all scored trials (section 3).
    """
    has_scores = frame.first_score.notna() & frame.last_score.notna()
    return (frame.outcome == "scored") & (frame.attempts >= 1) & has_scores


def multi_attempt(frame: pd.DataFrame) -> pd.Series:
    """Two attempts or more: the response restarts explicitly at least once (paper, section 3)."""
    return frame.attempts >= 2


def improved(frame: pd.DataFrame) -> pd.Series:
    """The last attempt scores higher than the first. A tie is no improvement; a single attempt never improves."""
    return frame.last_score > frame.first_score


def esr(frame: pd.DataFrame) -> pd.Series:
    """Endogenous steering resistance: the response restarts, and its last attempt beats its first (section 3)."""
    return multi_attempt(frame) & improved(frame)


def degraded(frame: pd.DataFrame) -> pd.Series:
    """The same word five times in a row, as the judge found it: steering broke the text, not the topic."""
    return frame.degraded


def rates(frame: pd.DataFrame, cluster: str = "latent", **interval) -> dict[str, Estimate]:
    """The paper's four metrics over scored trials.

    multi_attempt_rate = P(multi-attempt); improvement_rate = P(improved | multi-attempt), null with n 0 when nothing
    restarts; esr_rate = P(multi-attempt and improved); first_attempt_score = mean score of the first attempt, 0-100.
    `interval`: confidence, n_bootstrap and seed of the intervals (esr.statistics.intervals).
    """
    frame = frame[scored(frame)]
    restarted = frame[multi_attempt(frame)]
    return {
        "multi_attempt_rate": intervals.rate(multi_attempt(frame), frame[cluster], **interval),
        "improvement_rate": intervals.rate(improved(restarted), restarted[cluster], **interval),
        "esr_rate": intervals.rate(esr(frame), frame[cluster], **interval),
        "first_attempt_score": intervals.mean(frame.first_score, frame[cluster], **interval),
    }


def worst_cases(frame: pd.DataFrame, cluster: str = "latent", **interval) -> dict:
    """Bounds on the multi-attempt and ESR rates if missing judgements were known.

    By rate: `missing_left_out` as in `rates`; `missing_as_no_events` and `missing_as_events` bound the rate. Missing
    trials are those the judge failed to score, `n_missing` in number; empty responses are excluded, not missing.
    `interval` as in `rates`.
    """
    frame = frame[frame.outcome != "empty"]
    known = scored(frame)
    result: dict = {"n_missing": int((~known).sum())}
    for name, events in (("multi_attempt_rate", multi_attempt(frame)), ("esr_rate", esr(frame))):
        result[name] = {
            "missing_left_out": intervals.rate(events[known], frame[cluster][known], **interval),
            "missing_as_no_events": intervals.rate(events & known, frame[cluster], **interval),
            "missing_as_events": intervals.rate(events | ~known, frame[cluster], **interval),
        }
    return result


def degraded_rate(frame: pd.DataFrame, cluster: str = "latent", **interval) -> Estimate:
    """Share of scored trials that are degraded."""
    frame = frame[scored(frame)]
    return intervals.rate(degraded(frame), frame[cluster], **interval)


def summarize(frame: pd.DataFrame, cluster: str = "latent", **interval) -> dict:
    """The entry of one model and condition in paper/numbers/esr.json.

    The four `rates` and degraded_rate; n_trials, of which n_unscored are in no rate (n_empty; n_run_error,
    n_parse_failure and n_truncated by the judge; the rest without a score); n_unverified_segments, attempts a judge
    claims and the responses do not contain; the rates `without_degraded` responses; `unclustered`, the rates with the
    authors' interval. `interval` as in `rates`. Raises ValueError unless all rows are of one model and condition.
    """
    conditions = frame[["model", "condition"]].drop_duplicates()
    if len(conditions) != 1:
        raise ValueError(f"Rows of {len(conditions)} conditions: summarize one model and condition at a time.")
    counted = frame[scored(frame)]
    restarted = counted[multi_attempt(counted)]
    confidence = interval.get("confidence", intervals.CONFIDENCE)
    return rates(frame, cluster, **interval) | {
        "degraded_rate": degraded_rate(frame, cluster, **interval),
        "n_trials": len(frame),
        "n_unscored": len(frame) - len(counted),
        **{f"n_{outcome}": int((frame.outcome == outcome).sum()) for outcome in UNSCORED},
        "n_unverified_segments": int(frame.unverified.sum()),
        f"n_{cluster}s": frame[cluster].nunique(),
        "without_degraded": rates(frame[~degraded(frame)], cluster, **interval),
        "unclustered": {
            "multi_attempt_rate": intervals.unclustered(multi_attempt(counted), confidence=confidence),
            "improvement_rate": intervals.unclustered(improved(restarted), confidence=confidence),
            "esr_rate": intervals.unclustered(esr(counted), confidence=confidence),
        },
    }


def summaries(frame: pd.DataFrame, cluster: str = "latent", **interval) -> dict:
    """`{model: {condition: summarize(...)}}` for every model and condition of a table, in order of appearance."""
    result: dict = {}
    for (model, condition), rows in frame.groupby(["model", "condition"], sort=False):
        result.setdefault(model, {})[condition] = summarize(rows, cluster, **interval)
    return result


def latent_counts(drawn: Sequence[Latent]) -> dict:
    """Entry of one model in paper/numbers/latents.json: latents drawn, kept, and dropped by reason."""
    reasons = {"fires on a prompt", "label not concrete", "too rare", "too dense"}
    counts = {"drawn": len(drawn), "kept": sum(x.kept for x in drawn)}
    return counts | {reason.replace(" ", "_"): sum(x.reason == reason for x in drawn) for reason in sorted(reasons)}


def calibration_summary(thresholds: Sequence[Threshold], target: float) -> dict:
    """Entry of one model in paper/numbers/calibrate.json, without the score of the steered responses.

    Counts of latents, of converged ones and of reasons for the others; quartiles of the converged thresholds, in median
    residual norms.
    """
    boosts = pd.Series([t.boost for t in thresholds if t.converged], dtype=float)
    quartiles = {"lower_quartile": 0.25, "median": 0.5, "upper_quartile": 0.75}
    return {
        "n_latents": len(thresholds),
        "n_converged": len(boosts),
        "not_converged": dict(Counter(sorted(t.reason for t in thresholds if not t.converged))),
        "target": target,
        "boost": {name: float(boosts.quantile(q)) if len(boosts) else None for name, q in quartiles.items()},
    }
