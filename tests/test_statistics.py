import numpy as np
import pytest

from esr import statistics


def test_wilson_and_exact_match_published_values():
    # 1 of 10: Wilson [0.0179, 0.4042], Clopper-Pearson [0.0025, 0.4450], in any table of binomial intervals
    assert statistics.wilson(1, 10) == pytest.approx((0.01787, 0.40415), abs=1e-4)
    assert statistics.exact(1, 10) == pytest.approx((0.00253, 0.44502), abs=1e-4)


def test_rate_without_events_is_exact_in_the_number_of_latents():
    result = statistics.rate([False] * 192, np.repeat(np.arange(24), 8))
    assert result == {"estimate": 0.0, "low": 0.0, "high": pytest.approx(1 - 0.025 ** (1 / 24)), "n": 192}


def test_rate_of_events_everywhere_mirrors_no_events():
    result = statistics.rate([True] * 12, np.repeat(np.arange(4), 3))
    assert (result["estimate"], result["high"], result["low"]) == (1.0, 1.0, pytest.approx(0.025 ** (1 / 4)))


def test_no_trials_give_nulls():
    nothing = {"estimate": None, "low": None, "high": None, "n": 0}
    assert statistics.rate([], []) == statistics.mean([], []) == statistics.unclustered([]) == nothing


def test_one_latent_says_nothing_about_others():
    assert statistics.rate([True, False], [7, 7]) == {"estimate": 0.5, "low": 0.0, "high": 1.0, "n": 2}
    assert statistics.mean([10.0, 20.0], [7, 7]) == {"estimate": 15.0, "low": None, "high": None, "n": 2}


def test_same_seed_same_interval():
    values, latents = np.arange(96.0) ** 2, np.repeat(np.arange(12), 8)
    assert statistics.mean(values, latents, seed=3) == statistics.mean(values, latents, seed=3)
    assert statistics.mean(values, latents, seed=3) != statistics.mean(values, latents, seed=4)


def test_interval_does_not_depend_on_the_order_of_rows():
    rng = np.random.default_rng(0)
    values, latents = rng.normal(30, 10, 96), np.repeat(np.arange(12), 8)
    order = rng.permutation(96)
    assert statistics.mean(values[order], latents[order]) == pytest.approx(statistics.mean(values, latents))


def test_clustered_events_widen_the_interval():
    latents = np.repeat(np.arange(24), 8)
    together = np.isin(latents, [0, 1, 2])  # 24 events in three latents
    spread = np.tile(np.arange(8) == 0, 24)  # 24 events, one a latent
    wide, narrow = statistics.rate(together, latents), statistics.rate(spread, latents)
    assert wide["estimate"] == narrow["estimate"] == 0.125
    assert wide["high"] - wide["low"] > 2 * (narrow["high"] - narrow["low"])


def test_rate_is_never_narrower_than_wilson():
    latents = np.repeat(np.arange(24), 8)
    spread = np.tile(np.arange(8) == 0, 24)  # every resample has the same rate: the bootstrap alone has width zero
    low, high = statistics.wilson(24, 192)
    result = statistics.rate(spread, latents)
    assert (result["low"], result["high"]) == (low, high)


def test_mean_of_few_clusters_has_the_width_of_students_t():
    values = np.random.default_rng(5).normal(0, 1, 10)
    result = statistics.mean(values, np.arange(10), resamples=50_000)
    half = 2.262 * values.std(ddof=1) / np.sqrt(10)  # t with 9 degrees of freedom
    assert (result["high"] - result["low"]) / 2 == pytest.approx(half, rel=0.12)


def test_mean_refuses_missing_values():
    with pytest.raises(ValueError, match="1 of 3 values are missing"):
        statistics.mean([1.0, float("nan"), 2.0], [0, 1, 2])


def test_each_value_needs_a_cluster():
    with pytest.raises(ValueError, match="3 values with 2 clusters"):
        statistics.rate([True, False, True], [0, 1])


def test_unclustered_is_the_normal_interval():
    result = statistics.unclustered([True] * 74 + [False] * 926)
    half = 1.959964 * np.sqrt(0.074 * 0.926 / 1000)
    assert (result["low"], result["high"]) == pytest.approx((0.074 - half, 0.074 + half))


def test_shown_interval_covers_where_the_unclustered_one_does_not():
    """200 simulated studies of 24 latents x 8 trials, rate 0.15, intra-class correlation 0.25."""
    rng = np.random.default_rng(11)
    true, correlation, latents = 0.15, 0.25, np.repeat(np.arange(24), 8)
    a, b = true * (1 - correlation) / correlation, (1 - true) * (1 - correlation) / correlation
    covered = {"shown": 0, "unclustered": 0}
    for study in range(200):
        events = rng.random(192) < np.repeat(rng.beta(a, b, 24), 8)
        results = {
            "shown": statistics.rate(events, latents, resamples=500, seed=study),
            "unclustered": statistics.unclustered(events),
        }
        for name, result in results.items():
            covered[name] += result["low"] <= true <= result["high"]
    assert covered["shown"] >= 0.89 * 200
    assert covered["unclustered"] <= 0.82 * 200
