"""A prediction-powered rate is right where the judge is wrong, covers as promised, and is null without annotations."""

import numpy as np
import pytest

from esr.statistics.prediction_powered import MIN_ANNOTATED, prediction_powered_rate


def condition(rng, n=600, clusters=40, rate=0.3, miss=0.4, false=0.1, n_read=150, spread=0.0):
    """Judged events, annotated shares and clusters of a condition whose judge misses and invents."""
    cluster = np.repeat(np.arange(clusters), n // clusters)
    chance = np.clip(rate + spread * rng.standard_normal(clusters), 0, 1)[cluster]
    true = rng.random(n) < chance
    judged = np.where(true, rng.random(n) > miss, rng.random(n) < false)
    annotated = np.full(n, np.nan)
    read = rng.choice(n, n_read, replace=False)
    annotated[read] = true[read]
    return judged, annotated, cluster


def test_a_judge_that_misses_and_invents_is_made_up_for():
    rng = np.random.default_rng(1)
    drawn = [condition(rng) for _ in range(60)]
    found = [prediction_powered_rate(*one, n_bootstrap=300) for one in drawn]
    assert np.mean([f.estimate for f in found]) == pytest.approx(0.3, abs=0.015)
    assert np.mean([judged.mean() for judged, *_ in drawn]) < 0.27  # what the judge says
    covered = np.mean([f.low <= 0.3 <= f.high for f in found])
    assert covered >= 0.85


def test_a_good_judge_narrows_the_interval_and_a_useless_one_does_not_widen_it():
    rng = np.random.default_rng(2)

    def width(**judge):
        found = [prediction_powered_rate(*condition(rng, **judge), n_bootstrap=300) for _ in range(30)]
        return np.mean([f.high - f.low for f in found])

    alone = width(miss=0.5, false=0.5)  # its verdicts are independent of the truth
    assert width(miss=0.02, false=0.02) < 0.75 * alone
    n = 150
    assert alone == pytest.approx(2 * 1.96 * np.sqrt(0.3 * 0.7 / n), rel=0.15)


def test_conditions_do_not_share_the_errors_of_their_judge():
    """One judge that errs in one condition alone: a shared correction would find a difference where there is none."""
    rng = np.random.default_rng(3)
    pairs = [(condition(rng, miss=0.6, false=0.0), condition(rng, miss=0.0, false=0.0)) for _ in range(30)]
    differences = [
        prediction_powered_rate(*one, n_bootstrap=100).estimate
        - prediction_powered_rate(*other, n_bootstrap=100).estimate
        for one, other in pairs
    ]
    assert np.mean(differences) == pytest.approx(0, abs=0.02)
    assert np.mean([one[0].mean() - other[0].mean() for one, other in pairs]) < -0.15


def test_few_annotations_change_nothing_and_rare_events_give_the_annotators_rate():
    rng = np.random.default_rng(4)
    judged, annotated, cluster = condition(rng, n_read=MIN_ANNOTATED - 1)
    found = prediction_powered_rate(judged, annotated, cluster)
    assert found.estimate is None and found.n == MIN_ANNOTATED - 1
    judged, annotated, cluster = condition(rng, rate=0.0, n_read=60)
    found = prediction_powered_rate(judged, annotated, cluster)
    assert found.estimate == 0 and 0.03 < found.high < 0.12 and found.n == 60
