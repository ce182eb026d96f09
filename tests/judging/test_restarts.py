from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esr.judging.restarts import find_restarts

BEFORE = "To bake bread, you first gather the horses and brush their manes every day of the week."
AFTER = "A good way to bake bread is to mix flour, water, salt and yeast and knead the dough."
CASES = [
    (line[0] == "+", line[2:].replace("\\n", "\n"))
    for line in (Path(__file__).parent / "restart_language.txt").read_text(encoding="utf-8").splitlines()
    if line[0] in "+-"
]


@pytest.mark.parametrize("phrase", [phrase for restart, phrase in CASES if restart])
def test_restart_language_is_found_once_where_it_begins(phrase):
    text = f"{BEFORE} {phrase} {AFTER}"
    restarts = find_restarts(text)
    assert [r.start for r in restarts] == [len(BEFORE) + 1]
    assert text[restarts[0].start : restarts[0].end] == restarts[0].phrase
    assert restarts[0].end <= len(text) - len(AFTER)


@pytest.mark.parametrize("phrase", [phrase for restart, phrase in CASES if not restart])
@pytest.mark.parametrize("between", [" ", "\n\n"], ids=["sentence", "paragraph"])
def test_near_misses_are_not_restarts(phrase, between):
    assert find_restarts(f"{BEFORE}{between}{phrase}{between}{AFTER}") == []


def test_a_restart_at_the_very_opening_follows_no_attempt():
    assert find_restarts(f"Wait, that's not right. Let me start over. {AFTER}") == []
    assert len(find_restarts(f"Sorry, let me start over. {AFTER} Wait, let me start over. {AFTER}")) == 1


@pytest.mark.parametrize("end", ["Wait, that's", "Wait, that's not right.", "Sorry, let me start over. A good"])
def test_a_restart_cut_by_the_length_limit_begins_no_attempt(end):
    assert find_restarts(f"{BEFORE} {end}") == []


@pytest.mark.parametrize(
    "phrase",
    ["Wait, what is that?", "Wait, I have lost it.", "I'm sorry, I was wrong.", "Let me start over from there."],
)
def test_breaking_off_to_speak_of_oneself_is_a_restart(phrase):
    assert [r.start for r in find_restarts(f"{BEFORE} {phrase} {AFTER}")] == [len(BEFORE) + 1]


@pytest.mark.parametrize(
    "phrase", ["Wait, you can add more flour.", "Wait until it has risen.", "Wait, the dough rises."]
)
def test_waiting_that_is_advice_is_none(phrase):
    assert find_restarts(f"{BEFORE} {phrase} {AFTER}") == []


def test_waiting_that_has_become_a_tic_interrupts_nothing():
    """The same words that are a restart once are none when the response says them all the time."""
    phrase = "Wait, I see the horses."
    assert len(find_restarts(f"{BEFORE} {phrase} {AFTER}")) == 1
    assert find_restarts(f"{BEFORE} {phrase} {phrase} {phrase} {phrase} {AFTER}") == []


def test_an_opening_apology_withdraws_nothing_and_a_later_start_over_does():
    opening = "I'm sorry, there were no horses like that in the whole stable!"
    (restart,) = find_restarts(f"{opening} Let me start over. {AFTER}")
    assert restart.start == len(opening) + 1


def test_fewer_words_than_an_attempt_are_not_restarted_from():
    assert find_restarts(f"The horses. Wait, let me start over. {AFTER}") == []


def test_one_restart_in_several_sentences_is_one():
    move = "Wait, that's not right. I apologize for the confusion. Let me start over."
    (restart,) = find_restarts(f"{BEFORE} {move} {AFTER}")
    assert restart.phrase == move


def test_restarts_are_all_found_and_in_order():
    restarts = find_restarts(f"{BEFORE} Let me start over. {BEFORE}\n\nOops, I made a mistake. {AFTER}")
    assert [r.phrase for r in restarts] == ["Let me start over.", "Oops, I made a mistake."]


@pytest.mark.parametrize("quotes", ["“{}”", '"{}"', "‘{}’", "'{}'", "«{}»"])
def test_quoted_speech_is_not_the_writer_speaking(quotes):
    quoted = quotes.format("Wait, that's not right, let me start over,")
    assert find_restarts(f"{BEFORE} {quoted} said the baker. {AFTER}") == []


def test_a_script_is_not_the_writer_speaking_but_a_heading_is():
    script = "Tom: The bread is flat.\nAnn: Wait, that's not right. Let me start over.\nTom: Fine by me, go ahead."
    assert find_restarts(f"{BEFORE}\n\n{script}") == []
    assert len(find_restarts(f"{BEFORE}\n\nSteps: Mix it.\nWait, that's not right. Let me start over.\n{AFTER}")) == 1


def test_typographic_apostrophes_and_lost_stops_do_not_hide_a_restart():
    assert len(find_restarts(f"{BEFORE} Wait, that’s not right. {AFTER}")) == 1
    assert len(find_restarts(f"{BEFORE[:-1]} Wait, that's not right. {AFTER}")) == 1
    assert len(find_restarts(f"{BEFORE[:-1]} — wait, no, that's wrong. {AFTER}")) == 1


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([*"abc.,!?'\"“” \n:—()", "wait", "sorry", " let me start over", " I"]), max_size=60))
def test_any_text_is_read_and_phrases_are_verbatim(pieces):
    text = "".join(pieces)
    restarts = find_restarts(text)
    assert all(text[r.start : r.end] == r.phrase and r.phrase for r in restarts)
    assert all(a.end <= b.start for a, b in zip(restarts, restarts[1:], strict=False))
