"""Outcomes beside the paper's, each with what it is compared with: placebo, net, and recovery of the whole response.

`frame` is a table of `metrics.table`, `cuts` that of `cut_table`. Rates are over all scored trials, as the paper's.
Every experiment takes its rates from `rates`, so that none stands without its placebo.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from esr.statistics import intervals, metrics
from esr.statistics.estimates import Estimate
from esr.statistics.metrics import KEY, esr, multi_attempt, scored
from esr.storage.records import Judgement

MARGIN = 10.0  # score points: smaller changes count neither as better nor as worse
OFF_TOPIC, RISE = 40.0, 30.0  # score of a first third that is off topic, at most; of the last above it, at least
CALIPER = 10.0  # score points between a restart's first attempt and the first part of its placebo
NEAREST = 10  # placebos of a restart where fewer lie within `CALIPER`
GROUP = ["model", "condition"]


def cut_table(judgements: Iterable[Judgement]) -> pd.DataFrame:
    """One row per placebo cut: the keys of its response, its place (0 beginning, 1 end) and the scores beside it."""
    rows = [
        {name: getattr(judgement, name) for name in KEY}
        | {"place": cut.at / judgement.attempts[0].end, "before": cut.before, "after": cut.after}
        for judgement in judgements for cut in judgement.cuts
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=[*KEY, "place", "before", "after"])


def improved_by_margin(frame: pd.DataFrame) -> pd.Series:
    return multi_attempt(frame) & (frame.last_score > frame.first_score + MARGIN)


def worsened_by_margin(frame: pd.DataFrame) -> pd.Series:
    return multi_attempt(frame) & (frame.last_score < frame.first_score - MARGIN)


def recovered(frame: pd.DataFrame) -> pd.Series:
    """The first third is off topic and the last is nearer to it, whether the response says so or not.

    A third names the subject less than a whole response and scores lower: on labelled responses a rise marks a recovery
    better than any score of the last third (paper/LOG.md).
    """
    return (frame.first_third <= OFF_TOPIC) & (frame.last_third - frame.first_third >= RISE)


def placebo(frame: pd.DataFrame, cuts: pd.DataFrame) -> pd.Series:
    """For each trial that restarts the share of its placebos that improve; 0 for the others.

    A placebo is a response of the same model and condition that never restarts, cut where the trial has its first and
    its last restart. Its first part scores within `CALIPER` of the trial's first attempt, or is among the `NEAREST`.
    Without such responses the share is NaN: there is nothing to compare with.
    """
    shares = pd.Series(0.0, index=frame.index)
    pools = dict(list(_wide(cuts).groupby(level=GROUP))) if len(cuts) else {}
    for index, trial in frame[multi_attempt(frame)].iterrows():
        pool = pools.get((trial.model, trial.condition))
        shares[index] = np.nan if pool is None else _improving_share(pool, trial)
    return shares


def _wide(cuts: pd.DataFrame) -> pd.DataFrame:
    """One row per response: arrays of places and scores."""
    return cuts.groupby(KEY, sort=False)[["place", "before", "after"]].agg(list)


def _improving_share(pool: pd.DataFrame, trial: pd.Series) -> float:
    pairs = [
        (row.before[_nearest(row.place, trial.first_restart)], row.after[_nearest(row.place, trial.last_restart)])
        for row in pool.itertuples()
    ]
    before, after = np.array(pairs).T
    distance = np.abs(before - trial.first_score)
    chosen = distance <= max(CALIPER, np.sort(distance)[: min(NEAREST, len(distance))].max())
    return float((after > before)[chosen].mean())


def _nearest(places: list[float], place: float) -> int:
    return int(np.abs(np.array(places) - place).argmin())


def above_placebo(frame: pd.DataFrame, cuts: pd.DataFrame) -> pd.Series:
    """For each trial whether it restarts and improves, 1 or 0, minus its `placebo`."""
    return esr(frame) - placebo(frame, cuts)


def rates(frame: pd.DataFrame, cuts: pd.DataFrame, cluster: str = "latent", **interval) -> dict[str, Estimate]:
    """The paper's four metrics (`metrics.rates`) and the outcomes beside them (`summarize`)."""
    return metrics.rates(frame, cluster, **interval) | summarize(frame, cuts, cluster, **interval)


def summarize(frame: pd.DataFrame, cuts: pd.DataFrame, cluster: str = "latent", **interval) -> dict[str, Estimate]:
    """Of one model and condition, over scored trials; intervals resample clusters.

    placebo_rate: the ESR rate of the same restarts were they arbitrary cuts, same formula and denominator.
    esr_above_placebo: the ESR rate minus that. net_esr_rate: restarts that improve by more than `MARGIN` minus those
    that worsen by as much. recovery_rate: whole responses that recover, silent_recovery_rate: those without a restart.
    """
    frame = frame[scored(frame)]
    clusters, share = frame[cluster], placebo(frame, cuts)
    known = share.notna()
    net = improved_by_margin(frame).astype(float) - worsened_by_margin(frame)
    silent = recovered(frame) & ~multi_attempt(frame)
    return {
        "placebo_rate": intervals.mean(share[known], clusters[known], **interval),
        "esr_above_placebo": intervals.mean((esr(frame) - share)[known], clusters[known], **interval),
        "net_esr_rate": intervals.mean(net, clusters, **interval),
        "recovery_rate": intervals.rate(recovered(frame), clusters, **interval),
        "silent_recovery_rate": intervals.rate(silent, clusters, **interval),
    }
