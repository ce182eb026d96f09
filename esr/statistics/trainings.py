"""Trainings of one recipe: the rates of each, and their mean with trainings as random effects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.stats import t

from esr.statistics import intervals, outcomes
from esr.statistics.estimates import NOTHING, Estimate
from esr.statistics.metrics import multi_attempt, scored
from esr.statistics.outcomes import OFF_TOPIC

LOOP = 3  # attempts: a response with as many restarts again and again
OUTCOMES = ("esr_rate", "placebo_rate", "esr_above_placebo", "net_esr_rate", "recovery_rate", "first_attempt_score")


def rates(frames: Mapping[str, pd.DataFrame], cuts: pd.DataFrame, cluster: str = "latent", **interval) -> dict:
    """What one training does, by the judge. frames: condition -> `metrics.table`; "steered" must be among them.

    restart_rate: of each condition. restarts_off_topic, restarts_on_topic: the same among responses whose first attempt
    is off topic and is not, which tells restarts that are called for from needless ones. (A first attempt that a
    restart cuts short scores lower, which favours the former.) loops: share of steered restarting responses with `LOOP`
    attempts or more.
    on_topic_after_restart: of those whose first attempt is off topic, the share whose last is not.
    """
    frames = {condition: frame[scored(frame)] for condition, frame in frames.items()}
    steered = frames["steered"]
    restarting = steered[multi_attempt(steered)]
    astray = restarting[restarting.first_score <= OFF_TOPIC]
    measured = outcomes.rates(steered, cuts, cluster, **interval)
    return {
        "restart_rate": {c: _restart_rate(f, cluster, interval) for c, f in frames.items()},
        "restarts_off_topic": {
            c: _restart_rate(f[f.first_score <= OFF_TOPIC], cluster, interval) for c, f in frames.items()
        },
        "restarts_on_topic": {
            c: _restart_rate(f[f.first_score > OFF_TOPIC], cluster, interval) for c, f in frames.items()
        },
        "on_topic_after_restart": intervals.rate(astray.last_score > OFF_TOPIC, astray[cluster], **interval),
        "loops": intervals.rate(restarting.attempts >= LOOP, restarting[cluster], **interval),
    } | {name: measured[name] for name in OUTCOMES}


def _restart_rate(frame: pd.DataFrame, cluster: str, interval: dict) -> Estimate:
    return intervals.rate(multi_attempt(frame), frame[cluster], **interval)


def over_trainings(trainings: Sequence[dict], confidence: float) -> dict:
    """Each number of `trainings` (dicts of the same keys, nested or Estimates) as the mean over them."""
    together = {}
    for name, first in trainings[0].items():
        each = [training[name] for training in trainings]
        combine = over_trainings if isinstance(first, dict) else mean_of
        together[name] = combine(each, confidence)
    return together


def mean_of(estimates: Sequence[Estimate], confidence: float) -> Estimate:
    """Mean over trainings and Student's interval of k - 1 degrees of freedom, whose spread is between trainings.

    The interval of a share may reach below 0 or above 1. n: trials of all. One training has no interval; unknown
    estimates are left out.
    """
    known = np.array([x.estimate for x in estimates if x.estimate is not None])
    if not len(known):
        return NOTHING
    n = sum(x.n for x in estimates)
    if len(known) == 1:
        return Estimate.of(known[0], None, None, n)
    half = t.ppf((1 + confidence) / 2, len(known) - 1) * known.std(ddof=1) / np.sqrt(len(known))
    return Estimate.of(known.mean(), known.mean() - half, known.mean() + half, n)
