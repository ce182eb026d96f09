"""Two sets of clustered values that do not come in pairs: differences of means, and AUC.

Clusters that both sets share are drawn together: a latent that is drawn brings its values of either set. Intervals are
cluster bootstrap percentiles, null where nothing varies; all but `n` is null where a set is empty.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from esr.statistics.estimates import Estimate
from esr.statistics.intervals import (
    CONFIDENCE,
    N_BOOTSTRAP,
    SEED,
    Values,
    bootstrap_means,
    clustered,
    tails,
)


def difference_of_means(
    a: Values,
    b: Values,
    a_clusters: Values,
    b_clusters: Values,
    *,
    confidence: float = CONFIDENCE,
    n_bootstrap: int = N_BOOTSTRAP,
    seed: int = SEED,
) -> Estimate:
    """mean(b) - mean(a); `n` counts both. A draw without any value of a set is left out."""
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    n = len(a) + len(b)
    if not len(a) or not len(b):
        return Estimate.of(None, None, None, n)
    names = np.unique(np.concatenate([a_clusters, b_clusters]))
    codes = [np.searchsorted(names, np.asarray(clusters)) for clusters in (a_clusters, b_clusters)]
    with np.errstate(invalid="ignore"):
        means = [bootstrap_means(x, code, len(names), n_bootstrap, seed) for x, code in zip((a, b), codes, strict=True)]
    return _with_interval(b.mean() - a.mean(), means[1] - means[0], len(names), confidence, n)


def scaled_mean(
    values: Values,
    scale: Values,
    clusters: Values,
    scale_clusters: Values,
    *,
    confidence: float = CONFIDENCE,
    n_bootstrap: int = N_BOOTSTRAP,
    seed: int = SEED,
) -> Estimate:
    """mean(values) / mean(scale): `values` of either sign, e.g. differences, in units of a mean above 0.

    The two sets are drawn separately; `n` counts `values`. Raises ValueError when the mean of `scale` is negative.
    """
    values, scale = np.asarray(values, dtype=float), np.asarray(scale, dtype=float)
    if not len(values) or not scale.any():
        return Estimate.of(None, None, None, len(values))
    if scale.mean() < 0:
        raise ValueError(f"The mean to scale by is {scale.mean():g}: it must be above 0.")
    over, under = clustered(values, clusters), clustered(scale, scale_clusters)
    drawn = bootstrap_means(*over, n_bootstrap, seed) / bootstrap_means(*under, n_bootstrap, seed + 1)
    return _with_interval(values.mean() / scale.mean(), drawn, min(over[2], under[2]), confidence, len(values))


def auc(
    values: Values,
    events: Values,
    clusters: Values,
    groups: Values,
    *,
    confidence: float = CONFIDENCE,
    n_bootstrap: int = N_BOOTSTRAP,
    seed: int = SEED,
) -> Estimate:
    """Probability that a value with the event lies above one without it in the same group; ties count half."""
    values, events, groups = np.asarray(values, dtype=float), np.asarray(events, dtype=bool), np.asarray(groups)
    _, codes, count = clustered(values, clusters)
    if events.all() or not events.any():
        return Estimate.of(None, None, None, len(values))
    one, other = values[events][:, None], values[~events]
    same = groups[events][:, None] == groups[~events]
    above = ((one > other) + 0.5 * (one == other)) * same
    member = (codes == np.arange(count)[:, None]).astype(float)
    wins, pairs = (member[:, events] @ each @ member[:, ~events].T for each in (above, same))
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=n_bootstrap)
    with np.errstate(invalid="ignore"):
        areas = ((drawn @ wins) * drawn).sum(1) / ((drawn @ pairs) * drawn).sum(1)
    return _with_interval(above.sum() / same.sum(), areas, count, confidence, len(values))


def _with_interval(
    estimate: float, drawn: Float[np.ndarray, " n_bootstrap"], count: int, confidence: float, n: int
) -> Estimate:
    drawn = drawn[np.isfinite(drawn)]
    if count == 1 or not len(drawn) or np.ptp(drawn) == 0:
        return Estimate.of(estimate, None, None, n)
    low, high = np.quantile(drawn, tails(count, confidence))
    return Estimate.of(estimate, low, high, n)
