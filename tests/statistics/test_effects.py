import numpy as np
import pytest
from scipy.optimize import minimize

from esr.statistics import effects
from esr.statistics.effects import McNemar
from esr.statistics.estimates import NOTHING, Estimate
from esr.statistics.simulation import Design, simulate

LATENTS = np.repeat(np.arange(32), 10)


def pairs(counts):
    """One simulated data set as two columns of events: latents x (both, baseline only, condition only, neither)."""
    a = np.concatenate([np.repeat([True, True, False, False], row) for row in counts])
    b = np.concatenate([np.repeat([True, False, True, False], row) for row in counts])
    return a, b


@pytest.fixture(scope="module")
def clustered():
    return pairs(
        simulate(Design(latents=32, prompts=10, base_rate=0.2, reduction=0.5, icc=0.2), n_simulations=1, seed=3)[0]
    )


DESIGNS = [
    Design(latents=32, prompts=10, base_rate=0.15, reduction=0.27, icc=0.05),
    Design(latents=32, prompts=10, base_rate=0.15, reduction=0.27, icc=0.2, pairing=0.5),
    Design(latents=32, prompts=10, base_rate=0.15, reduction=0.27, icc=0.2, shared=0),
]


@pytest.mark.parametrize("design", DESIGNS)
def test_paired_difference_covers_the_truth_as_often_as_it_says(design):
    true, hits = design.rate - design.base_rate, 0
    for counts in simulate(design, n_simulations=1500, seed=1):
        result = effects.paired_difference(*pairs(counts), LATENTS, n_bootstrap=300)
        hits += result.low <= true <= result.high
    assert 0.93 <= hits / 1500 <= 0.97


@pytest.mark.parametrize("design", DESIGNS)
def test_relative_reduction_covers_the_truth(design):
    hits = 0
    for counts in simulate(design, n_simulations=600, seed=2):
        result = effects.relative_reduction(*pairs(counts), LATENTS, n_bootstrap=300)
        hits += result.low <= design.reduction <= result.high
    assert 0.93 <= hits / 600 <= 0.99


def test_the_unclustered_difference_does_not_cover_when_latents_differ():
    true, hits = DESIGNS[2].rate - DESIGNS[2].base_rate, 0
    for counts in simulate(DESIGNS[2], n_simulations=600, seed=1):
        result = effects.unclustered_difference(*pairs(counts))
        hits += result.low <= true <= result.high
    assert hits / 600 < 0.88


def test_pairs_that_all_agree_have_the_exact_interval_of_as_many_trials_as_latents():
    events = np.arange(320) % 7 == 0
    room = 1 - 0.025 ** (1 / 32)
    expected = Estimate(0.0, pytest.approx(-room), pytest.approx(room), 320)
    assert effects.paired_difference(events, events, LATENTS) == expected


def test_one_pair_that_disagrees_says_no_more_than_none():
    a, b = np.zeros(320, bool), np.arange(320) == 5
    result = effects.paired_difference(a, b, LATENTS)
    assert result.low < -0.1 and result.high > 0.1


def test_pairs_that_all_disagree():
    never, always = np.zeros(320, bool), np.ones(320, bool)
    up, down = (effects.paired_difference(*x, LATENTS) for x in ((never, always), (always, never)))
    assert (up.estimate, up.high, up.low) == (1, 1, pytest.approx(2 * 0.025 ** (1 / 32) - 1))
    assert (down.low, down.high) == (-up.high, -up.low)


def test_paired_difference_of_scores_is_the_mean_difference():
    rng = np.random.default_rng(0)
    a = rng.normal(30, 10, 320)
    shift = np.repeat(rng.normal(5, 1, 32), 10)
    result = effects.paired_difference(a, a + shift, LATENTS)
    assert result.estimate == pytest.approx(shift.mean()) and 4 < result.low < result.high < 6
    assert effects.paired_difference(a, a, LATENTS) == Estimate(0, None, None, 320)


def test_paired_difference_is_deterministic_by_seed(clustered):
    first, again, other = (effects.paired_difference(*clustered, LATENTS, seed=seed) for seed in (1, 1, 2))
    assert first == again != other


def test_exchanging_the_conditions_turns_the_difference_round(clustered):
    a, b = clustered
    forth, back = effects.paired_difference(a, b, LATENTS), effects.paired_difference(b, a, LATENTS)
    assert (forth.low, forth.high) == pytest.approx((-back.high, -back.low))


def test_no_pairs_and_one_latent():
    assert effects.paired_difference([], [], []) == effects.relative_reduction([], [], []) == NOTHING
    one = ([True, False, True], [False, False, True], [7, 7, 7])
    assert effects.paired_difference(*one) == Estimate(pytest.approx(-1 / 3), -1, 1, 3)
    assert effects.relative_reduction(*one) == Estimate(0.5, None, 1, 3)


def constrained(counts, only_b):
    """Likeliest shares (both, only a, only b, neither) with only_b(both, only_a), found numerically."""

    def surprise(logs):
        both, only_a = np.exp(logs)
        shares = np.array([both, only_a, only_b(both, only_a), 1 - both - only_a - only_b(both, only_a)])
        return 1e9 if (shares <= 0).any() else -(np.array(counts) * np.log(shares)).sum()

    starts = [np.log([x, y]) for x in (0.05, 0.2, 0.3) for y in (0.02, 0.1, 0.3)]
    options = {"xatol": 1e-10, "fatol": 1e-12, "maxiter": 5000}
    fits = [minimize(surprise, start, method="Nelder-Mead", options=options) for start in starts]
    both, only_a = np.exp(min(fits, key=lambda fit: fit.fun).x)
    return both, only_a, only_b(both, only_a)


@pytest.mark.parametrize("counts", [(20, 5, 12, 60), (8, 9, 2, 60)])
@pytest.mark.parametrize("side", [0, 1])
def test_score_intervals_end_where_the_score_test_rejects(counts, side):
    n, z = sum(counts), 1.96
    both, only_a, only_b = (x / n for x in counts[:3])
    a, b = both + only_a, both + only_b
    difference = effects._tango(only_b, only_a, n, z)[side]
    _, lost, won = constrained(counts, lambda both, only_a: only_a + difference)
    assert abs(b - a - difference) / np.sqrt((lost + won - difference**2) / n) == pytest.approx(z, rel=1e-3)
    ratio = effects._nam_blackwelder(both, only_a, only_b, n, z)[side]
    _, lost, won = constrained(counts, lambda both, only_a: (ratio - 1) * both + ratio * only_a)
    assert abs(b - ratio * a) / np.sqrt(ratio * (lost + won) / n) == pytest.approx(z, rel=1e-3)


def test_relative_reduction_agrees_with_the_difference_on_whether_there_is_one():
    for seed in range(20):
        design = Design(latents=32, prompts=10, base_rate=0.2, reduction=0.3, icc=0.1, pairing=0.5)
        a, b = pairs(simulate(design, n_simulations=1, seed=seed)[0])
        reduction = effects.relative_reduction(a, b, LATENTS)
        assert reduction.estimate == pytest.approx(1 - b.sum() / a.sum())
        assert reduction.low < reduction.estimate < reduction.high <= 1


def test_relative_reduction_at_its_ends():
    events, never = np.arange(320) % 7 == 0, np.zeros(320, bool)
    assert effects.relative_reduction(never, events, LATENTS) == Estimate(None, None, None, 320)
    same, all_of_it = (effects.relative_reduction(events, b, LATENTS) for b in (events, never))
    assert same.estimate == 0 and same.low < -0.3 and same.high > 0.3
    assert (all_of_it.estimate, all_of_it.high) == (1, 1) and all_of_it.low < 0.5


def test_relative_reduction_of_scores_is_the_ratio_turned_round():
    rng = np.random.default_rng(1)
    a = rng.uniform(20, 40, 320)
    b = a * rng.uniform(0.4, 0.6, 320)
    reduction, kept = effects.relative_reduction(a, b, LATENTS), effects.ratio(b, a, LATENTS)
    assert (reduction.low, reduction.high) == pytest.approx((1 - kept.high, 1 - kept.low))
    assert 0.45 < reduction.low < 0.5 < reduction.high < 0.55


def test_ratio_of_pairs_is_narrower_than_of_two_sets():
    rng = np.random.default_rng(2)
    scale = np.repeat(rng.gamma(4, 1, 32), 10)  # latents differ by much, the ratio by nothing
    off, on = scale * rng.uniform(3, 5, 320), scale * rng.uniform(0.5, 1.5, 320)
    paired, apart = effects.ratio(off, on, LATENTS), effects.ratio(off, on, LATENTS, LATENTS)
    assert paired.estimate == apart.estimate == pytest.approx(off.sum() / on.sum())
    assert paired.low < 4 < paired.high and paired.n == 320 and apart.n == 640
    assert apart.high - apart.low > 4 * (paired.high - paired.low)


def test_ratio_of_two_sets_covers_the_truth():
    rng = np.random.default_rng(4)
    episodes, hits = np.repeat(np.arange(30), 5), 0
    for repeat in range(600):
        over, under = (np.repeat(rng.gamma(8, mean / 8, 30), 5) * rng.gamma(4, 1 / 4, 150) for mean in (0.012, 0.003))
        result = effects.ratio(over, under, episodes, episodes, n_bootstrap=300, seed=repeat)
        hits += result.low <= 4 <= result.high
    assert 0.92 <= hits / 600 <= 0.98


def test_ratio_without_a_bound():
    rare = np.arange(320) == 3  # a third of the resamples have none
    result = effects.ratio(np.arange(320) % 9 == 0, rare, LATENTS)
    assert result.estimate == 36 and result.high is None and result.low < 36
    assert effects.ratio(np.ones(320), np.zeros(320), LATENTS).estimate is None
    assert effects.ratio(np.zeros(320), np.ones(320), LATENTS).high is None  # every resample gives 0
    with pytest.raises(ValueError, match="0 or more"):
        effects.ratio([1.0, -1.0], [1.0, 1.0], [0, 1])


def test_mcnemar_counts_only_pairs_that_disagree():
    a = np.array([True] * 10 + [False] * 2 + [True] * 5 + [False] * 83)
    b = np.array([False] * 10 + [True] * 2 + [True] * 5 + [False] * 83)
    result = effects.mcnemar_exact(a, b)
    # 2 * P(at most 2 of 12 coin throws) = 2 * (1 + 12 + 66) / 4096
    assert result == McNemar(pytest.approx(158 / 4096), only_a=10, only_b=2, n=100)
    assert effects.mcnemar_exact(a, a).p_value == 1
    with pytest.raises(ValueError, match="events"):
        effects.mcnemar_exact(a * 30.0, b * 30.0)


def test_holm_adjusts_in_the_order_given():
    assert effects.holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert effects.holm([]) == []
    with pytest.raises(ValueError, match="between 0 and 1"):
        effects.holm([0.2, float("nan")])


def test_gee_of_unclustered_trials_is_the_odds_ratio_of_the_table():
    rng = np.random.default_rng(6)
    a, b = rng.random(400) < 0.3, rng.random(400) < 0.15
    result = effects.gee_difference(a, b, np.arange(400))
    odds = (b.sum() / (~b).sum()) / (a.sum() / (~a).sum())
    assert result.odds_ratio == pytest.approx(odds, rel=1e-4) and result.reason is None
    log_error = np.sqrt(sum(1 / x.sum() for x in (a, ~a, b, ~b)))
    assert np.log(result.high / result.low) == pytest.approx(2 * 1.966 * log_error, rel=0.05)
    assert result.p_value < 0.001 and result.n == 400


def test_gee_and_the_paired_difference_agree(clustered):
    result = effects.gee_difference(*clustered, LATENTS)
    assert result.high < 1 and effects.paired_difference(*clustered, LATENTS).high < 0


def test_gee_gives_the_reason_why_it_has_no_odds_ratio():
    some, none = np.arange(320) % 7 == 0, np.zeros(320, bool)
    for a, b, latents, reason in (
        (none, some, LATENTS, "no trial of the baseline is an event"),
        (some, ~none, LATENTS, "every trial of the condition is an event"),
        (some, ~some, np.repeat([0, 1], 160), "2 clusters"),
        (some, some, LATENTS, "agree in every trial"),
        ([], [], [], "no trials"),
    ):
        result = effects.gee_difference(a, b, latents)
        assert reason in result.reason and result.odds_ratio is result.p_value is result.low is None


def test_unclustered_difference_is_the_z_interval():
    a, b = np.arange(4877) < 361, np.arange(4875) < 268
    p, q = 361 / 4877, 268 / 4875
    half = 1.959964 * np.sqrt(p * (1 - p) / 4877 + q * (1 - q) / 4875)
    result = effects.unclustered_difference(a, b)
    assert (result.low, result.high) == pytest.approx((q - p - half, q - p + half), abs=1e-7)
    assert result.n == 9752
    assert effects.unclustered_difference([], b).estimate is None


def test_conditions_must_be_paired_and_of_one_kind():
    with pytest.raises(ValueError, match="3 trials of the baseline with 2"):
        effects.paired_difference([True, False, True], [True, False], [0, 1, 2])
    with pytest.raises(ValueError, match="both as events"):
        effects.paired_difference([True, False], [1.0, 0.0], [0, 1])
