import json

import numpy as np
import pytest
from pydantic import ValidationError

from esr.paths import ROOT
from esr.statistics import effects, intervals, power, simulation
from esr.statistics.estimates import Estimate
from esr.statistics.simulation import Design

DESIGNS = [
    Design(latents=32, prompts=10, base_rate=0.15, reduction=0.4, icc=0.1),
    Design(latents=60, prompts=8, base_rate=0.15, reduction=0.4, icc=0.2, shared=0.5),
    Design(latents=60, prompts=8, base_rate=0.15, reduction=0.4, icc=0.1, pairing=0.5),
    Design(latents=60, prompts=8, base_rate=0.074, reduction=0.25, icc=0.1),
    Design(latents=60, prompts=8, base_rate=0.038, reduction=-1.0, icc=0.1),
    Design(latents=128, prompts=38, base_rate=0.074, reduction=0.25, icc=0.2, pairing=0.5, shared=0.7),
    Design(latents=32, prompts=38, base_rate=0.04, reduction=0.6, icc=0.1, pairing=1.0),
    Design(latents=32, prompts=10, base_rate=0.45, reduction=0.25, icc=0.4),  # as found in the fine-tuned model
]
NO_EFFECT = Design(latents=60, prompts=8, base_rate=0.15, reduction=0.0, icc=0.2)


@pytest.mark.parametrize("design", DESIGNS)
def test_formulas_are_within_three_points_of_simulation(design):
    simulated = simulation.simulated_power(design, n_simulations=4000, seed=1)
    assert power.mcnemar_power(design) == pytest.approx(simulated["mcnemar"], abs=0.03)
    assert power.cluster_power(design) == pytest.approx(simulated["cluster"], abs=0.03)


def test_the_designs_are_neither_hopeless_nor_certain():
    powers = [power.cluster_power(design) for design in DESIGNS]
    assert min(powers) < 0.3 and sum(0.3 < x < 0.97 for x in powers) >= 4


def test_tests_keep_their_size_while_the_condition_does_nothing():
    simulated = simulation.simulated_power(NO_EFFECT, n_simulations=8000)
    assert 0.02 < simulated["mcnemar"] <= 0.055 and 0.02 < simulated["cluster"] <= 0.055


def test_mcnemar_is_at_or_under_its_size_without_clusters_at_any_rate():
    for rate in (0.02, 0.1, 0.3):
        design = NO_EFFECT.model_copy(update={"base_rate": rate, "icc": 0.0})
        assert power.mcnemar_power(design) <= 0.05
        assert simulation.mcnemar_rejects(simulation.simulate(design, 8000)).mean() <= 0.055


def test_mcnemar_loses_its_size_where_latents_change_by_themselves_and_the_clustered_interval_does_not():
    design = NO_EFFECT.model_copy(update={"shared": 0.0})
    simulated = simulation.simulated_power(design, n_simulations=4000)
    assert simulated["mcnemar"] > 0.15 and simulated["cluster"] < 0.06


def test_simulated_experiments_are_as_designed():
    design = Design(latents=300, prompts=20, base_rate=0.2, reduction=0.3, icc=0.15, pairing=0.4, shared=0.6)
    counts = simulation.simulate(design, n_simulations=200)
    assert counts.shape == (200, 300, 4) and (counts.sum(axis=-1) == 20).all()
    both, only_baseline, only_condition, _ = counts.sum(axis=(0, 1)) / counts.sum()
    assert both + only_baseline == pytest.approx(0.2, rel=0.02)
    assert both + only_condition == pytest.approx(0.14, rel=0.02)
    pairs = simulation.discordance(design)
    assert (pairs.only_baseline, pairs.only_condition) == pytest.approx((only_baseline, only_condition), rel=0.02)
    events = np.concatenate([np.arange(20) < n for n in counts[0, :, :2].sum(axis=-1)])
    assert intervals.intraclass_correlation(events, np.repeat(np.arange(300), 20)) == pytest.approx(0.15, abs=0.04)
    means = (counts[..., 2] - counts[..., 1]).mean(axis=1) / 20
    assert simulation.design_effect(design) == pytest.approx(means.var() / (pairs.variance / 6000), rel=0.25)


def test_an_increase_is_a_reduction_with_the_conditions_changed_over():
    design = Design(latents=200, prompts=20, base_rate=0.05, reduction=-2.0, icc=0.1)
    counts = simulation.simulate(design, n_simulations=50)
    shares = counts.sum(axis=(0, 1)) / counts.sum()
    assert shares[0] + shares[1] == pytest.approx(0.05, rel=0.03) and shares[0] + shares[2] == pytest.approx(
        0.15, rel=0.03
    )
    pairs = simulation.discordance(design)
    assert pairs.only_condition - pairs.only_baseline == pytest.approx(0.1)


def test_the_simulated_interval_is_the_one_of_the_paper():
    """The vectorised test and the interval of esr.statistics.effects, on the same simulations."""
    latents, same = np.repeat(np.arange(32), 10), 0
    drawn = simulation.simulate(DESIGNS[0], n_simulations=100, seed=5)
    for counts, rejects in zip(drawn, simulation.cluster_rejects(drawn), strict=True):
        a = np.concatenate([np.repeat([True, True, False, False], row) for row in counts])
        b = np.concatenate([np.repeat([True, False, True, False], row) for row in counts])
        interval = effects.paired_difference(a, b, latents)
        same += rejects == (interval.high < 0 or interval.low > 0)
    assert same >= 98  # the bootstrap's own noise may turn a close one


def test_the_sample_that_is_needed_reaches_the_power_and_one_latent_less_does_not():
    trials = power.sample_needed(0.15, 0.4, 0.1, prompts=10, pairing=0.5)
    design = Design(latents=trials // 10, prompts=10, base_rate=0.15, reduction=0.4, icc=0.1, pairing=0.5)
    assert trials % 10 == 0 and power.cluster_power(design) >= 0.8
    assert power.cluster_power(design.model_copy(update={"latents": design.latents - 1})) < 0.8
    assert simulation.simulated_power(design, 4000)["cluster"] == pytest.approx(0.8, abs=0.03)


def test_more_is_needed_for_less():
    needed = [power.sample_needed(0.074, reduction, 0.1, prompts=38, shared=0.8) for reduction in (0.5, 0.25, 0.1)]
    assert needed == sorted(needed) and needed[2] > 4 * needed[1]
    by_icc = [power.sample_needed(0.074, 0.25, icc, prompts=38, shared=0.5) for icc in (0.0, 0.1, 0.2)]
    assert by_icc == sorted(by_icc) and by_icc[2] > 3 * by_icc[0]
    assert power.sample_needed(0.074, 0.25, 0.1, prompts=38, max_latents=16) is None


def test_minimum_detectable_reduction_is_found_with_the_given_power():
    design = Design(latents=60, prompts=20, base_rate=0.15, reduction=0.2, icc=0.1)
    total, effect = simulation.discordance(design).total, simulation.design_effect(design)
    smallest = power.minimum_detectable_reduction(1200, 0.15, total, effect)
    assert simulation.simulated_power(design.model_copy(update={"reduction": smallest}), 4000)[
        "mcnemar"
    ] == pytest.approx(0.8, abs=0.04)
    assert power.minimum_detectable_reduction(1200, 0.15, total, 4 * effect) > 1.8 * smallest
    assert power.minimum_detectable_reduction(20, 0.01, 0.02) is None
    with pytest.raises(ValueError, match="base rate 1.5"):
        power.minimum_detectable_reduction(100, 1.5, 0.1)


def test_budget():
    assert power.budget(9000, 400, 500, 0.002) == {"trials": 9000, "tokens": 3_600_000, "hours": 2.0, "usd": 18.0}
    with pytest.raises(ValueError, match="tokens and their speed"):
        power.budget(10, 400, 0)


def test_table_over_published_models():
    published = json.loads((ROOT / "data" / "published.json").read_text(encoding="utf-8"))
    table = power.published_table(published, icc=0.1, shared=0.8)
    assert len(table) == 2 * 2 * len(published["models"]) and set(table.model) == set(published["models"])
    row = table[(table.model == "llama-3.3-70b") & (table.experiment == "detector_ablation") & (table.outcome == "esr")]
    assert row.power.item() < row.unpaired_power.item()  # clustered trials say less than the published n suggests
    small = table[(table.model == "gemma-2-2b") & (table.experiment == "detector_ablation")]
    assert (small.power < 0.1).all() and (small.trials_needed > 20 * small.n_published).all()
    assert table[table.experiment == "meta_prompt"].detectable.isna().all()


def test_impossible_designs_are_refused():
    with pytest.raises(ValidationError, match="makes a rate of 0.5 one of 1.5"):
        Design(latents=10, prompts=10, base_rate=0.5, reduction=-2, icc=0.1)
    with pytest.raises(ValidationError, match="icc"):
        Design(latents=10, prompts=10, base_rate=0.5, reduction=0.2, icc=1.0)


def measured(rate, n=320):
    known = Estimate(rate, 0.0, rate + 0.05, n)
    return {"steered": {"multi_attempt_rate": known, "esr_rate": known, "n_latents": 32, "n_trials": n}}


def test_what_the_published_effects_take_on_measured_models():
    published = json.loads((ROOT / "data" / "published.json").read_text(encoding="utf-8"))
    esr = {"still": measured(0.0), "tuned": measured(0.3)}
    sizes = {name: {"detector_ablation": 320, "meta_prompt": 160, "boost_sweep": 128} for name in esr}
    icc = {"still": dict.fromkeys(power.OUTCOMES), "tuned": dict.fromkeys(power.OUTCOMES, 0.2)}
    table = power.nested(power.measured_table(esr, sizes, icc, published, assumed_icc=0.1))
    still, tuned = (table[name]["detector_ablation"]["multi_attempt"] for name in esr)
    assert (still["base_rate"], still["rate_measured"], still["icc"]) == (0.05, False, 0.1)
    assert (tuned["base_rate"], tuned["rate_measured"], tuned["icc"]) == (0.3, True, 0.2)
    design = Design(latents=32, prompts=10, base_rate=0.3, reduction=0.25, icc=0.2)
    assert tuned["power"] == pytest.approx(power.cluster_power(design))
    assert tuned["trials_needed"] == power.sample_needed(0.3, 0.25, 0.2, prompts=10)
    assert still["trials_needed"] > tuned["trials_needed"] and still["power"] < tuned["power"]
    assert table["tuned"]["meta_prompt"]["multi_attempt"]["power"] is None  # 4.3 times 30 % is more than there can be
    assert table["still"]["meta_prompt"]["multi_attempt"]["detectable"] is None  # an increase
    assert table["tuned"]["boost_sweep"]["esr"]["trials_needed"] is None  # nothing published to find
    assert 0.3 < table["tuned"]["boost_sweep"]["esr"]["detectable"] < 1


def test_the_curve_rises_with_trials_and_with_the_base_rate():
    sizes = [20, 200, 2000, 20000]
    curve = power.power_curve(0.1, 0.25, 0.1, prompts=10, trials=sizes)
    assert (np.diff(curve) > 0).all() and curve[0] < 0.1 and curve[-1] > 0.9
    assert (power.power_curve(0.01, 0.25, 0.1, prompts=10, trials=sizes) < curve).all()
    assert curve[1] == power.cluster_power(Design(latents=20, prompts=10, base_rate=0.1, reduction=0.25, icc=0.1))
