"""Detectors are found where neither their prompts nor their latents are measured; planted ones are found."""

import numpy as np
import pytest

from esr.experiments import crossfit
from esr.experiments.detectors import match_random
from esr.steering.activations import Activity

PROMPTS = [f"p{i % 8}" for i in range(96)]
LATENTS = [i // 8 for i in range(96)]


def test_opposite_parts_share_neither_prompt_nor_latent():
    parts = crossfit.parts_of(PROMPTS, LATENTS, seed=3)
    assert sorted(set(parts.tolist())) == [0, 1, 2, 3]
    topic = np.where(np.arange(96) % 3 == 0, 1, -1)
    for part in range(4):
        mask = crossfit.training_part(parts, topic, part)
        for values in (PROMPTS, LATENTS):
            there = {v for v, inside in zip(values, mask, strict=True) if inside}
            assert there and not there & {v for v, q in zip(values, parts, strict=True) if q == part}


def test_a_part_without_both_kinds_takes_all_others_and_nothing_is_refused():
    parts, topic = np.array([0, 1, 2, 3]), np.array([-1, 1, -1, -1])
    assert crossfit.training_part(parts, topic, 0).tolist() == [False, True, True, True]
    with pytest.raises(ValueError, match="Outside part 1 no response is off topic, or none on topic"):
        crossfit.training_part(parts, topic, 1)


def test_topics_are_by_score_or_else_by_halves():
    scores = [10, 20, 50, 70, 90]
    assert crossfit.topics(scores, 40, 60, 2).tolist() == [-1, -1, 0, 1, 1]
    assert crossfit.topics([10, 20, 30, 35], 40, 60, 1).tolist() == [-1, -1, 1, 1]


def test_a_planted_detector_is_found_and_a_steered_latent_is_not():
    draw = np.random.default_rng(0)
    topic = np.where(draw.random(96) < 0.5, -1, 1)
    maxima = draw.exponential(size=(96, 40))
    maxima[:, [4, 9]] += 3.0 * (topic < 0)[:, None]
    found = crossfit.off_topic_detectors(maxima, topic, np.ones(96, bool), 3, excluded=[9])
    assert found[0] == 4 and 9 not in found
    area = crossfit.held_out_auc(maxima[:, 4], topic, LATENTS, crossfit.parts_of(PROMPTS, LATENTS, 3), n_bootstrap=200)
    assert area.low > 0.8 and area.n == 96


def test_attributed_detectors_are_those_whose_ablation_lowers_propensity():
    attributions = np.array([[-1.0, 0.5, -3.0, -2.0], [-1.0, 0.5, -3.0, 9.0]])
    assert crossfit.attributed_detectors(attributions, np.array([True, True]), 3, [2]) == [0]
    assert crossfit.attributed_detectors(attributions, np.array([True, False]), 2, []) == [2, 3]


def test_probes_read_a_direction_that_is_there_on_the_other_part():
    draw = np.random.default_rng(1)
    topic = np.where(draw.random(96) < 0.5, -1, 1)
    streams = [draw.normal(size=(2, 6)) + 2.0 * (t < 0) * np.eye(6)[0] for t in topic]
    parts = crossfit.parts_of(PROMPTS, LATENTS, 3)
    for scores in crossfit.probe_scores(streams, topic, parts).values():
        assert crossfit.held_out_auc(scores, topic, LATENTS, parts, n_bootstrap=200).low > 0.75


def test_random_sets_that_may_share_latents_match_every_column():
    draw = np.random.default_rng(2)
    frequency = np.exp(draw.uniform(np.log(1e-3), np.log(0.5), size=600))
    activity, share = Activity(frequency, frequency * 2, tokens=5000), draw.normal(size=(600, 1))
    chosen = list(range(0, 260, 10))
    sets = match_random(activity, chosen, [1, 2], 100, seed=3, columns=5 * share, disjoint=False)
    assert len(sets) == 100 and all(len(set(latents)) == 26 for latents in sets)
    assert not {x for latents in sets for x in latents} & {1, 2, *chosen}
    off = [abs(share[np.array(latents), 0] - share[chosen, 0]).mean() for latents in sets]
    free = match_random(activity, chosen, [1, 2], 100, seed=3, disjoint=False)
    assert np.mean(off) < 0.3 * np.mean([abs(share[np.array(x), 0] - share[chosen, 0]).mean() for x in free])
