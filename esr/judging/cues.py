"""Signs of a restart in one sentence, and of the kind of text it stands in: features, none of which decides.

A sentence that withdraws the text above shares its words with letters, stories, scripts and advice. What tells them
apart is who speaks and to what end, hence the features of genre (data/judge/RUBRIC.md, section 1).
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from esr.judging.sentences import SPEAKER, WORD, Sentence

# Words and phrases by what they do; a phrase of several words is found as a whole.
CUES = {
    "interjection": "wait, oops, whoops, ups, hmm, hm, uh, uhh, um, er, erm, ugh, ah, oh, argh, yikes, whoa, dang,"
    " darn, gosh, hold on, hang on, stop, halt, no, nope, ok, okay, right, alright, lol, haha, welp, well, jeez, one"
    " moment, hey",
    "apology": "sorry, apologies, apologize, apologise, apology, pardon, forgive, excuse me, my bad, regret,"
    " regrettably, oversight, embarrassing, embarrassed, ashamed, mea culpa, my fault, my mistake",
    "wrong": "wrong, incorrect, incorrectly, false, mistaken, mistake, mistakes, error, errors, typo, slip,"
    " inaccurate, nonsense, untrue, mixed up, mix up, confused, misread, misstated, misspoke, misunderstood,"
    " not right, isn't right, not true, not correct, messed up, muddled, garbage, gibberish, no sense,"
    " rubbish, erroneous, backwards",
    "stray": "off topic, off track, off course, off the rails, irrelevant, unrelated, nothing to do, no bearing,"
    " digress, digressed, digression, tangent, rambling, rambled, drifted, drifting, wandered, wandering,"
    " sidetracked, carried away, astray, strayed, detour, rabbit hole, distracted, not belong, doesn't belong,"
    " went off, no place, beside the point, lost the thread",
    "text": "answer, paragraph, paragraphs, sentence, sentences, above, previous, preceding, list, table, code,"
    " snippet, line, lines, text, passage, reply, response, explanation, figure, statement, opening, so far,"
    " earlier, block, recipe, version, draft, poem, example, step, steps, i wrote, i said, i typed, i gave,"
    " just said, just wrote, wrote, written, typed",
    "redo": "start over, starting over, start again, starting again, begin again, afresh, anew, from scratch, from"
    " the top, from the start, from the beginning, from zero, try again, try that again, once more, one more"
    " time, once again, redo, restart, restarting, rewrite, rewriting, rewind, rewinding, reset, resetting,"
    " take two, do over, second try, second attempt, new attempt, fresh start, new start, another go, retry,"
    " recommence, again, square one, clean slate",
    "back": "back to, return to, returning to, returning, getting back, back on, anyway, anyhow, anyways, anyhoo,"
    " where was i, where were we, on to, on with, refocus, steer",
    "disregard": "ignore, disregard, forget, scratch, strike, scrap, delete, cross out, never mind, nevermind,"
    " take back, take it back, take that back, withdraw, withdrawn, retract, retracted, discard, unread, pretend,"
    " erase, wipe, skip, rescind, set aside, undo, aside, drop",
    "asked": "you asked, you wanted, you want, your question, your prompt, your request, the question, the request,"
    " the prompt, the task, asked for, asked about, was asked, the topic, the subject, you meant, you needed,"
    " the actual, the real, enquiry, supposed to, the brief, instruction, instructions",
    "correct": "correction, i meant, i mean, make that, should be, should have, rather than, instead of, in fact,"
    " actually, correct, corrected, properly, correctly, proper, right one, not",
    "announce": "here is, here's, here are, here goes, let me, let's, allow me, i'll, i will, i shall, now, this time,"
    " proceed",
    "self": "i, i'm, i've, i'd, i'll, my, me, myself, mine",
    "reader": "you, your, you're, you've, yours, reader, readers",
    "we": "we, us, our, let's",
    "third": "he, she, his, her, him, they, them, their, said, asked",
    "past": "was, were, had, did, went, gave, wrote, said, got, started, began, been",
    "when": "if, when, until, before, after, once, unless, may, might, will, always, every, never",
}  # fmt: skip
GENRES = {  # words of a prompt for kinds of text in which somebody else speaks
    "letter": "letter email e mail mail note card message memo statement speech toast eulogy announcement apology reply"
    " notice text sms dm statement press release complaint newsletter invitation postcard dear sincerely"
    " regards",
    "story": "story tale fiction narrator novel narrative fable tell told voice anecdote chapter legend bedtime",
    "verse": "poem song lyrics haiku verse chorus rhyme ballad limerick ode rap sonnet stanza acrostic hymn lullaby"
    " blues",
    "script": "dialogue conversation script scene play sketch interview transcript chat improv call skit podcast"
    " screenplay comedy role discussion exchange argument",
    "inner": "monologue diary journal log thoughts stream consciousness inner voice blog entry vlog confession pretend"
    " imagine",
}  # fmt: skip
CUE_PHRASES = {name: tuple(f" {p.strip()} " for p in phrases.split(",")) for name, phrases in CUES.items()}
GENRE_WORDS = {name: frozenset(words.split()) for name, words in GENRES.items()}
SHORT = 7  # characters; shorter sentences recur in any text
LINE = re.compile(r"[^\n]+")
BLOCK_LINE = re.compile(r"\s*(?:```|\||[-*•>#]|\d{1,3}[.)])")


def words_in(text: str) -> list[str]:
    """Words in lower case, with plain apostrophes; numbers are "#"."""
    words = (w.lower().replace("’", "'") for w in WORD.findall(text))
    return ["#" if w[0].isdigit() else w for w in words]


def cues(words: Sequence[str]) -> list[float]:
    """Number of signs of each of `CUES` in a sentence, at most 2."""
    return list(_cues(f" {' '.join(words)} "))


@lru_cache(maxsize=10_000)
def _cues(spaced: str) -> tuple[float, ...]:
    return tuple(float(min(2, sum(spaced.count(phrase) for phrase in phrases))) for phrases in CUE_PHRASES.values())


def prompt_genres(prompt: str) -> list[float]:
    """Whether the prompt asks for each of `GENRES`, then whether it is about mistakes or starting again."""
    words = words_in(prompt)
    signs = dict(zip(CUES, cues(words), strict=True))
    about = signs["apology"] + signs["wrong"] + signs["redo"] + signs["disregard"] + signs["interjection"]
    return [float(bool(names & set(words))) for names in GENRE_WORDS.values()] + [float(about > 0)]


class TextForm:
    """Form of a whole text: speakers, verse, letter, quotations, lines that recur."""

    def __init__(self, text: str, sentences: Sequence[Sentence]):
        spans = [(m.start(), m.group()) for m in LINE.finditer(text) if m.group().strip()]
        self.begins, self.lines = [place for place, _ in spans], [line for _, line in spans]
        self.turns = [bool(SPEAKER.match(line)) for line in self.lines]
        self.blocks = [bool(BLOCK_LINE.match(line)) for line in self.lines]
        widths = [len(line.split()) for line in self.lines]
        heads = " ".join(self.lines[:4]).lower()[:400]
        self.repeats = Counter(s.text.lower() for s in sentences if len(s.text) > SHORT)
        n = max(1, len(sentences))
        self.whole = [
            sum(self.turns) / max(1, len(self.lines)),
            sum(2 < w < 12 for w in widths) / len(widths) if len(widths) > 3 else 0.0,
            float("dear " in heads or "subject:" in heads or heads.startswith(("hi ", "hello", "to "))),
            sum(s.quoted for s in sentences) / n,
            sum(s.text[:4].lower() == "wait" for s in sentences) / n,
            sum(text.count(c) for c in "[(") / n,
        ]

    def of(self, sentence: Sentence) -> list[float]:
        """Features of the text and of the line that the sentence is in, in the order of `FORM`."""
        line = bisect_right(self.begins, sentence.start) - 1
        return [
            *self.whole,
            float(self.repeats[sentence.text.lower()] > 1),
            float(sentence.quoted),
            float(sentence.opens),
            float(self.turns[line]),
            float(self.blocks[line]),
            float(line > 0 and self.blocks[line - 1]),
            float(self.lines[line].lstrip().startswith(">")),
        ]


FORM = (
    "turn_share", "verse_share", "letter", "quoted_share", "wait_share", "bracket_share", "repeated", "quoted",
    "opens_line", "in_turn", "in_block", "after_block", "in_block_quote",
)  # fmt: skip
