"""Detectors are found where they were planted, never among steered latents; controls are as active as they are."""

from collections import Counter

import numpy as np
import pytest

from esr.experiments import detectors
from esr.experiments.detectors import ablated, ablation_sets, derangement, find, match_random, pair_up, split_halves
from esr.steering.activations import Activity

PROMPTS = [f"evaluation-{i:02d}" for i in range(20)]


def test_a_derangement_leaves_nothing_in_its_place_and_is_uniform():
    for n in (2, 3, 7, 38):
        for seed in range(20):
            order = derangement(n, seed)
            assert sorted(order) == list(range(n)) and all(i != x for i, x in enumerate(order))
    counts = Counter(tuple(derangement(4, seed)) for seed in range(1800))
    assert len(counts) == 9  # all there are of four
    assert all(140 < count < 260 for count in counts.values())  # 200 expected, sd 13


def test_one_prompt_cannot_be_deranged():
    with pytest.raises(ValueError, match="at least two"):
        derangement(1, 0)


def test_every_round_pairs_each_prompt_with_a_matched_and_a_mismatched_response():
    pairs = pair_up(PROMPTS, 3, seed=1)
    assert len(pairs) == 3 * 2 * 20
    for number in range(3):
        in_round = [x for x in pairs if x.round == number]
        assert sorted(x.prompt for x in in_round if x.matched) == PROMPTS
        assert sorted(x.prompt for x in in_round if not x.matched) == PROMPTS
        assert sorted(x.response_of for x in in_round if not x.matched) == PROMPTS
    assert len({tuple(x.response_of for x in pairs if x.round == k and not x.matched) for k in range(3)}) == 3


def test_halves_are_disjoint_complete_and_seeded():
    first, second = split_halves(PROMPTS[:9], seed=4)
    assert len(first) == 5 and not set(first) & set(second) and sorted([*first, *second]) == PROMPTS[:9]
    assert (first, second) == split_halves(PROMPTS[:9], seed=4) != split_halves(PROMPTS[:9], seed=5)


@pytest.fixture
def planted():
    """Noise in 60 latents; 0 and 1 follow the strict rule, 2 is louder on mismatched responses, 3 on matched ones, 4
    never fires."""
    pairs = pair_up(PROMPTS, 2, seed=1)
    draw = np.random.default_rng(0)
    maxima = draw.exponential(size=(len(pairs), 60)).astype(np.float32)
    other = np.array([not x.matched for x in pairs])
    maxima[:, 0] = 5.0 * other
    maxima[:, 1] = 3.0 * other * (draw.random(len(pairs)) < 0.9)
    maxima[:, 2] += 1.5 * other
    maxima[:, 3] += 4.0 * ~other
    maxima[:, 4] = 0.0
    return detectors.separation(maxima, pairs), maxima, pairs


def test_statistics_are_those_of_the_definitions(planted):
    found, maxima, pairs = planted
    matched = np.array([x.matched for x in pairs])
    there, elsewhere = maxima[matched].astype(float), maxima[~matched].astype(float)
    wins = (elsewhere[:, None] > there[None]).mean((0, 1)) + 0.5 * (elsewhere[:, None] == there[None]).mean((0, 1))
    np.testing.assert_allclose(found.auc, wins, atol=1e-12)
    pooled = np.sqrt((there[:, 2].var(ddof=1) + elsewhere[:, 2].var(ddof=1)) / 2)
    assert found.cohens_d[2] == pytest.approx((elsewhere[:, 2].mean() - there[:, 2].mean()) / pooled)
    assert (found.auc[4], found.cohens_d[4], found.auc[0]) == (0.5, 0.0, 1.0)
    assert found.matched_share[0] == 0 and found.mismatched_share[0] == 1


def test_the_strict_rule_is_strict_and_the_others_rank(planted):
    found, *_ = planted
    assert [d.latent for d in find(found, "strict", 26)] == [0, 1]
    assert [d.latent for d in find(found, "strict", 26, min_active=0.99)] == [0]
    by_auc = find(found, "auc", 3)
    assert [d.latent for d in by_auc] == [0, 1, 2] and [d.rank for d in by_auc] == [1, 2, 3]
    assert by_auc[2].auc == pytest.approx(found.auc[2]) and by_auc[2].rule == "auc"
    assert [d.latent for d in find(found, "cohens_d", 2)] == [1, 2]  # 0 varies within neither: no d
    everyone = [d.latent for d in find(found, "auc", 60)]
    assert 3 not in everyone and 4 not in everyone


def test_steered_latents_are_never_detectors(planted):
    found, *_ = planted
    for rule in ("strict", "auc", "cohens_d"):
        assert not {0, 2} & {d.latent for d in find(found, rule, 60, excluded=[0, 2])}
    assert found.auc[0] == 1.0, "finding leaves the statistics alone"


def test_pairs_of_one_kind_alone_are_refused(planted):
    _, maxima, pairs = planted
    with pytest.raises(ValueError, match="Both matched and mismatched"):
        detectors.separation(maxima[:20], pairs[:20])


def test_overlap():
    assert detectors.overlap([[1, 2], [1, 2]]) == 1.0
    assert detectors.overlap([[1, 2], [2, 3], [1, 2]]) == pytest.approx((1 / 3 + 1 + 1 / 3) / 3)
    assert detectors.overlap([[1, 2]]) is None


@pytest.fixture
def activity():
    draw = np.random.default_rng(1)
    frequency = np.exp(draw.uniform(np.log(1e-4), np.log(0.5), size=3000))
    frequency[::10] = 0.0
    return Activity(frequency, frequency * np.exp(draw.normal(1, 0.5, size=3000)), tokens=20_000)


def test_random_sets_are_as_active_as_the_detectors_and_apart(activity):
    chosen, excluded = list(range(5, 2605, 100)), list(range(0, 300, 7))
    sets = match_random(activity, chosen, excluded, 3, seed=2)
    together = [x for latents in sets for x in latents]
    assert [len(latents) for latents in sets] == [26, 26, 26] and len(set(together)) == 78
    assert not set(together) & {*chosen, *excluded}
    assert sets == match_random(activity, chosen, excluded, 3, seed=2) != match_random(activity, chosen, excluded, 3, 3)
    report = detectors.matching(activity, chosen, sets)
    assert (report.loc["detectors", ["frequency_off", "activation_worst"]] == 1).all()
    for name in ("random_1", "random_2", "random_3"):
        row = report.loc[name]
        assert row.frequency_off < 1.3 and row.activation_off < 1.3 and row.frequency_worst < 2.5
        assert row.activation == pytest.approx(report.loc["detectors", "activation"], rel=0.25)
    unmatched = np.random.default_rng(0).choice(3000, (1, 26)).tolist()
    assert detectors.matching(activity, chosen, unmatched).loc["random_1", "frequency_off"] > 2


def test_a_silent_detector_is_matched_to_silent_latents_by_seed(activity):
    sets = match_random(activity, [0], [], 3, seed=2)
    assert all(activity.frequency[x] == 0 for latents in sets for x in latents)
    assert sets != match_random(activity, [0], [], 3, seed=9)


def test_the_sham_is_of_latents_that_never_fire_those_farthest_from_it_first():
    margins = np.array([-0.1, 0.4, -2.0, -3.0, 0.0, -1.0])
    assert detectors.silent(margins, 3, excluded=[3]) == [2, 5, 0]
    assert detectors.silent(margins, 9, excluded=[]) == [3, 2, 5, 0]
    with pytest.raises(ValueError, match="no sham"):
        detectors.silent(np.array([0.1, 0.2]), 2, [])


def test_too_few_latents_for_the_sets_are_refused(activity):
    with pytest.raises(ValueError, match="too few for 3 random sets of 1000"):
        match_random(activity, list(range(1000)), [], 3, seed=1)


def test_held_out_trials_lose_what_the_other_half_found():
    sets = ablation_sets([1, 2], [[3, 4], [5, 6]], [(["a", "b"], [1, 7]), (["c"], [2, 8])], [9])
    assert ablated(sets, "sham", "a") == (9,)
    assert ablated(sets, "detectors", "a") == ablated(sets, "detectors", "c") == (1, 2)
    assert ablated(sets, "random_2", "c") == (5, 6)
    assert ablated(sets, "held_out", "a") == ablated(sets, "held_out", "b") == (2, 8)
    assert ablated(sets, "held_out", "c") == (1, 7)
    with pytest.raises(ValueError, match="'held_out' for prompt 'd'"):
        ablated(sets, "held_out", "d")


def held_out(planted, first, second):
    """AUC of the latents `first` on the second half of the pairs, and of `second` on the first."""
    _, maxima, pairs = planted
    prompts = set(PROMPTS[:10])
    sides = [
        np.array([x.response_of in prompts for x in pairs]),
        np.array([x.response_of not in prompts for x in pairs]),
    ]
    halves = [
        (maxima[side], [x for x, there in zip(pairs, side, strict=True) if there], latents)
        for side, latents in zip(sides, (second, first), strict=True)
    ]
    return detectors.held_out_auc(halves, n_bootstrap=400, seed=1)


def test_detectors_of_one_half_are_measured_on_the_other(planted):
    good, noise, inverse = (
        held_out(planted, [0, 1], [1, 2]),
        held_out(planted, [10, 11], [12]),
        held_out(planted, [3], [3]),
    )
    assert good.low > 0.8 and noise.low < 0.5 < noise.high and inverse.high < 0.2
    assert good.n == len(planted[2])


def test_activity_is_compared_within_a_half_alone(planted):
    """Latents of another scale in the other half do not count as louder."""
    _, maxima, pairs = planted
    scaled = maxima.copy()
    scaled[:, 11] = 1000 * scaled[:, 10]
    found = held_out((None, scaled, pairs), [10], [11])
    assert found.estimate == pytest.approx(held_out((None, scaled, pairs), [10], [10]).estimate)
