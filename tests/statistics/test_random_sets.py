"""A planted effect stands out from random sets; none does not; what is detectable is about what is detected."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from esr.statistics import random_sets, restart_prediction

INTERVAL = {"confidence": 0.95, "n_bootstrap": 800, "seed": 1}
SETS = [f"random_{i}" for i in range(1, 41)]
CLUSTERS = np.repeat(np.arange(20), 3)


def tables(shift, seed=0):
    """60 passages under no edit, 40 random sets, and detectors that move log-odds by `shift`."""
    draw = np.random.default_rng(seed)
    base = draw.normal(-4, 1, size=60)
    columns = {name: base + draw.normal(0, 0.1, size=60) for name in SETS}
    columns |= {"none": base, "detectors": base + shift + draw.normal(0, 0.1, size=60)}
    log_odds = pd.DataFrame(columns)
    return log_odds, expit(log_odds)


def test_a_planted_effect_is_found_beside_random_sets():
    log_odds, probability = tables(-0.3)
    effect = random_sets.effect(log_odds, probability, "detectors", CLUSTERS, **INTERVAL)
    beside = random_sets.beside_random(log_odds, probability, "detectors", SETS, CLUSTERS, **INTERVAL)
    assert effect["log_odds"].estimate == pytest.approx(-0.3, abs=0.05) and beside["minus_random"].high < -0.2
    assert effect["relative_reduction"].estimate == pytest.approx(1 - np.exp(-0.3), abs=0.06)
    assert beside["rank_p"] == 1 / 41 and beside["reduction_beyond_random"].low > 0.1
    assert random_sets.spread(log_odds, SETS)["max"] < 0.1


def test_no_effect_is_one_of_the_sets():
    """In most of twenty draws: intervals are at 95 %."""
    found = [
        random_sets.beside_random(*tables(0.0, seed), "detectors", SETS, CLUSTERS, **INTERVAL) for seed in range(20)
    ]
    assert sum(row["minus_random"].low < 0 < row["minus_random"].high for row in found) >= 17
    assert 0.3 < np.mean([row["rank_p"] for row in found]) < 0.7
    log_odds, probability = tables(0.0)
    nothing = random_sets.beside_random(log_odds, probability, "detectors", [], CLUSTERS, **INTERVAL)
    assert nothing["rank_p"] is None and nothing["minus_random"].estimate is None


def test_the_detectable_change_is_detected_four_times_in_five():
    draw = np.random.default_rng(5)
    values = draw.normal(size=(400, 60))
    change = np.mean([random_sets.detectable_change(v, CLUSTERS, **INTERVAL) for v in values[:20]])
    found = 0
    for row in values[20:220]:
        interval = random_sets.intervals.mean(row + change, CLUSTERS, **INTERVAL)
        found += interval.low > 0
    assert 0.7 < found / 200 < 0.9
    assert random_sets.detectable_change([1.0, 2.0], [3, 3], **INTERVAL) is None
    assert random_sets.detectable_reduction(np.zeros(4), np.zeros(4), [1, 1, 2, 2], **INTERVAL) is None


def test_an_effect_that_a_property_explains_is_adjusted_away():
    """Sets that take more of the vector away lower the log-odds in proportion, detectors like any."""
    share = pd.Series({name: i / 40 for i, name in enumerate(SETS)} | {"detectors": 1.2})
    log_odds = pd.DataFrame({name: np.full(60, -2.0) * share[name] for name in share.index})
    assert random_sets.adjusted_for(log_odds, share, "detectors", SETS) == pytest.approx(0, abs=1e-9)
    log_odds["detectors"] -= 0.5
    assert random_sets.adjusted_for(log_odds, share, "detectors", SETS) == pytest.approx(-0.5)
    assert random_sets.adjusted_for(log_odds, 0 * share, "detectors", SETS) is None


def test_propensity_is_compared_with_position_and_score():
    """Restarts are drawn from the propensity; position and score say nothing."""
    draw = np.random.default_rng(3)
    rows = []
    for response in range(200):
        for k in range(4):
            log_odds = draw.normal(-2.5, 1.5)
            restarts = draw.random() < expit(log_odds)
            rows.append((response, response % 20, log_odds, expit(log_odds), 10 * k, 50.0, restarts))
            if restarts:
                break
    names = ["response", "latent", "log_odds", "sampled", "position", "score", "restarts"]
    ends = pd.DataFrame(rows, columns=names)
    ends["restarting"] = ends.groupby("response").restarts.transform("any")
    areas = restart_prediction.end_auc(ends, **INTERVAL)
    assert areas["propensity"].low > 0.7 and areas["position_and_score"].low < 0.5 < areas["all"].low
    assert restart_prediction.response_auc(ends, **INTERVAL)["mean"].low > 0.6
    found = restart_prediction.calibration(ends, **INTERVAL)
    assert found["counted"].low < found["predicted"] < found["counted"].high
    assert [b["predicted"] for b in found["bins"]] == sorted(b["predicted"] for b in found["bins"])
    quiet = restart_prediction.end_auc(ends.assign(restarts=False), **INTERVAL)
    assert quiet["propensity"].estimate is None and quiet["all"].estimate is None
