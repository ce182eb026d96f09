"""Bisection against a known score curve: it finds the threshold although scores are noisy."""

import numpy as np
import pytest

from esr.config.registry import Boost
from esr.experiments.calibration import Bisection

BOUNDS = Boost(min=0.0, max=1.2, prior_mean=0.45, prior_sd=0.2)


def find(true, noise, n_queries, seed=0, bounds=BOUNDS):
    """Scores fall from 90 to 0 along a logistic curve that passes the target of 30 at `true`."""
    rng = np.random.default_rng(seed)
    bisection = Bisection(bounds, target=30.0)
    offset = np.log(90 / 30 - 1)
    for _ in range(n_queries):
        boost = bisection.median
        score = 90 / (1 + np.exp((boost - true) / 0.05 + offset)) + rng.normal(0, noise)
        bisection.update(boost, float(np.clip(score, 0, 100)), 4)
    return bisection


@pytest.mark.parametrize("true", [0.2, 0.45, 0.7, 1.0])
def test_finds_the_threshold(true):
    errors = [find(true, noise=8, n_queries=12, seed=s).median - true for s in range(20)]
    assert abs(np.mean(errors)) < 0.05
    assert np.quantile(np.abs(errors), 0.8) < 0.1


def test_bounds_widen_when_hit_instead_of_faking_a_threshold():
    narrow = Boost(min=0.0, max=0.5, prior_mean=0.3, prior_sd=0.2)
    bisection = find(0.9, noise=3, n_queries=16, bounds=narrow)
    assert bisection.widened > 0
    assert bisection.median == pytest.approx(0.9, abs=0.12)


def test_a_latent_whose_score_never_falls_is_flagged():
    bisection = Bisection(BOUNDS, target=30.0)
    for _ in range(8):
        bisection.update(bisection.median, 95.0, 4)
    result = bisection.threshold(7, "bread", max_sd_ratio=0.3, tolerance=20.0)
    assert not result.converged and result.reason in ("posterior too wide", "score far from the target")


def test_belief_stays_a_distribution_and_narrows():
    bisection = find(0.5, noise=5, n_queries=10)
    assert bisection.belief.sum() == pytest.approx(1.0)
    assert bisection.sd < 0.2 < BOUNDS.prior_sd + 1e-9
    assert len(bisection.queries) == 10


def test_scores_outside_the_scale_are_refused():
    with pytest.raises(ValueError, match="0 to 100"):
        Bisection(BOUNDS, 30.0).update(0.4, 130.0, 4)


def test_a_prior_cut_off_by_its_bounds_does_not_count_as_narrowed():
    """Without one query a latent has not converged, however wide the prior is beside the bounds."""
    wide = Bisection(Boost(min=0.0, max=2.0, prior_mean=1.0, prior_sd=1.0), target=30.0)
    assert wide.sd < 0.6 * wide.prior[1]
    wide.update(1.0, 30.0, 1)
    assert wide.threshold(7, "bread", max_sd_ratio=0.6, tolerance=20.0).reason == "posterior too wide"
