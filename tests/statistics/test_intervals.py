import numpy as np
import pytest

from esr.statistics import intervals
from esr.statistics.estimates import NOTHING, Estimate


def test_wilson_and_exact_match_published_values():
    # 1 of 10: Wilson [0.0179, 0.4042], Clopper-Pearson [0.0025, 0.4450], in any table of binomial intervals
    assert intervals.wilson(1, 10) == pytest.approx((0.01787, 0.40415), abs=1e-4)
    assert intervals.exact(1, 10) == pytest.approx((0.00253, 0.44502), abs=1e-4)


def test_rate_without_events_is_exact_in_the_number_of_latents():
    result = intervals.rate([False] * 192, np.repeat(np.arange(24), 8))
    assert result == Estimate(0.0, 0.0, pytest.approx(1 - 0.025 ** (1 / 24)), 192)


def test_rate_of_events_everywhere_mirrors_no_events():
    result = intervals.rate([True] * 12, np.repeat(np.arange(4), 3))
    assert (result.estimate, result.high, result.low) == (1.0, 1.0, pytest.approx(0.025 ** (1 / 4)))


def test_no_trials_give_nulls():
    assert intervals.rate([], []) == intervals.mean([], []) == intervals.unclustered([]) == NOTHING


def test_one_latent_says_nothing_about_others():
    assert intervals.rate([True, False], [7, 7]) == Estimate(0.5, 0.0, 1.0, 2)
    assert intervals.mean([10.0, 20.0], [7, 7]) == Estimate(15.0, None, None, 2)


def test_same_seed_same_interval():
    values, latents = np.arange(96.0) ** 2, np.repeat(np.arange(12), 8)
    assert intervals.mean(values, latents, seed=3) == intervals.mean(values, latents, seed=3)
    assert intervals.mean(values, latents, seed=3) != intervals.mean(values, latents, seed=4)


def test_interval_does_not_depend_on_the_order_of_rows():
    rng = np.random.default_rng(0)
    values, latents = rng.normal(30, 10, 96), np.repeat(np.arange(12), 8)
    order = rng.permutation(96)
    found, expected = (vars(intervals.mean(values[x], latents[x])) for x in (order, np.arange(96)))
    assert found == pytest.approx(expected)


def test_clustered_events_widen_the_interval():
    latents = np.repeat(np.arange(24), 8)
    together = np.isin(latents, [0, 1, 2])  # 24 events in three latents
    spread = np.tile(np.arange(8) == 0, 24)  # 24 events, one a latent
    wide, narrow = intervals.rate(together, latents), intervals.rate(spread, latents)
    assert wide.estimate == narrow.estimate == 0.125
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_rate_is_never_narrower_than_wilson():
    latents = np.repeat(np.arange(24), 8)
    spread = np.tile(np.arange(8) == 0, 24)  # every resample has the same rate: the bootstrap alone has width zero
    low, high = intervals.wilson(24, 192)
    result = intervals.rate(spread, latents)
    assert 0 < result.low < low and high < result.high < 1.2 * high


def test_mean_of_few_clusters_has_the_width_of_students_t():
    values = np.random.default_rng(5).normal(0, 1, 10)
    result = intervals.mean(values, np.arange(10), n_bootstrap=50_000)
    half = 2.262 * values.std(ddof=1) / np.sqrt(10)  # t with 9 degrees of freedom
    assert (result.high - result.low) / 2 == pytest.approx(half, rel=0.12)


def test_mean_refuses_missing_values():
    with pytest.raises(ValueError, match="1 of 3 values are missing"):
        intervals.mean([1.0, float("nan"), 2.0], [0, 1, 2])


def test_each_value_needs_a_cluster():
    with pytest.raises(ValueError, match="3 values with 2 clusters"):
        intervals.rate([True, False, True], [0, 1])


def test_unclustered_is_the_normal_interval():
    result = intervals.unclustered([True] * 74 + [False] * 926)
    half = 1.959964 * np.sqrt(0.074 * 0.926 / 1000)
    assert (result.low, result.high) == pytest.approx((0.074 - half, 0.074 + half))


def simulate(seed, icc, rate=0.15, latents=32, prompts=10, count=1500):
    """Events of simulated experiments, one row each, and the latent of each trial."""
    rng = np.random.default_rng(seed)
    rates = rng.beta(rate * (1 - icc) / icc, (1 - rate) * (1 - icc) / icc, (count, latents))
    return rng.random((count, latents * prompts)) < np.repeat(rates, prompts, axis=1), np.repeat(
        np.arange(latents), prompts
    )


def covered(results, true):
    return np.mean([result.low <= true <= result.high for result in results])


@pytest.mark.parametrize(("icc", "rate"), [(0.05, 0.15), (0.1, 0.15), (0.2, 0.15), (0.4, 0.45)])  # the last: as found
def test_rate_covers_the_truth_as_often_as_it_says(icc, rate):
    drawn, latents = simulate(1, icc, rate)
    assert 0.93 <= covered([intervals.rate(events, latents, n_bootstrap=400) for events in drawn], rate) <= 0.97


def test_the_unclustered_interval_does_not():
    drawn, _ = simulate(1, 0.2)
    assert covered([intervals.unclustered(events) for events in drawn], 0.15) < 0.8


@pytest.mark.parametrize("icc", [0.05, 0.2])
def test_rare_events_are_covered_as_often_or_more(icc):
    drawn, latents = simulate(2, icc, rate=0.01, prompts=38, count=800)
    assert covered([intervals.rate(events, latents, n_bootstrap=400) for events in drawn], 0.01) >= 0.95


@pytest.mark.parametrize("icc", [0.05, 0.2])
def test_mean_covers_the_truth_as_often_as_it_says(icc):
    rng = np.random.default_rng(3)
    latents = np.repeat(np.arange(32), 10)
    effects = np.repeat(rng.normal(0, np.sqrt(icc), (1500, 32)), 10, axis=1)
    drawn = 30 + 20 * (effects + rng.normal(0, np.sqrt(1 - icc), (1500, 320)))
    assert 0.93 <= covered([intervals.mean(values, latents, n_bootstrap=400) for values in drawn], 30) <= 0.97


def test_one_event_says_no_more_than_none():
    latents = np.repeat(np.arange(32), 38)
    none, one = (intervals.rate(np.arange(32 * 38) < count, latents) for count in (0, 1))
    assert 0 < one.low < one.estimate and none.high < one.high < 1.3 * none.high


def test_two_latents_give_an_interval():
    result = intervals.rate([True] * 5 + [False] * 5, [0] * 5 + [1] * 5, confidence=0.99)
    assert result.low < 0.02 and result.high > 0.98


def test_values_that_never_vary_have_no_interval():
    assert intervals.mean([3.0] * 6, [0, 0, 1, 1, 2, 2]) == Estimate(3.0, None, None, 6)


def test_effective_size_is_the_number_of_clusters_when_trials_repeat_each_other():
    events, latents = np.repeat(np.arange(40) % 4 == 0, 5), np.repeat(np.arange(40), 5)
    size = intervals.effective_size(*intervals.clustered(events, latents), 20_000, 0)
    assert size == pytest.approx(39, rel=0.03)  # the variance between clusters has one degree of freedom less


def test_clusters_may_be_pairs():
    values = np.arange(12.0) ** 2
    pairs = [(latent, f"p{prompt}") for latent in range(3) for prompt in range(2) for _ in range(2)]
    assert intervals.mean(values, pairs) == intervals.mean(values, np.repeat(np.arange(6), 2))


def test_intraclass_correlation():
    latents = np.repeat(np.arange(6), 4)
    assert intervals.intraclass_correlation(latents % 2 == 0, latents) == pytest.approx(1)
    assert intervals.intraclass_correlation(np.tile([1, 1, 0, 0], 6), latents) == 0  # less alike than by chance
    drawn, latents = simulate(4, 0.2, latents=400, count=5)
    assert intervals.intraclass_correlation(drawn[0], latents) == pytest.approx(0.2, abs=0.06)
    # by hand: mean squares 0.5 between and 1 / 6 within, two trials in each of three clusters
    assert intervals.intraclass_correlation([1, 1, 0, 0, 1, 0], [0, 0, 1, 1, 2, 2]) == pytest.approx(0.5)


def test_intraclass_correlation_that_cannot_be_seen():
    assert intervals.intraclass_correlation([1, 0], [0, 0]) is None
    assert intervals.intraclass_correlation([1, 0], [0, 1]) is None
    assert intervals.intraclass_correlation([0, 0, 0, 0], [0, 0, 1, 1]) is None
