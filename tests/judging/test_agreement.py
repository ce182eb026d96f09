import pytest
from conftest import judgement

from esr.judging.agreement import above, compare, disagreements, higher, pairwise, surviving
from esr.statistics import metrics
from esr.statistics.estimates import NOTHING, Estimate


def frame(*scores, latents=None, outcome="scored"):
    """A judge's table of trials 0, 1, ...; `None` for a trial it could not score."""
    rows = []
    for seed, attempts in enumerate(scores):
        latent = latents[seed] if latents else seed
        rows.append(judgement(latent, seed, attempts or (), outcome="scored" if attempts else "parse_failure"))
    return metrics.table(rows)


# Eight trials by hand: both restart in 0-2 (directions: same, same, opposite), one alone in 3 and 4, neither in 5, 6;
# the other judge could not score trial 7.
ONE = frame((10, 60), (50, 20), (10, 30), (10, 90), (40,), (30,), (20,), (80,))
OTHER = frame((20, 70), (60, 60), (40, 30), (15,), (45, 50), (35,), (25,), None)


def test_agreement_by_hand():
    result = compare(ONE, OTHER)
    assert (result["n_trials"], result["n_compared"]) == (8, 7)
    assert (result["multi_attempt_agreement"].estimate, result["multi_attempt_agreement"].n) == (5 / 7, 7)
    assert (result["direction_agreement"].estimate, result["direction_agreement"].n) == (2 / 3, 3)
    observed, expected = 5 / 7, (4 * 4 + 3 * 3) / 49
    assert result["multi_attempt_kappa"] == pytest.approx((observed - expected) / (1 - expected))
    # first scores 10 50 10 10 40 30 20 have the ranks 2 7 2 2 6 5 4, those of the other judge 2 7 5 1 6 4 3
    assert result["first_score_spearman"] == pytest.approx(21 / (26 * 28) ** 0.5)


def test_agreement_does_not_depend_on_the_order_of_judges_or_rows():
    shuffled = OTHER.sample(frac=1, random_state=0)
    expected = compare(ONE, OTHER, n_bootstrap=200)
    assert compare(ONE, shuffled, n_bootstrap=200) == expected
    back = compare(shuffled, ONE, n_bootstrap=200)
    assert back.pop("first_score_spearman") == pytest.approx(expected.pop("first_score_spearman"))
    assert back == expected


def test_a_judge_agrees_with_itself():
    result = compare(ONE, ONE)
    assert result["multi_attempt_agreement"].estimate == result["direction_agreement"].estimate == 1.0
    assert result["multi_attempt_kappa"] == result["first_score_spearman"] == pytest.approx(1.0)


def test_where_nothing_varies_kappa_and_correlation_are_unknown_not_perfect():
    flat = frame((50,), (50,), (50,))
    result = compare(flat, flat)
    assert result["multi_attempt_agreement"].estimate == 1.0
    assert result["multi_attempt_kappa"] is None and result["first_score_spearman"] is None
    assert result["direction_agreement"] == NOTHING


def test_nothing_in_common_gives_nulls():
    result = compare(frame((50,), None), frame(None, (50,)))
    assert (result["n_trials"], result["n_compared"]) == (2, 0)
    assert result["multi_attempt_agreement"].n == 0 and result["multi_attempt_kappa"] is None
    assert disagreements(frame((50,), None), frame(None, (50,))).empty


def test_intervals_are_clustered_by_latent():
    """The same disagreements, in few latents or in many."""
    one = frame(*[(50,)] * 48, latents=[i // 8 for i in range(48)])
    other = frame(*[(50, 60)] * 8, *[(50,)] * 40, latents=[i // 8 for i in range(48)])
    clustered = compare(one, other, n_bootstrap=1000)["multi_attempt_agreement"]
    spread = compare(one.assign(latent=range(48)), other.assign(latent=range(48)), n_bootstrap=1000)
    assert clustered.estimate == spread["multi_attempt_agreement"].estimate
    assert clustered.low < spread["multi_attempt_agreement"].low - 0.05


def test_disagreements_are_named_with_both_judges_scores():
    listed = disagreements(ONE, OTHER)
    assert list(zip(listed.seed, listed.dispute, strict=True)) == [
        (2, "direction"),
        (3, "multi-attempt"),
        (4, "multi-attempt"),
    ]
    row = listed.iloc[0]
    assert (row.attempts_one, row.last_score_one, row.first_score_other, row.last_score_other) == (2, 30, 40, 30)


def test_every_two_judges_are_compared():
    assert list(pairwise({"a": ONE, "b": OTHER, "c": ONE})) == ["a / b", "a / c", "b / c"]
    with pytest.raises(ValueError, match="two judges or more; there is a"):
        pairwise({"a": ONE})


def test_a_conclusion_survives_only_with_every_judge():
    summaries = {name: metrics.summaries(judge, n_bootstrap=200) for name, judge in {"a": ONE, "b": OTHER}.items()}

    def rate(summary, name):
        return summary["tiny"]["steered"][name].estimate

    result = surviving(
        summaries,
        {
            "responses restart": lambda s: rate(s, "multi_attempt_rate") > 0,
            "restarts mostly improve": lambda s: rate(s, "improvement_rate") > 0.6,
            "cannot say": lambda s: None,
        },
    )
    assert result["responses restart"] == {"holds": {"a": True, "b": True}, "survives": True}
    assert result["restarts mostly improve"] == {"holds": {"a": True, "b": False}, "survives": False}
    assert result["cannot say"] == {"holds": {"a": None, "b": None}, "survives": False}
    with pytest.raises(ValueError, match="No judge's summary"):
        surviving({}, {"anything": lambda s: True})


def test_conclusions_compare_conditions_and_stay_open_without_numbers():
    def numbers(one, other):
        return {
            "steered": {"rate": Estimate(one, None, None, 9)},
            "unsteered": {"rate": Estimate(other, None, None, 9)},
        }

    more = higher("rate", "steered", "unsteered")
    assert (more(numbers(0.2, 0.1)), more(numbers(0.1, 0.1)), more(numbers(None, 0.1))) == (True, False, None)
    half = above("rate", "steered", 0.5)
    assert (half(numbers(0.6, 0)), half(numbers(0.5, 0)), half(numbers(None, 0))) == (True, False, None)
