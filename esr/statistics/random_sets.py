"""Effects of ablations on restart propensity, beside those of many random sets.

Tables have a row for each passage and a column for each condition: the passage's mean log-odds, or its mean probability
that a restart begins at a sentence end. `clusters` names each passage's steering latent.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import t

from esr.statistics import intervals
from esr.statistics.effects import relative_reduction
from esr.statistics.estimates import NOTHING, Estimate
from esr.statistics.intervals import Values, bootstrap_means, clustered

POWER = 0.8
BASE = "none"  # the condition without an edit


def effect(
    log_odds: pd.DataFrame, probability: pd.DataFrame, condition: str, clusters: Values, base: str = BASE, **interval
) -> dict[str, Estimate]:
    """log_odds: mean change. relative_reduction: of the mean probability, 0.25 a quarter below the base."""
    return {
        "log_odds": intervals.mean(log_odds[condition] - log_odds[base], clusters, **interval),
        "relative_reduction": relative_reduction(probability[base], probability[condition], clusters, **interval),
    }


def beside_random(
    log_odds: pd.DataFrame, probability: pd.DataFrame, condition: str, sets: Sequence[str], clusters: Values, **interval
) -> dict:
    """A condition's effect minus the mean effect of the conditions `sets`, and its rank among theirs.

    minus_random: of the changes of log-odds, paired by passage. reduction_beyond_random: relative reduction of the mean
    probability below the mean over random sets. rank_p: share of the condition and the sets whose mean change is at
    least as low, its smallest value 1 / (1 + sets); None without sets.
    """
    if not sets:
        return {"minus_random": NOTHING, "reduction_beyond_random": NOTHING, "rank_p": None, "n_sets": 0}
    sets = list(sets)
    means = log_odds[sets].mean(axis=0)
    n_as_extreme = int((means <= log_odds[condition].mean()).sum())
    others = probability[sets].mean(axis=1)
    return {
        "minus_random": intervals.mean(log_odds[condition] - log_odds[sets].mean(axis=1), clusters, **interval),
        "reduction_beyond_random": relative_reduction(others, probability[condition], clusters, **interval),
        "rank_p": (1 + n_as_extreme) / (1 + len(sets)),
        "n_sets": len(sets),
    }


def spread(log_odds: pd.DataFrame, sets: Sequence[str], base: str = BASE) -> dict[str, float | None]:
    """Mean effect of each random set on log-odds: over the sets their mean, sd, lowest and highest."""
    effects = (log_odds[list(sets)].mean(axis=0) - log_odds[base].mean()).to_numpy()
    if not len(effects):
        return dict.fromkeys(("mean", "sd", "min", "max"))
    sd = float(effects.std(ddof=1)) if len(effects) > 1 else None
    return {"mean": float(effects.mean()), "sd": sd, "min": float(effects.min()), "max": float(effects.max())}


def detectable_change(
    values: Values, clusters: Values, *, power: float = POWER, confidence: float, n_bootstrap: int, seed: int
) -> float | None:
    """Smallest mean of paired differences that a two-sided test detects with this power at their observed spread.

    Student's t of clusters - 1 degrees of freedom; the standard error is that between draws of whole clusters. None for
    fewer than two clusters.
    """
    numbers, codes, count = clustered(np.asarray(values, dtype=float), clusters)
    if count < 2:
        return None
    error = bootstrap_means(numbers, codes, count, n_bootstrap, seed).std() * np.sqrt(count / (count - 1))
    return float((t.ppf((1 + confidence) / 2, count - 1) + t.ppf(power, count - 1)) * error)


def detectable_reduction(a: Values, b: Values, clusters: Values, **options) -> float | None:
    """The same for the relative reduction of the mean of `b` below that of `a`, both of 0 or more; None where a is 0.

    The spread is that of the ratio of means, to first order.
    """
    one, other = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if not len(one) or one.mean() == 0:
        return None
    return detectable_change((other - other.mean() / one.mean() * one) / one.mean(), clusters, **options)


def adjusted_for(log_odds: pd.DataFrame, property_: pd.Series, condition: str, sets: Sequence[str]) -> float | None:
    """A condition's mean log-odds minus what a straight line through the random sets predicts at its property.

    property_: a number of each condition, such as the share of the steering vector that it takes away. None where the
    sets do not differ in it.
    """
    values = property_[list(sets)].to_numpy(dtype=float)
    if len(values) < 3 or np.ptp(values) == 0:
        return None
    slope, intercept = np.polyfit(values, log_odds[list(sets)].mean(axis=0).to_numpy(), 1)
    return float(log_odds[condition].mean() - (intercept + slope * property_[condition]))
