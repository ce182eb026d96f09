"""Sentences begin at their first word, wherever marks stand, and are found in linear time."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esr.judging.restart_features import ParsedResponse
from esr.judging.sentences import split_sentences


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One is here. Two is there! Three?", ["One is here.", "Two is there!", "Three?"]),
        ("1. **Wait, that is wrong.**\n2. Go on", ["Wait, that is wrong.**", "Go on"]),
        ("- (Sorry, wrong list.)\n> Next", ["Sorry, wrong list.)", "Next"]),
        ('He left. "Wait," she said.', ["He left.", 'Wait," she said.']),
        ("Mix the flour Wait, that is wrong.", ["Mix the flour", "Wait, that is wrong."]),
        ("Mix the flour — wait, no.", ["Mix the flour —", "wait, no."]),
        ("Mix the flour (sorry, the sand) well", ["Mix the flour", "sorry, the sand) well"]),
        ("Sorry – it is 343 metres.", ["Sorry –", "it is 343 metres."]),
        ("a well-known (and old) dough, about 3.5 cups", ["a well-known (and old) dough, about 3.5 cups"]),
        ("Back to it: bread. And then...Wait", ["Back to it:", "bread.", "And then...", "Wait"]),
        ("  \n ( * ", []),
    ],
)
def test_sentences_begin_at_their_first_word(text, sentences):
    found = split_sentences(text)
    assert [text[s.start : s.end].rstrip() for s in found] == sentences


def test_quotations_are_paired_within_a_line_and_apostrophes_open_none():
    text = "It's hers. “Sorry.” 'Wait.' \"Stop. Go.\" Don't.\n\"Open. \nNext."
    quoted = {s.text.strip("\"'”. "): s.quoted for s in split_sentences(text)}
    assert {word for word, inside in quoted.items() if inside} == {"Sorry", "Wait", "Stop", "Go"}


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([*"abc.,!?'\"“” \n:—()1", "wait", "sorry", " let me start over", " I"]), max_size=60))
def test_sentences_follow_each_other_in_any_text(pieces):
    text = "".join(pieces)
    found = split_sentences(text)
    assert all(s.start < s.end and text[s.start].isalnum() for s in found)
    assert all(a.end <= b.start for a, b in zip(found, found[1:], strict=False))


REPEATED = [
    "word ",
    "wait ",
    "Wait. ",
    "(",
    "“\"'« ",
    "no, ",
    "\n",
    "a: b\n",
    "Ann: wait\n",
    "- ",
    "1. ",
    "I am sorry. ",
]


@pytest.mark.parametrize("piece", REPEATED)
def test_four_times_the_text_takes_about_four_times_as_long(piece):
    def seconds(n):
        begin = time.process_time()
        ParsedResponse("Explain bread.", piece * n)
        return time.process_time() - begin

    short, long = (min(seconds(n) for _ in range(3)) for n in (5000, 20_000))
    assert long < 12 * short + 0.05  # 16 times, were it quadratic
