"""Restarts are compared with cuts that are none, improvements with worsenings, and whole responses with themselves."""

import numpy as np
import pytest
from conftest import judgement

from esr.statistics.metrics import table
from esr.statistics.outcomes import cut_table, placebo, recovered, summarize
from esr.storage.records import Cut

INTERVAL = {"n_bootstrap": 400, "seed": 1}


def plain(latent, seed, cuts, thirds=(50.0, 50.0, 50.0), score=50.0, condition="steered"):
    """A response that never restarts, of 100 characters."""
    made = judgement(latent=latent, seed=seed, scores=(score,), condition=condition)
    attempts = [made.attempts[0].model_copy(update={"end": 100})]
    cuts = [Cut(at=at, before=before, after=after) for at, before, after in cuts]
    return made.model_copy(update={"attempts": attempts, "cuts": cuts, "thirds": list(thirds)})


def restarting(latent, seed, scores, starts=(50,), thirds=(50.0, 50.0, 50.0)):
    made = judgement(latent=latent, seed=seed, scores=scores)
    bounds = [0, *starts, 100]
    attempts = [a.model_copy(update={"start": bounds[i], "end": bounds[i + 1]}) for i, a in enumerate(made.attempts)]
    return made.model_copy(update={"attempts": attempts, "thirds": list(thirds)})


def outcomes(rows):
    return summarize(table(rows), cut_table(rows), **INTERVAL)


def test_restarts_that_are_arbitrary_cuts_show_nothing_above_their_placebo():
    """The same distribution of scores on both sides, whether something restarts or not."""
    rng = np.random.default_rng(0)
    rows = []
    for latent in range(120):
        for seed in range(8):
            before, after = rng.uniform(0, 100, 2)
            if seed < 4:
                rows.append(restarting(latent, seed, (before, after)))
            else:
                rows.append(plain(latent, seed, [(50, before, after)]))
    found = outcomes(rows)
    assert found["placebo_rate"].estimate == pytest.approx(0.25, abs=0.03)
    low, high = found["esr_above_placebo"].bounds
    assert low < 0 < high and high - low < 0.12
    low, high = found["net_esr_rate"].bounds
    assert low < 0 < high


def test_restarts_that_recover_stand_above_their_placebo():
    rng = np.random.default_rng(0)
    rows = [restarting(x, 0, (rng.uniform(0, 40), rng.uniform(60, 100))) for x in range(20)]
    rows += [plain(x, 1, [(50, *rng.uniform(0, 40, 2))]) for x in range(20)]
    found = outcomes(rows)
    assert found["esr_above_placebo"].low > 0.15 and found["net_esr_rate"].low > 0.3
    assert found["esr_above_placebo"].estimate == pytest.approx(0.5 - found["placebo_rate"].estimate)


def test_a_placebo_is_cut_where_the_response_restarts_and_begins_as_well_as_it():
    rows = [restarting(1, 0, (20.0, 80.0), starts=(80,))]
    rows += [plain(2, i, [(20, 20.0, 90.0), (80, 20.0, 10.0)]) for i in range(12)]  # better early, worse late
    rows += [plain(3, i, [(80, 90.0, 99.0)]) for i in range(12)]  # improves, but from another score
    assert placebo(table(rows), cut_table(rows))[0] == 0
    rows[0] = restarting(1, 0, (20.0, 80.0), starts=(20,))
    assert placebo(table(rows), cut_table(rows))[0] == 1


def test_a_response_with_several_restarts_is_matched_at_the_first_and_the_last():
    rows = [restarting(1, 0, (20.0, 5.0, 60.0), starts=(20, 80))]
    rows += [plain(2, i, [(20, 20.0, 0.0), (80, 90.0, 30.0)]) for i in range(12)]
    assert placebo(table(rows), cut_table(rows))[0] == 1


def test_placebos_are_of_the_same_condition_and_without_any_nothing_is_claimed():
    rows = [restarting(1, 0, (20.0, 80.0)), plain(2, 0, [(50, 20.0, 90.0)], condition="unsteered")]
    assert np.isnan(placebo(table(rows), cut_table(rows))[0])
    assert outcomes(rows[:1])["placebo_rate"].n == 0


def test_small_changes_count_neither_way_and_worsening_counts_against():
    rows = [restarting(x, 0, (50.0, last)) for x, last in enumerate((55.0, 45.0, 61.0, 39.0, 90.0))]
    assert outcomes(rows)["net_esr_rate"].estimate == pytest.approx((2 - 1) / 5)


def test_a_whole_response_recovers_with_or_without_words():
    thirds = {"returns": (10.0, 40.0, 80.0), "stays off": (10.0, 20.0, 30.0), "never left": (80.0, 80.0, 90.0)}
    rows = [plain(i, 0, [], thirds=values) for i, values in enumerate(thirds.values())]
    rows.append(restarting(9, 0, (10.0, 80.0), thirds=thirds["returns"]))
    assert recovered(table(rows)).tolist() == [True, False, False, True]
    found = outcomes(rows)
    assert found["recovery_rate"].estimate == 0.5 and found["silent_recovery_rate"].estimate == 0.25
