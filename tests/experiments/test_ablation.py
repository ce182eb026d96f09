"""Effects of ablations on hand-made paired trials."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from esr.experiments import ablation
from esr.statistics import metrics
from esr.statistics.effects import holm, paired_difference

INTERVAL = {"confidence": 0.95, "n_bootstrap": 500, "seed": 0}


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


def test_a_recovery_needs_no_restart():
    one, other = (trials(np.zeros(60)) for _ in range(2))
    one = one.assign(first_third=10.0, last_third=80.0)
    other = other.assign(first_third=10.0, last_third=[80.0] * 15 + [10.0] * 45)
    figures = ablation.ablation_effects(one, other, **INTERVAL)
    assert figures["recovery_difference"].estimate == -0.75 and figures["recovery_difference"].high < 0
    assert figures["difference"].estimate == 0


def test_without_any_restart_nothing_is_detectable():
    never = trials(np.zeros(60))
    assert ablation.ablation_effects(never, never, **INTERVAL)["relative_reduction"].estimate is None
    detectable = ablation.detectable(never, never, **INTERVAL)
    assert detectable == {"minimum_detectable_reduction": None, "esr_minimum_detectable_reduction": None}


def test_p_values_are_adjusted_over_the_family_alone():
    p_values = {"detectors": (0.01, 0.2), "random": (0.03, 0.04), "held_out": (0.02, 0.9), "sham": (1.0, 1.0)}
    effects = {name: {"p_value": p, "esr_p_value": q} for name, (p, q) in p_values.items()}
    found = ablation.adjusted(effects)
    assert list(found) == ["detectors", "held_out", "random"]
    assert [entry["p_value_holm"] for entry in found.values()] == holm([0.01, 0.02, 0.03])
    assert [entry["esr_p_value_holm"] for entry in found.values()] == holm([0.2, 0.9, 0.04])


def test_changed_responses_are_counted_by_condition_and_clustered_by_latent():
    def responses(condition, texts):
        return [SimpleNamespace(condition=condition, latent=i // 2, prompt_id="p", seed=i % 2, text=text)
                for i, text in enumerate(texts)]  # fmt: skip

    plain = responses("steered", "abcdefgh")
    ablated = [*responses("detectors", "xbxxxxxh"), *responses("sham", "abcdefgh")]
    found = ablation.changed_shares(ablated, plain, **INTERVAL)
    assert found["detectors"].estimate == 0.75 and found["detectors"].n == 8
    assert found["sham"].estimate == 0 and found["sham"].high > 0.3  # four latents tell little
    with pytest.raises(KeyError):
        ablation.changed_shares(ablated, plain[1:], **INTERVAL)


def test_more_pairs_detect_smaller_reductions():
    few, many = (ablation.detectable(*reduced(n=n), **INTERVAL)["minimum_detectable_reduction"] for n in (300, 3000))
    assert 0 < many < few < 1
