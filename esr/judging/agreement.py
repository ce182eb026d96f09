"""Agreement between judges, and conclusions that hold under every judge (experiment 7).

Judges are compared in pairs, on `metrics.table` frames of the same trials, over trials that both scored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import combinations

import numpy as np
import pandas as pd
from scipy.stats import spearmanr
from sklearn.metrics import cohen_kappa_score

from esr.statistics import intervals, metrics

SHOWN = ["attempts", "first_score", "last_score"]


def pairwise(frames: Mapping[str, pd.DataFrame], cluster: str = "latent", **interval) -> dict:
    """`{"judge / other judge": compare(...)}` for each pair of judges. Raises ValueError for fewer than two."""
    if len(frames) < 2:
        raise ValueError(f"Agreement needs two judges or more; there is {', '.join(frames) or 'none'}.")
    return {
        f"{one} / {other}": compare(frames[one], frames[other], cluster, **interval)
        for one, other in combinations(frames, 2)
    }


def compare(one: pd.DataFrame, other: pd.DataFrame, cluster: str = "latent", **interval) -> dict:
    """Agreement of two judges; rates are clustered `Estimate`s with `interval` as in `metrics.rates`.

    n_trials: judged by either. n_compared: scored by both. multi_attempt_agreement: share with the same verdict on
    whether the response restarts. multi_attempt_kappa: Cohen's kappa, None when all verdicts are equal.
    direction_agreement: share, of responses that restart for both, with the same verdict on whether the last attempt
    beats the first. first_score_spearman: rank correlation of first-attempt scores, None when one judge's do not vary.
    """
    both = _together(one, other)
    here, there = _restarts(both)
    restarted = both[here & there]
    return {
        "n_trials": len(one[metrics.KEY].merge(other[metrics.KEY], how="outer")),
        "n_compared": len(both),
        "multi_attempt_agreement": intervals.rate(here == there, both[cluster], **interval),
        "multi_attempt_kappa": _kappa(here, there),
        "direction_agreement": intervals.rate(_same_direction(restarted), restarted[cluster], **interval),
        "first_score_spearman": _spearman(both.first_score_one, both.first_score_other),
    }


def disagreements(one: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """Trials on which two judges differ: `metrics.KEY`, dispute, and `SHOWN` of each judge (`_one`, `_other`).

    dispute: "multi-attempt" or "direction".
    """
    both = _together(one, other)
    here, there = _restarts(both)
    turned = here & there & ~_same_direction(both)
    dispute = pd.Series(np.select([here != there, turned], ["multi-attempt", "direction"], ""), both.index, dtype=str)
    columns = [*metrics.KEY, "dispute", *(f"{name}_{judge}" for name in SHOWN for judge in ("one", "other"))]
    return both.assign(dispute=dispute).loc[dispute != "", columns].reset_index(drop=True)


def surviving(summaries: Mapping[str, dict], conclusions: Mapping[str, Callable[[dict], bool | None]]) -> dict:
    """Conclusions under each judge: `{conclusion: {"holds": {judge: true, false or null}, "survives": ...}}`.

    summaries: `metrics.summaries` of each judge. conclusions: functions of a summary; None without its numbers.
    A conclusion survives when it holds under every judge. Raises ValueError without a judge: everything would survive.
    """
    if not summaries:
        raise ValueError("No judge's summary is given: a conclusion must hold with at least one.")
    result = {}
    for name, conclusion in conclusions.items():
        found = {judge: conclusion(summary) for judge, summary in summaries.items()}
        holds = {judge: None if value is None else bool(value) for judge, value in found.items()}
        result[name] = {"holds": holds, "survives": all(value is True for value in holds.values())}
    return result


def higher(name: str, one: str, other: str) -> Callable[[dict], bool | None]:
    """A conclusion for `surviving`: the estimate of `name` is higher in condition `one` than in `other`."""

    def conclusion(summary: dict) -> bool | None:
        here, there = (summary[condition][name].estimate for condition in (one, other))
        return None if here is None or there is None else here > there

    return conclusion


def above(name: str, condition: str, value: float) -> Callable[[dict], bool | None]:
    """A conclusion for `surviving`: the estimate of `name` in `condition` is above `value`."""

    def conclusion(summary: dict) -> bool | None:
        estimate = summary[condition][name].estimate
        return None if estimate is None else estimate > value

    return conclusion


CONCLUSIONS = {  # written before the numbers
    "steered responses restart more often": higher("multi_attempt_rate", "steered", "unsteered"),
    "first attempts are worse under steering": higher("first_attempt_score", "unsteered", "steered"),
    "most restarts under steering improve": above("improvement_rate", "steered", 0.5),
}


def _together(one: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """Trials that both judges scored, one row each, with `SHOWN` of both judges."""
    sides = [frame.loc[metrics.scored(frame), [*metrics.KEY, *SHOWN]] for frame in (one, other)]
    both = sides[0].merge(sides[1], on=metrics.KEY, suffixes=("_one", "_other"), validate="one_to_one")
    return both.sort_values(metrics.KEY, ignore_index=True)


def _side(both: pd.DataFrame, judge: str) -> pd.DataFrame:
    return pd.DataFrame({name: both[f"{name}_{judge}"] for name in SHOWN})


def _restarts(both: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    return metrics.multi_attempt(_side(both, "one")), metrics.multi_attempt(_side(both, "other"))


def _same_direction(both: pd.DataFrame) -> pd.Series:
    return metrics.improved(_side(both, "one")) == metrics.improved(_side(both, "other"))


def _kappa(here: pd.Series, there: pd.Series) -> float | None:
    if len({*here, *there}) < 2:  # kappa is 0 / 0
        return None
    return float(cohen_kappa_score(here, there))


def _spearman(here: pd.Series, there: pd.Series) -> float | None:
    if min(here.nunique(), there.nunique()) < 2:
        return None
    value = float(spearmanr(here, there).statistic)
    return value if math.isfinite(value) else None
