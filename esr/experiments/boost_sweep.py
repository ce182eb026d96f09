"""Experiment 2: whether restarts are more frequent at middle boosts than at both ends of the sweep."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from esr.statistics import intervals, metrics
from esr.statistics.estimates import Estimate


def middle_minus_ends(frame: pd.DataFrame, conditions: Sequence[str], **interval) -> Estimate:
    """Multi-attempt rate at the two middle boosts minus that at both ends, clustered by latent.

    frame: metrics.table of the trials; conditions: one for each boost, from the weakest on. An odd number of boosts has
    one middle. Compares trials of the same latent, prompt and seed that are scored at all of these boosts; `n` counts
    them.
    """
    last = len(conditions) - 1
    middle, ends = [conditions[last // 2], conditions[(last + 1) // 2]], [conditions[0], conditions[last]]
    scored = frame[metrics.scored(frame)]
    trials = scored.assign(restarts=metrics.multi_attempt(scored).astype(float)).pivot(
        index=["latent", "prompt_id", "seed"], columns="condition", values="restarts"
    )
    trials = trials.reindex(columns=conditions).dropna(subset=[*middle, *ends])
    values = trials[middle].mean(axis=1) - trials[ends].mean(axis=1)
    return intervals.mean(values, values.index.get_level_values("latent"), **interval)
