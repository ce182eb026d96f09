"""Parts of a response beside its attempts: cuts where nothing restarts, the placebo of a restart, and its thirds.

Cut anywhere, a response has a first and a second part whose scores differ by chance. Only what restarts show beyond
such cuts is a recovery. Thirds show a return to the prompt with or without words about it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from esr.judging.texts import sentence_ends

PLACES = (0.2, 0.4, 0.6, 0.8)  # of a response: where a placebo cut is sought
SHORTEST = 5  # words on both sides of a cut, as of an attempt


def placebo_cuts(text: str) -> list[int]:
    """Ends of sentences nearest to `PLACES`, in characters, with `SHORTEST` words on both sides; none in short ones."""
    ends = [e for e in sentence_ends(text) if min(len(text[:e].split()), len(text[e:].split())) >= SHORTEST]
    nearest = [min(ends, key=lambda end: abs(end - place * len(text))) for place in PLACES] if ends else []
    return sorted(set(nearest))


def thirds(text: str) -> list[str]:
    """Three parts of about equally many words, in order; fewer where the words do not suffice."""
    words = text.split()
    bounds = [round(len(words) * part / 3) for part in range(4)]
    return [" ".join(words[a:b]) for a, b in pairwise(bounds) if b > a]


def both_sides(text: str, cuts: Sequence[int]) -> list[tuple[str, str]]:
    """What stands before and after each cut."""
    return [(text[:cut], text[cut:]) for cut in cuts]
