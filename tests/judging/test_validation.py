"""A judge is measured against what the annotators agree on; a perfect judge and a blind one come out as such."""

import numpy as np
import pytest

from esr.judging.labels import Labelled
from esr.judging.restarts import Restart
from esr.judging.validation import (
    as_judgements,
    as_trials,
    by_decile,
    ceiling,
    matched_auc,
    measure,
    of_cases,
    of_recovery,
    spearman,
)
from esr.statistics.estimates import Estimate
from esr.storage.records import Annotation, RestartCase, SampledResponse

TEXT = "The horses run over the wide field. Wait, bread was asked. Mix the flour and the water."
START = TEXT.index("Wait")
INTERVAL = {"confidence": 0.95, "n_bootstrap": 200, "seed": 1}


def row(i, *annotations):
    response = SampledResponse(
        id=f"r{i}", part="develop", origin="run", model="m", condition="steered", boost=0.4, latent=1, label="horses",
        prompt_id="p", prompt="Explain how to bake bread.", text=TEXT, probability=0.5,
    )  # fmt: skip
    return Labelled(response, tuple(
        Annotation(id=f"r{i}", annotator=str(k), starts=starts, scores=scores, recovered=False)
        for k, (starts, scores) in enumerate(annotations)
    ))  # fmt: skip


ROWS = [
    row(0, ([START], [4.0, 60.0]), ([START + 2], [8.0, 50.0])),
    row(1, ([START], [40.0, 10.0]), ([START], [30.0, 12.0])),
    row(2, ([], [30.0]), ([], [26.0])),
    row(3, ([], [80.0]), ([START], [90.0, 70.0])),
]


def judged(*attempts):
    """Judgements with these (starts, scores)."""
    rows = [row(i, attempts_of_one) for i, attempts_of_one in enumerate(attempts)]
    return as_judgements(rows, 0)


def test_a_judge_that_says_what_the_annotators_say_is_perfect():
    same = judged(([START], [6.0, 55.0]), ([START], [35.0, 11.0]), ([], [28.0]), ([], [85.0]))
    found = measure(ROWS, same, **INTERVAL)
    assert (found["n"], found["n_restarts"], found["n_directions"]) == (4, 2, 2)
    assert found["restart_precision"].estimate == found["restart_recall"].estimate == 1
    assert found["multi_attempt_kappa"] == found["direction_kappa"] == 1
    assert found["score_spearman"].estimate == pytest.approx(1) and found["score_error"].estimate == 0
    assert found["middle_error"].estimate == 0 and found["middle_error"].n == 2


def test_misses_false_alarms_and_a_kinder_scale_are_seen():
    other = judged(([], [36.0]), ([START], [65.0, 70.0]), ([5], [58.0, 60.0]), ([START], [100.0, 9.0]))
    found = measure(ROWS, other, **INTERVAL)
    assert found["restart_recall"].estimate == 0.5
    assert found["restart_precision"].estimate == pytest.approx(2 / 3)  # one annotator found that of the last response
    assert found["multi_attempt_recall"].estimate == 0.5  # of responses in which all annotators found one
    assert (found["multi_attempt_precision"].estimate, found["multi_attempt_precision"].n) == (pytest.approx(2 / 3), 3)
    assert found["score_error"].estimate == pytest.approx((30 + 30 + 30 + 15) / 4)
    assert found["middle_error"].estimate == pytest.approx(6 - 36)
    assert found["direction_kappa"] is None and found["n_directions"] == 1


def test_responses_without_a_score_are_counted_and_left_out():
    some = judged(([], [6.0]), ([], [35.0]), ([], [28.0]), ([], [85.0]))
    some[2] = some[2].model_copy(update={"outcome": "parse_failure", "attempts": []})
    found = measure(ROWS, some, **INTERVAL)
    assert (found["n"], found["n_scored"], found["score_error"].n) == (4, 3, 3)
    with pytest.raises(ValueError, match="not of the same responses"):
        measure(ROWS, some[:3], **INTERVAL)


def test_agreement_by_hand_and_the_annotators_among_themselves():
    other = judged(([], [36.0]), ([START], [65.0, 70.0]), ([5], [58.0, 60.0]), ([START], [100.0, 9.0]))
    found = measure(ROWS, other, **INTERVAL)
    assert found["multi_attempt_agreement"].estimate == 0.25  # of the second alone; a disputed restart counts as none
    assert (found["direction_agreement"].estimate, found["direction_agreement"].n) == (0.0, 1)
    theirs = ceiling(ROWS, **INTERVAL)
    assert (theirs["restart_recall"].estimate, theirs["restart_precision"].estimate) == (1.0, pytest.approx(2 / 3))
    assert theirs["score_error"].estimate == pytest.approx((4 + 10 + 4 + 10) / 4)


def test_restarts_of_written_cases_by_hand():
    cases = [
        RestartCase(id="a", part="report", kind="k", prompt="p", text=TEXT, starts=[START]),
        RestartCase(id="b", part="report", kind="k", prompt="p", text=TEXT, starts=[START]),
        RestartCase(id="c", part="report", kind="k", prompt="p", text=TEXT, starts=[]),
    ]
    found = of_cases(cases, [[Restart(START + 3, "Wait")], [Restart(0, "The")], []], **INTERVAL)
    assert (found["restart_precision"].estimate, found["restart_precision"].n) == (0.5, 2)
    assert (found["restart_recall"].estimate, found["restart_recall"].n) == (0.5, 2)


def test_recovery_of_whole_responses_is_measured_where_annotators_agree():
    rows = [row(i, ([], [20.0]), ([], [20.0])) for i in range(4)]
    rows = [
        Labelled(
            r.response,
            tuple(
                a.model_copy(update={"recovered": i in chosen})
                for a, chosen in zip(r.annotations, ({0, 1, 2}, {0, 1}), strict=True)
            ),
        )
        for i, r in enumerate(rows)
    ]
    thirds = [[10.0, 20.0, 60.0], [10.0, 20.0, 30.0], [10.0, 20.0, 60.0], [60.0, 60.0, 95.0]]
    made = [j.model_copy(update={"thirds": t}) for j, t in zip(as_judgements(rows, 0), thirds, strict=True)]
    found = of_recovery(rows, made, **INTERVAL)
    assert (found["precision"].estimate, found["precision"].n) == (0.5, 2)  # the third is disputed
    assert (found["recall"].estimate, found["recall"].n) == (0.5, 2)


def test_trials_carry_what_a_judge_may_see():
    trial = as_trials(ROWS)[0]
    assert (trial.id, trial.prompt, trial.text, trial.label) == ("r0", "Explain how to bake bread.", TEXT, "horses")


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
        for t, p in zip([*as_trials(ROWS), *as_trials(ROWS[:1])], "vwxyz", strict=True)
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

    model = [*as_trials(ROWS), *as_trials(ROWS[:1])][0]
    responses = [model.model_copy(update={"prompt": f"p{p}"}) for p in prompt_of]
    found = matched_auc(Drawn(), responses, {f"p{p}": "other" for p in range(6)}, **INTERVAL)
    assert found.estimate == pytest.approx(area(np.arange(6)))
    assert (found.low, found.high) == interval((np.arange(6),), area)
