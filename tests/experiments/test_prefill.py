"""Openings are cut exactly on tokens, restarts count in the continuation alone."""

import json
from dataclasses import replace

import pytest
from bread_texts import GOOD, RESTART, TOKENIZER, WRONG, Bread, Words, pieces, trial
from conftest import ListedRestarts

from esr.experiments import prefill
from esr.experiments.prefill import (
    OpeningRule,
    detection_plans,
    detection_rates,
    judge_continuations,
    restarts_after,
    sentence_cut,
    whole,
)
from esr.judging.offline import OfflineJudge
from esr.models.alignment import align
from esr.statistics.estimates import NOTHING
from esr.statistics.metrics import table
from esr.statistics.outcomes import cut_table

RULE = OpeningRule(min_tokens=4, max_tokens=20, max_score=40.0)
JUDGE = OfflineJudge(Bread(), ListedRestarts())


def find(steered, unsteered, rule=RULE, n=99):
    return prefill.find_openings(steered, unsteered, TOKENIZER, JUDGE, rule, n=n, seed=1)


def two_prompts():
    ids = ("evaluation-00", "evaluation-01")
    return [trial(WRONG, prompt_id=i) for i in ids], [trial(GOOD, "unsteered", prompt_id=i) for i in ids]


@pytest.mark.parametrize(
    ("text", "min_tokens", "max_tokens", "cut"),
    [
        ("One two three. Four five. Six seven", 1, 99, "One two three."),
        ("One two three. Four five. Six seven", 4, 99, "One two three. Four five."),
        ("One two three. Four five. Six seven", 4, 4, None),
        ('He said "no more." Then more', 1, 99, 'He said "no more."'),
        ("List: 1. Flour is 3.5 parts", 1, 99, None),
        ("No end here", 1, 99, None),
        ("All of it.", 1, 99, "All of it."),
    ],
)
def test_an_opening_ends_with_the_first_sentence_that_is_long_enough(text, min_tokens, max_tokens, cut):
    tokens = TOKENIZER.encode(text)
    count = sentence_cut(align(tokens, TOKENIZER), min_tokens, max_tokens)
    assert (None if count is None else pieces(tokens[:count])) == cut


def test_a_sentence_that_ends_inside_a_token_is_no_place_to_cut():
    class Whole(Words):
        words = ["The end.", "Then more", " and more."]

        def __init__(self):
            pass

    assert (
        sentence_cut(align([0, 1], Whole()), 1, 99) is None
    )  # "The end.Then": no space shows that the sentence is over
    assert sentence_cut(align([0, 1, 2], Whole()), 1, 99) == 3


def test_openings_are_tokens_of_the_responses():
    steered, unsteered = two_prompts()
    (one, other) = find(steered, unsteered)
    assert {one.trial.id, other.trial.id} == {t.id for t in steered}
    assert one.off_topic == tuple(one.trial.tokens[:4]) and pieces(one.off_topic) == "The horses eat hay."
    assert pieces(one.on_topic) == "Mix flour and water." == pieces(one.foreign)
    assert find(steered, unsteered, n=1) == [one]


def test_an_opening_is_off_topic_without_restart_and_has_its_companions():
    steered, unsteered = two_prompts()
    assert find([trial(GOOD)], unsteered) == []  # on topic
    within = trial("The horses eat their hay now. Wait, let me start over. " + GOOD)
    assert find([within], unsteered, OpeningRule(min_tokens=7, max_tokens=20, max_score=40.0)) == []  # restarts within
    assert len(find([trial(WRONG + RESTART + " " + GOOD)], unsteered)) == 1  # restarts later: as good as any
    assert find(steered[:1], unsteered[:1]) == []  # nothing foreign
    assert find(steered[:1], unsteered[1:]) == []  # no unsteered response to the same prompt
    assert find([], unsteered) == []


def test_plans_differ_in_what_their_names_say():
    steered, unsteered = two_prompts()
    (openings, _) = find(steered, unsteered)
    plans = {p.condition: p for p in detection_plans([openings], {"prefilled_detectors": (3, 9)})}
    assert list(plans) == [*prefill.PREFILLED, "prefilled_detectors"]
    assert {p.boost for name, p in plans.items() if name != "prefilled_steered"} == {0.0}
    assert plans["prefilled_steered"].boost == 0.4
    assert plans["on_topic"].prefill == openings.on_topic and plans["foreign"].prefill == openings.foreign
    assert plans["prefilled_detectors"].ablate == (3, 9) and plans["prefilled"].ablate == ()
    assert {p.prefill for name, p in plans.items() if name.startswith("prefilled")} == {openings.off_topic}
    assert {(p.latent, p.prompt_id, p.seed, p.layer) for p in plans.values()} == {(0, openings.trial.prompt_id, 7, 2)}


def test_competence_is_measured_after_an_opening_with_a_restart_and_alone():
    steered, unsteered = two_prompts()
    found = find(steered, unsteered)
    phrases = {"Wait, no. Again.": 3, "Sorry. Anew.": 1}
    plans = prefill.competence_plans(found, phrases, TOKENIZER, seed=1)
    assert plans == prefill.competence_plans(found, phrases, TOKENIZER, seed=1)
    assert [plan.condition for plan in plans] == ["restarted", "opening"] * len(found)
    for restarted, alone, openings in zip(plans[::2], plans[1::2], found, strict=True):
        assert (restarted.boost, restarted.latent, restarted.layer) == (0.4, 0, 2)
        assert replace(restarted, condition="opening", prefill=alone.prefill) == alone
        assert alone.prefill == openings.off_topic == restarted.prefill[: len(openings.off_topic)]
        restart = TOKENIZER.decode(restarted.prefill[len(openings.off_topic) :])
        assert restart in {f" {phrase}" for phrase in phrases}


def test_competence_is_what_a_restart_adds_to_resisting_anyway():
    alone = prefill.Plan("opening", 1, "", "p", "", 7, 0.4)
    plans = [replace(alone, condition=c, latent=x) for x in (1, 2) for c in ("restarted", "opening")]
    found = prefill.competence(plans, [10, 20, 30, 40], [50, 30, 40, 50], min_on_topic_score=40.0)
    assert found["restarted"]["untuned"]["score"].estimate == 20 and found["opening"]["tuned"]["score"].estimate == 40
    assert found["restarted"]["tuned"]["on_topic_rate"].estimate == 1
    assert found["opening"]["untuned"]["on_topic_rate"].estimate == 0.5
    assert found["restarted"]["score_difference"].estimate == 25 and found["opening"]["score_difference"].estimate == 10
    assert (found["beyond_placebo"].estimate, found["beyond_placebo"].n) == (15, 2)
    nothing = prefill.competence([], [], [], min_on_topic_score=40.0)
    assert nothing["beyond_placebo"].n == nothing["opening"]["tuned"]["on_topic_rate"].n == 0


def test_the_live_response_is_split_where_the_others_begin_and_whole_again():
    steered, unsteered = two_prompts()
    (openings, _) = find(steered, unsteered)
    (live,) = prefill.live_trials([openings], TOKENIZER)
    assert (live.condition, tuple(live.prefill)) == ("live", openings.off_topic)
    assert live.text == " They brush manes in the stable every day."
    assert whole(live, TOKENIZER)[0].text == WRONG and live.id != openings.trial.id


def test_a_prefilled_opening_counts_towards_the_length_limit():
    opening = TOKENIZER.encode(WRONG)
    long = trial(" " + GOOD, "prefilled", prefill=opening, max_new_tokens=len(opening) + 2)
    response, start = whole(long, TOKENIZER)
    assert response.text == WRONG + " Mix flour" and response.text[start:] == " Mix flour"


def test_only_restarts_that_begin_in_the_continuation_count():
    judge = JUDGE
    before = WRONG + RESTART + " " + WRONG
    trials = [
        trial(RESTART + " " + GOOD, "a", prefill=TOKENIZER.encode(WRONG)),
        trial(" " + GOOD, "b", prefill=TOKENIZER.encode(before)),
        trial(RESTART + " " + GOOD, "c", prefill=TOKENIZER.encode(before)),
        trial("", "d", prefill=TOKENIZER.encode(WRONG)),
    ]
    judgements, scores = judge_continuations(trials, TOKENIZER, judge)
    assert [len(j.attempts) for j in judgements] == [2, 1, 2, 1]
    assert [j.attempts[0].score for j in judgements] == [0.0, 0.0, 0.0, 0.0]
    assert judgements[0].attempts[1].start == len(WRONG) + 1 and judgements[0].attempts[1].score == 100.0
    assert judgements[2].attempts[0].end == len(before) + 1 == judgements[2].attempts[1].start
    assert judgements[1].attempts[0].end == len(before + " " + GOOD)
    assert scores.tolist() == [100.0, 100.0, 100.0, 0.0]


def test_a_restart_exactly_where_the_continuation_begins_counts():
    judgement = JUDGE.judge([trial(f"{WRONG}{RESTART} {GOOD}")])[0]
    start = judgement.attempts[1].start
    assert len(restarts_after(judgement, start).attempts) == 2
    assert len(restarts_after(judgement, start + 1).attempts) == 1


def continuation(condition, latent, text):
    return trial(text, condition, latent, prefill=TOKENIZER.encode(WRONG))


def test_rates_are_paired_with_those_of_the_prefilled_opening_alone():
    judge, rows = JUDGE, []
    for latent in range(6):
        restart = RESTART + " " + GOOD
        rows.append(continuation("prefilled", latent, restart if latent < 4 else " " + GOOD))
        rows.append(continuation("live", latent, restart if latent < 1 else " " + WRONG))
        rows.append(continuation("prefilled_detectors", latent, restart if latent < 2 else " " + GOOD))
    judgements, scores = judge_continuations(rows, TOKENIZER, judge)
    conditions = ["live", "prefilled", "prefilled_detectors", "on_topic"]
    rates = detection_rates(
        table(judgements), cut_table(judgements), scores, conditions, min_on_topic_score=60.0, n_bootstrap=200
    )
    assert [rates[c]["multi_attempt_rate"].estimate for c in conditions[:3]] == pytest.approx([1 / 6, 4 / 6, 2 / 6])
    assert [rates[c]["silent_on_topic_rate"].estimate for c in conditions[:3]] == pytest.approx([0, 2 / 6, 4 / 6])
    assert rates["prefilled"]["ratio_to_live"].estimate == pytest.approx(4.0)
    assert rates["prefilled_detectors"]["paired_difference"].estimate == pytest.approx(-2 / 6)
    assert rates["prefilled_detectors"]["relative_reduction"].estimate == pytest.approx(0.5)
    assert rates["prefilled_detectors"]["p_value"] == 0.5  # two pairs, both of one kind
    assert rates["on_topic"]["multi_attempt_rate"] == rates["on_topic"]["paired_difference"] == NOTHING
    assert rates["on_topic"]["p_value"] is None


def test_without_openings_all_is_null_and_nothing_fails():
    assert detection_plans([], {"prefilled_detectors": (1,)}) == []
    judgements, scores = judge_continuations([], TOKENIZER, JUDGE)
    rates = detection_rates(
        table(judgements), cut_table(judgements), scores, ["live", "prefilled"], min_on_topic_score=60.0
    )
    assert rates["prefilled"]["ratio_to_live"].n == rates["live"]["silent_on_topic_rate"].n == 0


def test_detectors_are_read_and_what_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(prefill, "data_dir", lambda stage, model: tmp_path)
    with pytest.raises(FileNotFoundError, match="sets.jsonl does not exist: run the stage"):
        prefill.read_ablations("m", 1)
    sets = [("detectors", [4, 8]), ("random_1", [1, 2]), ("random_2", [3, 5]), ("held_out", [4])]
    lines = [json.dumps({"condition": name, "latents": latents, "prompts": []}) for name, latents in sets]
    (tmp_path / "sets.jsonl").write_text("\n".join(lines) + "\n")
    assert prefill.read_ablations("m", 2) == {
        "prefilled_detectors": (4, 8),
        "prefilled_random_1": (1, 2),
        "prefilled_random_2": (3, 5),
    }
    with pytest.raises(ValueError, match="no latents for 'random_3'"):
        prefill.read_ablations("m", 3)
