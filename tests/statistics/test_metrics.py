import pandas as pd
import pytest
from conftest import judgement

from esr.statistics import metrics
from esr.statistics.estimates import NOTHING

# Ten trials of four latents by hand: 3 restarts, 2 of them improve, one is a tie; 2 more cannot be scored.
BY_HAND = [
    judgement(1, 0, (20.0, 60.0)),
    judgement(1, 1, (40.0,)),
    judgement(1, 2, (30.0,)),
    judgement(2, 0, (50.0, 50.0)),
    judgement(2, 1, (10.0,), degraded=True),
    judgement(3, 0, (10.0, 90.0, 30.0), degraded=True),
    judgement(3, 1, (60.0,)),
    judgement(4, 0, (20.0,)),
    judgement(4, 1, (), outcome="empty"),
    judgement(4, 2, (15.0, None)),
]


def test_rates_by_hand():
    result = metrics.rates(metrics.table(BY_HAND))
    assert (result["multi_attempt_rate"].estimate, result["multi_attempt_rate"].n) == (3 / 8, 8)
    assert (result["improvement_rate"].estimate, result["improvement_rate"].n) == (2 / 3, 3)
    assert (result["esr_rate"].estimate, result["esr_rate"].n) == (2 / 8, 8)
    assert result["first_attempt_score"].estimate == pytest.approx(240 / 8)


def test_unscored_trials_are_counted_and_in_no_rate():
    entry = metrics.summarize(metrics.table(BY_HAND))
    assert (entry["n_trials"], entry["n_unscored"], entry["n_empty"], entry["n_run_error"]) == (10, 2, 1, 0)
    assert entry["degraded_rate"].n == entry["multi_attempt_rate"].n == entry["n_trials"] - entry["n_unscored"]


def test_a_restart_whose_last_score_is_missing_is_unscored_not_unimproved():
    frame = metrics.table([judgement(1, 0, (15.0, None))])
    assert not metrics.scored(frame).any()
    assert metrics.rates(frame)["improvement_rate"].n == 0


def test_last_attempt_decides_not_the_best():
    frame = metrics.table([judgement(1, 0, (50.0, 90.0, 40.0)), judgement(1, 1, (50.0, 10.0, 60.0))])
    assert metrics.esr(frame).tolist() == [False, True]


def test_a_tie_is_no_improvement():
    assert not metrics.improved(metrics.table([judgement(1, 0, (50.0, 50.0))])).any()


def test_without_degraded_leaves_them_out_of_every_rate():
    entry = metrics.summarize(metrics.table(BY_HAND))
    assert entry["degraded_rate"].estimate == 2 / 8
    clean = entry["without_degraded"]
    assert (clean["multi_attempt_rate"].estimate, clean["multi_attempt_rate"].n) == (2 / 6, 6)
    assert clean["esr_rate"].estimate == 1 / 6
    assert set(clean) == {"multi_attempt_rate", "improvement_rate", "esr_rate", "first_attempt_score"}


def test_no_restart_gives_a_null_improvement_rate():
    entry = metrics.summarize(metrics.table([judgement(latent) for latent in range(5)]))
    assert entry["improvement_rate"] == NOTHING
    assert entry["esr_rate"].estimate == 0.0


def test_nothing_scored_gives_nulls_not_an_error():
    entry = metrics.summarize(metrics.table([judgement(1, 0, (), outcome="run_error")]))
    assert (entry["n_trials"], entry["n_unscored"], entry["n_run_error"]) == (1, 1, 1)
    assert entry["multi_attempt_rate"].estimate is None and entry["first_attempt_score"].estimate is None


def test_what_went_wrong_is_counted_by_kind():
    kinds = ["empty", *["run_error"] * 2, *["parse_failure"] * 3, *["truncated"] * 4]
    rows = [judgement(i, 0, (), outcome=kind) for i, kind in enumerate(kinds)]
    unsure = [judgement(20 + i, 0, unverified=i) for i in range(3)]
    entry = metrics.summarize(metrics.table(rows + unsure))
    counts = [entry[f"n_{kind}"] for kind in ("empty", "run_error", "parse_failure", "truncated")]
    assert counts == [1, 2, 3, 4] and entry["n_unscored"] == 10
    assert entry["n_unverified_segments"] == 3


def test_worst_cases_by_hand():
    """Six known trials, 2 restart, 1 of them improves; 2 missing; an empty response is known to hold no attempt."""
    rows = [
        judgement(1, 0, (20.0, 60.0)),
        judgement(1, 1, (50.0, 40.0)),
        *(judgement(2, i, (30.0,)) for i in range(4)),
        judgement(3, 0, (), outcome="parse_failure"),
        judgement(3, 1, (10.0, None)),  # restarts, without a score to say whether it improves
        judgement(3, 2, (), outcome="empty"),
    ]
    result = metrics.worst_cases(metrics.table(rows), n_bootstrap=200)
    assert result["n_missing"] == 2
    shown = {
        rate: [(case.estimate, case.n) for case in result[rate].values()] for rate in ("multi_attempt_rate", "esr_rate")
    }
    assert shown["multi_attempt_rate"] == [(2 / 6, 6), (2 / 8, 8), (4 / 8, 8)]
    assert shown["esr_rate"] == [(1 / 6, 6), (1 / 8, 8), (3 / 8, 8)]


def test_worst_cases_are_the_rates_when_nothing_is_missing():
    frame = metrics.table(BY_HAND[:-2])
    known = metrics.rates(frame)
    for rate, cases in metrics.worst_cases(frame).items():
        assert cases == 0 if rate == "n_missing" else all(case == known[rate] for case in cases.values())


def test_a_trial_judged_twice_is_refused():
    with pytest.raises(ValueError, match="1 trials are judged twice"):
        metrics.table([judgement(1, 0), judgement(1, 0, (10.0,))])


def test_conditions_are_not_mixed():
    frame = metrics.table([judgement(1, 0), judgement(1, 0, condition="unsteered")])
    with pytest.raises(ValueError, match="2 conditions"):
        metrics.summarize(frame)


def test_summaries_have_one_entry_a_model_and_condition():
    rows = [judgement(1, 0, model=m, condition=c) for m in ("b", "a") for c in ("unsteered", "steered")]
    result = metrics.summaries(metrics.table(rows))
    assert {model: list(conditions) for model, conditions in result.items()} == {
        "b": ["unsteered", "steered"],
        "a": ["unsteered", "steered"],
    }


def test_intervals_are_clustered_by_latent():
    restarts = [
        judgement(latent, seed, (10.0, 50.0) if latent < 3 else (10.0,)) for latent in range(24) for seed in range(8)
    ]
    entry = metrics.summarize(metrics.table(restarts), n_bootstrap=1000)
    shown, naive = entry["multi_attempt_rate"], entry["unclustered"]["multi_attempt_rate"]
    assert shown.estimate == naive.estimate == 0.125
    assert shown.high - shown.low > 2 * (naive.high - naive.low)


def test_interval_options_reach_every_interval():
    frame = metrics.table(BY_HAND)
    narrow, wide = (
        metrics.summarize(frame, confidence=0.5, n_bootstrap=500),
        metrics.summarize(frame, confidence=0.99, n_bootstrap=500),
    )
    for name in ("multi_attempt_rate", "first_attempt_score", "degraded_rate"):
        assert wide[name].high - wide[name].low > narrow[name].high - narrow[name].low
    assert wide["unclustered"]["esr_rate"].high > narrow["unclustered"]["esr_rate"].high


def test_table_of_nothing_keeps_its_columns():
    frame = metrics.table([])
    assert list(frame.columns) == metrics.COLUMNS
    assert isinstance(frame, pd.DataFrame) and metrics.summaries(frame) == {}
