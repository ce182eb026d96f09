"""Measuring a judge against annotators, by hand on small sets."""

import numpy as np
import pytest

from esr.judging.annotations import as_judgements, as_trials, by_decile, matched_auc, measure, spearman
from esr.statistics.estimates import Estimate
from esr.storage.records import AnnotatedResponse

INTERVAL = {"confidence": 0.95, "n_bootstrap": 200, "seed": 0}
TEXT = "a" * 100


def response(number, starts=(), scores=(50.0,), near_miss=False, part="report"):
    return AnnotatedResponse(
        id=f"g{number}", part=part, model="m", condition="steered", boost=0.4, prompt="p", label="l",
        text=f"{number} {TEXT}", starts=list(starts), scores=list(scores), near_miss=near_miss, n_annotations=2,
    )  # fmt: skip


def judged(annotated, starts, scores):
    """A judge that begins attempts at `starts` and gives the first attempt `scores`."""
    given = [
        response(i, later, [score, *[50.0] * len(later)])
        for i, (later, score) in enumerate(zip(starts, scores, strict=True))
    ]
    return [j.model_copy(update={"trial_id": x.id}) for j, x in zip(as_judgements(given), annotated, strict=True)]


ANNOTATED = [
    response(0, [40], [10, 80]),
    response(1, [40, 70], [20, 30, 40]),
    response(2, scores=[90], near_miss=True),
    response(3, scores=[60], near_miss=True),
    response(4, scores=[70]),
]


def test_the_annotators_agree_with_themselves():
    result = measure(ANNOTATED, as_judgements(ANNOTATED), **INTERVAL)
    for name in ("restart_precision", "restart_recall", "multi_attempt_precision", "multi_attempt_recall"):
        assert result[name].estimate == 1.0
    assert result["score_spearman"].estimate == pytest.approx(1.0)
    assert result["near_miss_false_rate"].estimate == 0.0 and result["near_miss_false_rate"].n == 2
    assert result["n"] == 5 and result["n_unscored"] == 0


def test_precision_and_recall_by_hand():
    """Found: one near, one ten characters off, one far off, one in a near miss; missed: one of response 1."""
    judge = judged(ANNOTATED, [[45], [30], [50], [], []], [1, 2, 3, 4, 5])
    result = measure(ANNOTATED, judge, **INTERVAL)
    assert (result["restart_precision"].estimate, result["restart_precision"].n) == (2 / 3, 3)
    assert (result["restart_recall"].estimate, result["restart_recall"].n) == (2 / 3, 3)
    assert result["multi_attempt_precision"].estimate == 2 / 3
    assert result["multi_attempt_recall"].estimate == 1.0
    assert result["near_miss_false_rate"].estimate == 0.5
    eleven_off = measure(ANNOTATED, judged(ANNOTATED, [[51], [], [], [], []], [1, 2, 3, 4, 5]), **INTERVAL)
    assert eleven_off["restart_precision"].estimate == 0.0
    assert eleven_off["multi_attempt_precision"].estimate == 1.0


def test_a_response_without_verdict_is_counted_and_left_out():
    judge = as_judgements(ANNOTATED)
    judge[1] = judge[1].model_copy(update={"outcome": "parse_failure", "attempts": []})
    result = measure(ANNOTATED, judge, **INTERVAL)
    assert result["n_unscored"] == 1 and result["restart_recall"].n == 1 and result["score_spearman"].n == 4


def test_a_judge_that_scored_nothing_has_nulls_and_every_response_counted():
    silent = [j.model_copy(update={"outcome": "run_error", "attempts": []}) for j in as_judgements(ANNOTATED)]
    result = measure(ANNOTATED, silent, **INTERVAL)
    assert (result["n"], result["n_unscored"], result["by_decile"]) == (5, 5, [])
    assert result["restart_recall"].n == 0 and result["score_spearman"].estimate is None


def test_judgements_of_other_responses_are_refused():
    with pytest.raises(ValueError, match="in the same order"):
        measure(ANNOTATED, as_judgements(ANNOTATED)[::-1], **INTERVAL)


def test_correlation_is_unknown_where_nothing_varies():
    assert spearman([1, 2, 3], [5, 5, 5], **INTERVAL) == Estimate(None, None, None, 3)


def test_deciles_hold_every_response_once_in_order():
    annotators = np.arange(100.0)
    rows = by_decile(annotators, annotators / 2)
    assert [row["n"] for row in rows] == [10] * 10
    assert rows[0] == {"annotators": 4.5, "judge": 2.25, "n": 10}


def test_matched_area_compares_the_same_response_under_two_prompts():
    class Prompted:
        def score(self, prompts, texts, labels):
            return np.array([100.0 * (prompt in text) for prompt, text in zip(prompts, texts, strict=True)])

    responses = [
        t.model_copy(update={"prompt": p, "text": f"about {p}"})
        for t, p in zip(as_trials(ANNOTATED), "vwxyz", strict=True)
    ]
    foreign = dict(zip("vwxyz", "wxyzv", strict=True))
    assert matched_auc(Prompted(), responses, foreign, **INTERVAL).estimate == 1.0
    assert matched_auc(Prompted(), responses, {p: p for p in "vwxyz"}, **INTERVAL).estimate == 0.5


def test_intervals_are_those_of_one_resample_after_another():
    """All at once by a formula, or each by the library: the same draws, the same ends."""
    from scipy.stats import bootstrap, spearmanr
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(3)
    one = rng.normal(size=30)
    other = one + rng.normal(size=30)
    scores = rng.integers(0, 5, (2, 40)).astype(float)  # with ties
    prompt_of = rng.permutation(np.arange(40) % 6)

    def interval(samples, statistic, **paired):
        ends = bootstrap(
            samples, statistic, vectorized=False, method="percentile", confidence_level=INTERVAL["confidence"],
            n_resamples=INTERVAL["n_bootstrap"], rng=np.random.default_rng(INTERVAL["seed"]), **paired,
        ).confidence_interval  # fmt: skip
        return pytest.approx((ends.low, ends.high))

    found = spearman(one, other, **INTERVAL)
    assert (found.low, found.high) == interval((one, other), lambda a, b: spearmanr(a, b).statistic, paired=True)

    class Drawn:
        rows = iter(scores)

        def score(self, prompts, texts, labels):
            return next(self.rows)

    def area(drawn):
        chosen = np.concatenate([np.flatnonzero(prompt_of == p) for p in drawn.astype(int)])
        return roc_auc_score(np.repeat([1, 0], len(chosen)), scores[:, chosen].ravel())

    model = as_trials(ANNOTATED)[0]
    responses = [model.model_copy(update={"prompt": f"p{p}"}) for p in prompt_of]
    found = matched_auc(Drawn(), responses, {f"p{p}": "other" for p in range(6)}, **INTERVAL)
    assert found.estimate == pytest.approx(area(np.arange(6)))
    assert (found.low, found.high) == interval((np.arange(6),), area)
