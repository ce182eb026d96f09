"""Rates corrected for the errors of a judge, with responses that annotators read: prediction-powered inference.

Angelopoulos et al. 2023 (arXiv:2301.09633), with their later tuning of how far the judge counts (arXiv:2311.01453). A
judge errs more on one condition than on another, so each condition is corrected by its own annotated responses.
"""

from __future__ import annotations

import numpy as np

from esr.statistics import intervals
from esr.statistics.estimates import Estimate
from esr.statistics.intervals import CONFIDENCE, N_BOOTSTRAP, SEED, Values

MIN_ANNOTATED = 30  # responses; fewer show too little of the judge's errors
MIN_EVENTS = 5  # annotated events, and non-events; with fewer the bootstrap sees no error and its interval is too short


def prediction_powered_rate(
    judged: Values,
    annotated: Values,
    clusters: Values,
    *,
    confidence: float = CONFIDENCE,
    n_bootstrap: int = N_BOOTSTRAP,
    seed: int = SEED,
) -> Estimate:
    """Rate of events in one condition, had annotators read every response; its interval resamples clusters.

    judged: the judge's events. annotated: share of annotators that see the event (0-1), NaN where they did not read the
    response, which must be left to chance. All nulls, with the number of annotated responses, below `MIN_ANNOTATED`;
    the annotators' own rate where they see fewer than `MIN_EVENTS` events or non-events.
    """
    judged, annotated = np.asarray(judged, dtype=float), np.asarray(annotated, dtype=float)
    _, codes, count = intervals.clustered(judged, clusters)
    read = np.isfinite(annotated)
    n, events = int(read.sum()), float(annotated[read].sum())
    if n < MIN_ANNOTATED:
        return Estimate.of(None, None, None, n)
    if min(events, n - events) < MIN_EVENTS:
        shown = annotated[read] > 0.5
        return intervals.rate(shown, codes[read], confidence=confidence, n_bootstrap=n_bootstrap, seed=seed)
    weight = _weight(judged, annotated, read)
    errors = np.where(read, annotated - weight * judged, 0.0)

    def totals(values: np.ndarray) -> np.ndarray:
        return np.bincount(codes, weights=values, minlength=count)

    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=n_bootstrap)
    drawn = drawn[drawn @ totals(read.astype(float)) > 0]
    rates = weight * (drawn @ totals(judged)) / (drawn @ totals(np.ones(len(judged))))
    rates += (drawn @ totals(errors)) / (drawn @ totals(read.astype(float)))
    low, high = np.quantile(rates, intervals.tails(count, confidence))
    return Estimate.of(weight * judged.mean() + errors.sum() / n, max(0.0, low), min(1.0, high), n)


def _weight(judged: np.ndarray, annotated: np.ndarray, read: np.ndarray) -> float:
    """How far the judge counts, 0-1: the weight with the smallest variance of the corrected rate."""
    spread = float(np.var(judged, ddof=1))
    if spread == 0:
        return 0.0
    shared = float(np.cov(annotated[read], judged[read])[0, 1])
    return float(np.clip(shared / ((1 + read.sum() / len(judged)) * spread), 0, 1))
