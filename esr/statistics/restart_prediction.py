"""How well restart propensity predicts that sampled responses restart: AUC, and calibration of predicted rates.

A table has a row for each sentence end: response, latent, log_odds, sampled (predicted probability that a restart
begins there), position (response tokens before it), score (of the first attempt), restarts (whether one begins there)
and restarting (whether the response restarts anywhere).
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from esr.statistics import intervals
from esr.statistics.estimates import NOTHING, Estimate
from esr.statistics.unpaired import auc

FOLDS = 5
BINS = 5
PLACE = ["position", "squared", "score"]


def response_auc(ends: pd.DataFrame, **interval) -> dict[str, Estimate]:
    """AUC for picking responses that restart, by their mean log-odds at the ends before the restart, and by that at
    the first end alone, where all responses are at about the same place. score: by the first attempt's score alone."""
    groups = ends.groupby("response", sort=False)
    rows = groups.agg(
        mean=("log_odds", "mean"), first=("log_odds", "first"), score=("score", "first"), latent=("latent", "first"),
        restarting=("restarting", "first"),
    )  # fmt: skip
    same = np.zeros(len(rows))
    columns = {"mean": rows["mean"], "first_end": rows["first"], "score": -rows["score"]}
    return {name: auc(values, rows.restarting, rows.latent, same, **interval) for name, values in columns.items()}


def end_auc(ends: pd.DataFrame, **interval) -> dict[str, Estimate]:
    """AUC for picking the sentence ends at which a restart begins: by propensity; by position and score; by all three.

    The last two are logistic models, fitted on other latents than they are measured on; nothing where ends of one kind
    or too few latents are there. Score is the judge's, of the first attempt.
    """
    frame = ends.assign(squared=ends.position**2)
    events, same = frame.restarts.to_numpy(bool), np.zeros(len(frame))
    found = {"propensity": auc(frame.log_odds, events, frame.latent, same, **interval)}
    folds = min(FOLDS, frame.latent[frame.restarts].nunique(), frame.latent[~frame.restarts].nunique())
    for name, columns in (("position_and_score", PLACE), ("all", [*PLACE, "log_odds"])):
        found[name] = NOTHING
        if folds >= 2 and not events.all():
            try:
                model = make_pipeline(StandardScaler(), LogisticRegression())
                split = GroupKFold(folds)
                values = cross_val_predict(
                    model, frame[columns], events, groups=frame.latent, cv=split, method="decision_function"
                )
            except ValueError:  # a fold without an event
                continue
            found[name] = auc(values, events, frame.latent, same, **interval)
    return found


def calibration(ends: pd.DataFrame, **interval) -> dict:
    """Predicted rates of restarts at sentence ends beside counted ones: of all, and in bins of equal size by
    prediction."""
    order = ends.sort_values("sampled", kind="stable")
    bins = [order.iloc[part] for part in np.array_split(np.arange(len(order)), BINS) if len(part)]
    at_ends = [
        {"predicted": float(part.sampled.mean()), "counted": intervals.rate(part.restarts, part.latent, **interval)}
        for part in bins
    ]
    return {
        "predicted": float(ends.sampled.mean()),
        "counted": intervals.rate(ends.restarts, ends.latent, **interval),
        "bins": at_ends,
    }
