"""A judge is measured against what the annotators agree on; a perfect judge and a blind one come out as such."""

import pytest

from esr.judging.labels import Labelled
from esr.judging.validation import as_judgements, as_trials, measure
from esr.storage.records import Annotation, SampledResponse

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


def test_trials_carry_what_a_judge_may_see():
    trial = as_trials(ROWS)[0]
    assert (trial.id, trial.prompt, trial.text, trial.label) == ("r0", "Explain how to bake bread.", TEXT, "horses")
