"""Parts of a response beside its attempts: cuts where nothing restarts, the placebo of a restart, and its thirds.

Cut anywhere, a response has a first and a second part whose scores differ by chance. Only what restarts show beyond
such cuts is a recovery. Thirds show a return to the prompt with or without words about it. All are of whole pieces, so
that no piece is embedded twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from esr.judging.texts import piece_spans

PLACES = (0.2, 0.4, 0.6, 0.8)  # of a response: where a placebo cut is sought
SHORTEST = 5  # words on both sides of a cut, as of an attempt


def placebo_cuts(text: str) -> list[int]:
    """Ends of pieces nearest to `PLACES`, in characters, with `SHORTEST` words on both sides; none in short texts."""
    ends = [e for _, e in piece_spans(text) if min(len(text[:e].split()), len(text[e:].split())) >= SHORTEST]
    return sorted({_nearest(ends, place * len(text)) for place in PLACES}) if ends else []


def thirds(text: str) -> list[str]:
    """Three parts of whole pieces and about equal length, in order; fewer where the pieces do not suffice."""
    ends = [end for _, end in piece_spans(text)]
    bounds = sorted({0, *(_nearest(ends, third * len(text) / 3) for third in (1, 2, 3))}) if ends else []
    return [text[a:b] for a, b in pairwise(bounds)]


def _nearest(ends: Sequence[int], place: float) -> int:
    return min(ends, key=lambda end: abs(end - place))


def both_sides(text: str, cuts: Sequence[int]) -> list[tuple[str, str]]:
    """What stands before and after each cut."""
    return [(text[:cut], text[cut:]) for cut in cuts]
