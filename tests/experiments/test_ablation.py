"""Effects of ablations on hand-made paired trials, and verdicts that follow the rules written before."""

import numpy as np
import pandas as pd
import pytest

from esr.experiments import ablation
from esr.statistics import metrics
from esr.statistics.effects import paired_difference
from esr.statistics.estimates import Estimate

INTERVAL = {"confidence": 0.95, "n_bootstrap": 500, "seed": 0}
PUBLISHED = {"multi_attempt_reduction": 0.25, "esr_reduction": 0.27}


def trials(restarts, improved=None, latents=30):
    """One scored row a trial, `restarts` saying which restart; those of them that improve."""
    restarts = np.asarray(restarts, dtype=bool)
    improved = restarts if improved is None else np.asarray(improved)
    n = len(restarts)
    return pd.DataFrame(
        {
            "model": "tiny", "condition": "c", "latent": np.arange(n) % latents, "prompt_id": "p", "seed": range(n),
            "outcome": "scored", "attempts": 1 + restarts, "first_score": 30.0,
            "last_score": 30.0 + 20 * improved, "degraded": False, "unverified": 0,
        },
        columns=metrics.COLUMNS,
    )  # fmt: skip


def reduced(n=600, rate=0.3, kept=0.5):
    """A baseline that restarts at `rate`, and a condition that loses all but `kept` of its restarts."""
    draw = np.random.default_rng(0)
    before = draw.random(n) < rate
    return trials(before), trials(before & (draw.random(n) < kept))


def test_effects_have_every_figure_for_both_outcomes():
    one, other = reduced()
    figures = ablation.ablation_effects(one, other, **INTERVAL)
    a, b = metrics.multi_attempt(one), metrics.multi_attempt(other)
    assert figures["difference"] == paired_difference(a.to_numpy(), b.to_numpy(), one.latent, **INTERVAL)
    assert figures["relative_reduction"].estimate == pytest.approx(1 - b.mean() / a.mean())
    assert figures["p_value"] < 1e-6 and figures["gee"].odds_ratio < 1 and figures["n_pairs"] == 600
    assert figures["unclustered_difference"].estimate == pytest.approx(figures["difference"].estimate)
    for name in ("difference", "relative_reduction", "p_value", "gee", "unclustered_difference"):
        assert f"esr_{name}" in figures
    assert figures["score_difference"].estimate == 0


def test_esr_is_compared_by_itself():
    restarts = np.arange(200) % 4 == 0
    one, other = trials(restarts), trials(restarts, improved=restarts & (np.arange(200) % 8 == 0))
    figures = ablation.ablation_effects(one, other, **INTERVAL)
    assert figures["difference"].estimate == 0 and figures["p_value"] == 1
    assert figures["esr_relative_reduction"].estimate == pytest.approx(0.5) and figures["esr_p_value"] < 0.001


def decide(detectors, random):
    pairs = {"detectors": detectors, "held_out": detectors, "random": random}
    return ablation.decide({k: ablation.ablation_effects(*v, **INTERVAL) for k, v in pairs.items()}, PUBLISHED, 0.95)


def test_a_clear_reduction_and_an_idle_control_are_reproduced():
    draw = np.random.default_rng(1)
    one, other = reduced(n=6000)
    again = trials(metrics.multi_attempt(one).to_numpy() ^ (draw.random(6000) < 0.005))
    verdict = decide((one, other), (one, again))["verdict"]
    assert {name: entry.verdict for name, entry in verdict.items()} == dict.fromkeys(verdict, "reproduced")
    assert "half" not in verdict["random"].rule and "within 0.125 of 0" in verdict["random"].rule


def test_no_reduction_in_many_trials_contradicts_and_a_reducing_control_too():
    draw = np.random.default_rng(1)
    one, other = reduced(n=6000)
    again = trials(metrics.multi_attempt(one).to_numpy() ^ (draw.random(6000) < 0.005))
    verdict = decide((one, again), (one, other))["verdict"]
    assert {name: entry.verdict for name, entry in verdict.items()} == dict.fromkeys(verdict, "contradicted")


def test_without_any_restart_everything_is_undecided_and_nothing_detectable():
    never = trials(np.zeros(60))
    verdicts = decide((never, never), (never, never))
    assert {entry.verdict for outcome in verdicts.values() for entry in outcome.values()} == {"undecided at this n"}
    detectable = ablation.detectable(never, never, **INTERVAL)
    assert detectable == {"minimum_detectable_reduction": None, "esr_minimum_detectable_reduction": None}


def test_an_interval_above_zero_does_not_count_without_the_adjusted_test():
    reduction = Estimate(0.3, 0.01, 0.5, 100)
    entry = {f"{p}{k}": v for p in ("", "esr_") for k, v in {"relative_reduction": reduction, "p_value": 0.03}.items()}
    alone = ablation.decide({"detectors": entry}, PUBLISHED, 0.95)["verdict"]
    three = ablation.decide({"detectors": entry, "held_out": entry, "random": entry}, PUBLISHED, 0.95)["verdict"]
    assert alone["detectors"].verdict == "reproduced" and alone["detectors"].p_value_holm == 0.03
    assert three["detectors"].verdict == "undecided at this n" and three["detectors"].p_value_holm > 0.05


def test_more_pairs_detect_smaller_reductions():
    few, many = (ablation.detectable(*reduced(n=n), **INTERVAL)["minimum_detectable_reduction"] for n in (300, 3000))
    assert 0 < many < few < 1
