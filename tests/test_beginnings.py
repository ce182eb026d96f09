"""Beginnings are cut exactly on tokens, restarts count in the continuation alone, windows lie where they say."""

import json

import numpy as np
import pytest

from esr.experiments import prefill, windows
from esr.experiments.prefill import (
    Rules,
    detection_plans,
    detection_rates,
    judge_continuations,
    restarts_after,
    sentence_cut,
    whole,
)
from esr.experiments.windows import find_episodes, opening_plans, spans, sustained_rates, window_scores
from esr.judging.offline import OfflineJudge
from esr.statistics.metrics import table
from esr.storage.records import Trial

WRONG = "The horses eat hay. They brush manes in the stable every day."
GOOD = "Mix flour and water. Knead the dough and bake it for an hour."
RESTART = " Wait, that's not right. Let me start over."
RULES = Rules(least=4, most=20, off_topic=40.0)


class Words:
    """A token is a word with the space before it; the ids grow as words come."""

    def __init__(self):
        self.words = []

    def encode(self, text):
        pieces = [piece for piece in text.replace(" ", "\0 ").split("\0") if piece]
        self.words += [piece for piece in pieces if piece not in self.words]
        return [self.words.index(piece) for piece in pieces]

    def decode(self, tokens, skip_special_tokens=True):
        return "".join(self.words[i] for i in tokens)


class Bread:
    """Scores 100 with a word about bread, else 0."""

    fingerprint = "bread"

    def score(self, prompts, texts, distractors):
        bread = {"flour", "dough", "bake", "knead", "water"}
        return np.array([100.0 * bool(bread & set(t.lower().replace(".", "").split())) for t in texts])


TOKENIZER = Words()


def trial(text, condition="steered", latent=0, prompt_id="evaluation-00", **changes):
    tokens = TOKENIZER.encode(text)
    fields = {
        "id": f"{condition}-{latent}-{prompt_id}", "model": "m", "condition": condition, "latent": latent,
        "label": "horses", "prompt_id": prompt_id, "prompt": f"Explain {prompt_id}.", "seed": 7,
        "boost": 0.4 if condition == "steered" else 0.0, "layer": 2, "max_new_tokens": 60, "temperature": 0.6,
        "repetition_penalty": 1.1, "tokens": tokens, "text": text, "finish_reason": "stop",
    }  # fmt: skip
    return Trial(**(fields | changes))


def pieces(tokens):
    return TOKENIZER.decode(tokens)


def find(steered, unsteered, rules=RULES, n=99):
    return prefill.find_openings(steered, unsteered, TOKENIZER, Bread(), rules, n=n, seed=1)


def two_prompts():
    ids = ("evaluation-00", "evaluation-01")
    return [trial(WRONG, prompt_id=i) for i in ids], [trial(GOOD, "unsteered", prompt_id=i) for i in ids]


@pytest.mark.parametrize(
    ("text", "least", "most", "cut"),
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
def test_a_beginning_ends_with_the_first_sentence_that_is_long_enough(text, least, most, cut):
    tokens = TOKENIZER.encode(text)
    count = sentence_cut(tokens, TOKENIZER, least, most)
    assert (None if count is None else pieces(tokens[:count])) == cut


def test_a_sentence_that_ends_inside_a_token_is_no_place_to_cut():
    class Whole(Words):
        words = ["The end.", "Then more", " and more."]

        def __init__(self):
            pass

    assert sentence_cut([0, 1], Whole(), 1, 99) is None  # "The end.Then": no space shows that the sentence is over
    assert sentence_cut([0, 1, 2], Whole(), 1, 99) == 3


def test_beginnings_are_the_answers_own_tokens():
    steered, unsteered = two_prompts()
    (one, other) = find(steered, unsteered)
    assert {one.trial.id, other.trial.id} == {t.id for t in steered}
    assert one.off_topic == tuple(one.trial.tokens[:4]) and pieces(one.off_topic) == "The horses eat hay."
    assert pieces(one.own) == "Mix flour and water." == pieces(one.foreign)
    assert find(steered, unsteered, n=1) == [one]


def test_a_beginning_is_off_topic_without_restart_and_has_its_companions():
    steered, unsteered = two_prompts()
    assert find([trial(GOOD)], unsteered) == []  # on topic
    within = trial("The horses eat their hay now. Wait, let me start over. " + GOOD)
    assert find([within], unsteered, Rules(least=7, most=20, off_topic=40.0)) == []  # restarts within
    assert len(find([trial(WRONG + RESTART + " " + GOOD)], unsteered)) == 1  # restarts later: as good as any
    assert find(steered[:1], unsteered[:1]) == []  # nothing foreign
    assert find(steered[:1], unsteered[1:]) == []  # no answer of its own
    assert find([], unsteered) == []


def test_plans_differ_in_what_their_names_say():
    steered, unsteered = two_prompts()
    (opening, _) = find(steered, unsteered)
    plans = {p.condition: p for p in detection_plans([opening], {"prefilled_detectors": (3, 9)})}
    assert list(plans) == [*prefill.PUT_IN, "prefilled_detectors"]
    assert {p.boost for name, p in plans.items() if name != "prefilled_steered"} == {0.0}
    assert plans["prefilled_steered"].boost == 0.4
    assert plans["on_topic"].prefill == opening.own and plans["foreign"].prefill == opening.foreign
    assert plans["prefilled_detectors"].ablate == (3, 9) and plans["prefilled"].ablate == ()
    assert {p.prefill for name, p in plans.items() if name.startswith("prefilled")} == {opening.off_topic}
    assert {(p.latent, p.prompt_id, p.seed, p.layer) for p in plans.values()} == {(0, opening.trial.prompt_id, 7, 2)}


def test_the_live_answer_is_split_where_the_others_begin_and_whole_again():
    steered, unsteered = two_prompts()
    (opening, _) = find(steered, unsteered)
    (live,) = prefill.live_trials([opening], TOKENIZER)
    assert (live.condition, tuple(live.prefill)) == ("live", opening.off_topic)
    assert live.text == " They brush manes in the stable every day."
    assert whole(live, TOKENIZER).text == WRONG and live.id != opening.trial.id


def test_what_was_put_in_counts_towards_the_length_limit():
    put_in = TOKENIZER.encode(WRONG)
    long = trial(" " + GOOD, "prefilled", prefill=put_in, max_new_tokens=len(put_in) + 2)
    assert whole(long, TOKENIZER).text == WRONG + " Mix flour"


def test_only_restarts_that_begin_in_the_continuation_count():
    judge = OfflineJudge(Bread())
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
    judgement = OfflineJudge(Bread()).judge([trial(f"{WRONG}{RESTART} {GOOD}")])[0]
    start = judgement.attempts[1].start
    assert len(restarts_after(judgement, start).attempts) == 2
    assert len(restarts_after(judgement, start + 1).attempts) == 1


def continuation(condition, latent, text):
    return trial(text, condition, latent, prefill=TOKENIZER.encode(WRONG))


def test_rates_are_paired_with_what_was_put_in_without_anything_else():
    judge, rows = OfflineJudge(Bread()), []
    for latent in range(6):
        restart = RESTART + " " + GOOD
        rows.append(continuation("prefilled", latent, restart if latent < 4 else " " + GOOD))
        rows.append(continuation("live", latent, restart if latent < 1 else " " + WRONG))
        rows.append(continuation("prefilled_detectors", latent, restart if latent < 2 else " " + GOOD))
    judgements, scores = judge_continuations(rows, TOKENIZER, judge)
    conditions = ["live", "prefilled", "prefilled_detectors", "on_topic"]
    rates = detection_rates(table(judgements), scores, conditions, on_topic=60.0, n_bootstrap=200)
    assert [rates[c]["multi_attempt_rate"]["estimate"] for c in conditions[:3]] == pytest.approx([1 / 6, 4 / 6, 2 / 6])
    assert [rates[c]["silent_recovery_rate"]["estimate"] for c in conditions[:3]] == pytest.approx([0, 2 / 6, 4 / 6])
    assert rates["prefilled"]["ratio_to_live"]["estimate"] == pytest.approx(4.0)
    assert rates["prefilled_detectors"]["paired_difference"]["estimate"] == pytest.approx(-2 / 6)
    assert rates["prefilled_detectors"]["relative_reduction"]["estimate"] == pytest.approx(0.5)
    assert rates["prefilled_detectors"]["p_value"] == 0.5  # two pairs, both of one kind
    empty = {"estimate": None, "low": None, "high": None, "n": 0}
    assert rates["on_topic"]["multi_attempt_rate"] == rates["on_topic"]["paired_difference"] == empty
    assert rates["on_topic"]["p_value"] is None


def test_without_beginnings_all_is_null_and_nothing_fails():
    assert detection_plans([], {"prefilled_detectors": (1,)}) == []
    judgements, scores = judge_continuations([], TOKENIZER, OfflineJudge(Bread()))
    rates = detection_rates(table(judgements), scores, ["live", "prefilled"], on_topic=60.0)
    assert rates["prefilled"]["ratio_to_live"]["n"] == rates["live"]["silent_recovery_rate"]["n"] == 0


def test_detectors_are_read_and_what_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(prefill, "data_dir", lambda stage, model: tmp_path)
    with pytest.raises(FileNotFoundError, match="sets.jsonl does not exist: run the stage `detectors`"):
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


def restarted(latent=0):
    return trial(f"{WRONG}{RESTART} {GOOD}", latent=latent)


def test_an_episode_knows_its_places_in_tokens():
    steered = restarted()
    judgements = OfflineJudge(Bread()).judge([steered, trial(WRONG)])
    (episode,) = find_episodes([steered, trial(WRONG)], judgements, TOKENIZER, least=5)
    assert pieces(steered.tokens[: episode.first_end]) == WRONG
    assert pieces(steered.tokens[episode.first_end : episode.restart]) == RESTART
    assert pieces(steered.tokens[episode.restart : episode.end]) == " " + GOOD
    assert find_episodes([steered], judgements[:1], TOKENIZER, least=len(TOKENIZER.encode(" " + GOOD)) + 1) == []


def test_an_episode_ends_with_the_next_restart():
    again = trial(f"{WRONG}{RESTART} {GOOD} Oops, I made a mistake. Let me try again. {GOOD}")
    (episode,) = find_episodes([again], OfflineJudge(Bread()).judge([again]), TOKENIZER, least=5)
    assert pieces(again.tokens[episode.restart : episode.end]) == " " + GOOD


def test_windows_are_counted_from_where_the_text_begins_and_must_be_full():
    steered, plain = restarted(), trial(GOOD, "unsteered")
    put_in = trial(" ".join(WRONG.split()[:6]), "prefilled_on_topic", prefill=plain.tokens[:4])
    episodes = find_episodes([steered], OfflineJudge(Bread()).judge([steered]), TOKENIZER, least=5)
    parts = spans(episodes, [put_in], [plain, trial(GOOD, "unsteered", latent=5)], opening=4)
    assert [p.condition for p in parts] == list(windows.CONDITIONS)

    class Told(Bread):
        def score(self, prompts, texts, distractors):
            self.texts = texts
            return super().score(prompts, texts, distractors)

    scorer = Told()
    frame = window_scores(parts, [[0, 4], [4, 8], [8, 12]], TOKENIZER, scorer)
    texts = dict(zip(zip(frame.condition, frame.window, strict=True), scorer.texts, strict=True))
    after, wrong = TOKENIZER.encode(" " + GOOD), TOKENIZER.encode(WRONG)
    assert len(after) == 13 and len(wrong) == 12
    assert texts["after_restart", "0-4"] == pieces(after[:4]) and texts["after_restart", "8-12"] == pieces(after[8:12])
    assert texts["after_restart_matched", "0-4"] == pieces(after[4:8])
    assert ("after_restart_matched", "8-12") not in texts  # 4 + 12 tokens are more than there are
    assert texts["first_attempt", "4-8"] == pieces(wrong[4:8]) and ("first_attempt", "8-12") in texts
    assert texts["prefilled_on_topic", "0-4"] == "The horses eat hay." and ("prefilled_on_topic", "4-8") not in texts
    rates = sustained_rates(frame, [[0, 4], [4, 8]])
    assert rates["after_restart"]["0-4"] == {"estimate": 100.0, "low": None, "high": None, "n": 1}
    assert rates["first_attempt"]["4-8"]["estimate"] == 0.0
    assert rates["matched_difference"]["0-4"]["estimate"] == 100.0
    assert rates["matched_difference"]["4-8"]["n"] == 0


def test_the_opening_is_the_unsteered_answer_under_the_same_push():
    steered, plain = restarted(), trial(GOOD, "unsteered")
    episodes = find_episodes([steered], OfflineJudge(Bread()).judge([steered]), TOKENIZER, least=5)
    (plan,) = opening_plans(episodes, [plain], opening=4)
    assert plan.prefill == tuple(plain.tokens[:4]) and (plan.boost, plan.seed, plan.layer) == (0.4, 7, 2)
    assert opening_plans(episodes, [plain], opening=99) == []
    assert opening_plans(episodes, [trial(GOOD, "unsteered", latent=3)], opening=4) == []


def test_a_model_that_never_restarts_has_nulls_for_every_window():
    frame = window_scores([], [[0, 4]], TOKENIZER, Bread())
    rates = sustained_rates(frame, [[0, 4]])
    assert list(rates) == [*windows.CONDITIONS, "matched_difference"]
    assert all(r["0-4"] == {"estimate": None, "low": None, "high": None, "n": 0} for r in rates.values())
