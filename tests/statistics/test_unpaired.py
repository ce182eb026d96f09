"""Unpaired sets: point estimates by hand, and intervals that cover at the level they say."""

import numpy as np
import pytest

from esr.statistics.estimates import Estimate
from esr.statistics.unpaired import auc, difference_of_means, scaled_mean

FEW = {"n_bootstrap": 400, "seed": 1}


def coverage(draw, true, repeats=150):
    """Share of intervals that contain the true value, each of other data."""
    found = [draw(np.random.default_rng(i)).bounds for i in range(repeats)]
    return np.mean([low <= true <= high for low, high in found])


def test_estimates_by_hand():
    assert difference_of_means([1, 3], [5, 6, 7], [1, 2], [1, 2, 3], **FEW).estimate == 4
    assert scaled_mean([-1, 3], [2, 6], [1, 2], [1, 2], **FEW).estimate == 0.25
    # 3 against 1 and 3: above one, equal to the other; 2 against 1 and 3: above one
    assert auc([3, 2, 1, 3], [1, 1, 0, 0], [1, 2, 1, 2], [0, 0, 0, 0], **FEW).estimate == 2.5 / 4
    # only within groups: 3 against 1, 2 against 3
    assert auc([3, 2, 1, 3], [1, 1, 0, 0], [1, 2, 1, 2], [0, 1, 0, 1], **FEW).estimate == 0.5


def test_nothing_to_estimate_from_and_nothing_that_varies():
    assert difference_of_means([], [1.0], [], [2], **FEW) == Estimate(None, None, None, 1)
    assert scaled_mean([1.0], [0.0], [1], [1], **FEW) == Estimate(None, None, None, 1)
    assert auc([1.0, 2.0], [1, 1], [1, 2], [0, 0], **FEW) == Estimate(None, None, None, 2)
    assert difference_of_means([1, 1], [2, 2], [1, 2], [1, 2], **FEW) == Estimate(1, None, None, 4)
    assert auc([2, 2, 1, 1], [1, 1, 0, 0], [1, 2, 1, 2], [0] * 4, **FEW) == Estimate(1, None, None, 4)
    with pytest.raises(ValueError, match="must be above 0"):
        scaled_mean([1.0], [-1.0], [1], [1])


def test_what_a_cluster_adds_to_both_sets_does_not_widen_their_difference():
    rng = np.random.default_rng(0)
    latents = np.repeat(np.arange(20), 5)
    shared = rng.normal(0, 10, 20)[latents]
    a, b = shared + rng.normal(0, 1, 100), shared + 1 + rng.normal(0, 1, 100)
    together = difference_of_means(a, b, latents, latents, **FEW)
    apart = difference_of_means(a, b, latents, latents + 100, **FEW)
    assert together.low > 0.5 and together.high < 1.5
    assert apart.low < -3 and apart.high > 5


def test_intervals_cover():
    latents = np.repeat(np.arange(25), 4)

    def values(rng, mean):
        return mean + rng.normal(0, 1, 25)[latents] + rng.normal(0, 1, 100)

    def difference(rng):
        return difference_of_means(values(rng, 0), values(rng, 0.5), latents, latents, **FEW)

    def scaled(rng):
        return scaled_mean(values(rng, 1), values(rng, 4), latents, latents, **FEW)

    def area(rng):
        events = np.tile([True, False], 50)
        return auc(values(rng, 0), events, latents, np.zeros(100), **FEW)

    assert coverage(difference, 0.5) > 0.9
    assert coverage(scaled, 0.25) > 0.9
    assert coverage(area, 0.5) > 0.9
