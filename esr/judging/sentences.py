"""Sentences and clauses of a response with their places, which are where restarts may begin.

One pass over the tokens of the text: time is linear in its length, whatever is repeated or nested in it.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

WORD = re.compile(r"\w+(?:['’]\w+)*")
TOKEN = re.compile(r"\n+|[.!?…]+|[;:]|[—–]|--+|[()\[\]]|,|\w+(?:['’]\w+)*|[^\S\n]+|.", re.DOTALL)
ITEM = re.compile(r"(?:\d{1,3}|[A-Za-z])[.):]")  # the mark of an item in a list, after which it begins
SPEAKER = re.compile(
    r"[*_>\-# ]*(?:\[[^\]\n]{1,12}\] ?)?[A-Z][\w.'’]*(?: [A-Z\d][\w.'’]*){0,2}[*_]*(?: \([^)\n]{1,30}\))?:"
)
# Words that break off a sentence, with a capital where the full stop is lost, after a comma otherwise
BREAKS = frozenset(
    [
        "wait",
        "sorry",
        "oops",
        "whoops",
        "actually",
        "hold",
        "hang",
        "scratch",
        "apologies",
        "pardon",
        "correction",
        "no",
        "hmm",
        "ugh",
        "er",
        "oh",
    ]
)
CLOSING = "\"'”’»)]*_"
MIN_WORDS = 3  # of a clause that an interjection breaks off
LIMIT = 60  # words of a sentence that are read


class Sentence(NamedTuple):
    """Characters `start` to `end` of a text, from the first word to the closing mark."""

    start: int
    end: int
    text: str  # with plain apostrophes, at most `LIMIT` words
    opens: bool  # whether it is the first of its line
    quoted: bool  # whether it begins within quotation marks


def split_sentences(text: str) -> list[Sentence]:
    """Sentences and clauses in order, each from its first word: list marks, brackets and quotation marks stand before.

    A clause ends at a full stop, colon, semicolon, dash, bracket or line break, and before a word that breaks off.
    """
    sentences: list[Sentence] = []
    tokens = [(m.start(), m.group()) for m in TOKEN.finditer(text)]
    begin = words = 0
    opens, started, quoted = True, False, False
    inside = quotation_spans(text)

    def close(end: int) -> None:
        nonlocal started
        if started:
            kept = text[begin:end].rstrip()
            sentences.append(Sentence(begin, begin + len(kept), _plain(kept), opens, quoted))
        started = False

    for i, (place, token) in enumerate(tokens):
        following = tokens[i + 1][1] if i + 1 < len(tokens) else "\n"
        if token[0] == "\n":
            close(place)
            opens = True
        elif token[0].isalnum() or token[0] == "_" and token.strip("_"):
            before = tokens[i - 2][1] if i > 1 and tokens[i - 1][1].isspace() else ""
            if started and _breaks_off(token, before, words):
                close(place)
                opens = False
            if not started:
                if opens and ITEM.fullmatch(token + following):
                    continue
                begin, started, words = place, True, 0
                quoted = inside(place)
            words += 1
        elif not started:
            continue
        elif _ends(token, following) or _pauses(token, following) and (words <= MIN_WORDS or _resumes(tokens, i)):
            end = place + len(token)
            while end < len(text) and text[end] in CLOSING:
                end += 1
            close(end)
            opens = False
        elif token in "([" and following.lower() in BREAKS:
            close(place)
            opens = False
    close(len(text))
    return sentences


def _ends(token: str, following: str) -> bool:
    """Whether a clause ends with the mark `token`."""
    if token[0] not in ".!?…;:":
        return False
    return following.isspace() or following in CLOSING or token[0] == "…" or (len(token) > 1 and token[0] == ".")


def _pauses(token: str, following: str) -> bool:
    """Whether the mark is a dash, which a hyphen within a word is not."""
    return token in "—–" or token.startswith("--") or (token == "-" and following.isspace())


def _resumes(tokens: Sequence[tuple[int, str]], i: int) -> bool:
    """Whether a sentence may begin after the dash `i`: with a capital or a word that breaks off."""
    words = (token for _, token in tokens[i + 1 : i + 4] if token[0].isalnum())
    word = next(words, "")
    return word[:1].isupper() or word.lower() in BREAKS


def _breaks_off(token: str, before: str, words: int) -> bool:
    """Whether an interjection begins here within a sentence: after a comma, or with a capital where a stop is lost."""
    if token.lower() not in BREAKS or words < MIN_WORDS:
        return False
    return before == "," or (token[0].isupper() and (before == ")" or before[:1].isalnum() and not before[0].isupper()))


def _plain(text: str) -> str:
    words = [m.end() for _, m in zip(range(LIMIT), WORD.finditer(text), strict=False)]
    return (text if len(words) < LIMIT else text[: words[-1]]).replace("’", "'")


def quotation_spans(text: str):
    """A function that tells whether a place is within quotation marks, paired within each line."""
    edges: list[int] = []
    opened: tuple[str, int] | None = None
    for i, c in enumerate(text):
        if c == "\n":
            opened = None
        elif opened and c == opened[0]:
            if c != "’" or not text[i + 1 : i + 2].isalnum():
                edges += [opened[1], i]
                opened = None
        elif not opened and c in '"“«‘':
            opened = ({"“": "”", "«": "»", "‘": "’"}.get(c, c), i)
        elif not opened and c == "'" and not text[i - 1 : i].isalnum() and text[i + 1 : i + 2].isalpha():
            opened = ("'", i)
    return lambda place: bisect_left(edges, place) % 2 == 1


def count_words(text: str) -> int:
    return sum(1 for _ in WORD.finditer(text))
