"""Conditions are compared on the same trials; responses and judgements on disk belong together."""

import pandas as pd
import pytest

from esr.experiments.run import converged, paired, read_pair
from esr.statistics import metrics
from esr.storage.files import write_rows
from esr.storage.records import Attempt, Judgement, Threshold, Trial


def judgement(condition, latent, prompt, scores=(50.0,), seed=1, outcome="scored"):
    attempts = [Attempt(start=i, end=i + 1, restart="Wait, no." if i else "", score=s) for i, s in enumerate(scores)]
    return Judgement(
        trial_id=f"{condition}-{latent}-{prompt}-{seed}", model="m", condition=condition, latent=latent,
        prompt_id=prompt, seed=seed, judge="j", outcome=outcome, attempts=attempts, degraded=False,
    )  # fmt: skip


def test_only_trials_of_both_conditions_are_compared_and_in_the_same_order():
    rows = [judgement("steered", 1, "a"), judgement("steered", 1, "b"), judgement("steered", 2, "a", (20.0, 80.0))]
    rows += [
        judgement("monitor_yourself", 2, "a", (10.0,)),
        judgement("monitor_yourself", 1, "b", (30.0, 90.0)),
        judgement("monitor_yourself", 3, "a"),
    ]
    one, other = paired(metrics.table(rows), "steered", "monitor_yourself")
    assert one[["latent", "prompt_id"]].values.tolist() == other[["latent", "prompt_id"]].values.tolist()
    assert dict(zip(zip(one.latent, one.prompt_id, strict=True), metrics.multi_attempt(one), strict=True)) == {
        (1, "b"): False,
        (2, "a"): True,
    }
    assert dict(zip(other.latent, metrics.multi_attempt(other), strict=True)) == {1: True, 2: False}


def test_a_trial_without_score_in_one_condition_is_in_no_pair():
    rows = [judgement("steered", 1, "a"), judgement("steered", 1, "b"), judgement("monitor_yourself", 1, "a")]
    rows.append(judgement("monitor_yourself", 1, "b", (), outcome="empty"))
    one, other = paired(metrics.table(rows), "steered", "monitor_yourself")
    assert len(one) == len(other) == 1 and one.prompt_id.tolist() == ["a"]


def test_conditions_without_a_common_trial_are_an_error():
    rows = [judgement("steered", 1, "a"), judgement("monitor_yourself", 1, "b")]
    with pytest.raises(ValueError, match="'steered' and 'monitor_yourself' share no scored trial"):
        paired(metrics.table(rows), "steered", "monitor_yourself")


def test_responses_and_judgements_of_different_trials_are_refused(tmp_path):
    trial = Trial(
        id="x", model="m", condition="steered", latent=1, label="", prompt_id="a", prompt="?", seed=1, boost=0.0,
        layer=1, max_new_tokens=4, temperature=0.6, repetition_penalty=1.0, tokens=[5], text="t", finish_reason="stop",
    )  # fmt: skip
    write_rows(tmp_path / "responses.jsonl", [trial])
    write_rows(tmp_path / "judgements.jsonl", [judgement("steered", 1, "a")])
    with pytest.raises(ValueError, match="not of the same trials"):
        read_pair(tmp_path)
    write_rows(tmp_path / "judgements.jsonl", [judgement("steered", 1, "a").model_copy(update={"trial_id": "x"})])
    trials, judgements = read_pair(tmp_path)
    assert [t.id for t in trials] == [j.trial_id for j in judgements] == ["x"]


def test_latents_that_did_not_converge_are_left_out_and_none_is_an_error():
    shared = {"label": "", "boost": 0.4, "sd": 0.1, "score": 30.0, "queries": []}
    good = Threshold(latent=1, converged=True, reason="converged", **shared)
    bad = Threshold(latent=2, converged=False, reason="posterior too wide", **shared)
    assert converged([good, bad]) == [good]
    with pytest.raises(ValueError, match="No latent converged"):
        converged([bad])


def test_pairs_have_one_row_a_trial():
    rows = [
        judgement(c, latent, "a", seed=s) for c in ("steered", "monitor_yourself") for latent in (1, 2) for s in (1, 2)
    ]
    one, other = paired(metrics.table(rows), "steered", "monitor_yourself")
    assert len(one) == 4 and not pd.concat([one, other])[["latent", "seed", "condition"]].duplicated().any()
