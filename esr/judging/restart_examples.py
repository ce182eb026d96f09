"""Labelled responses that the restart detector is fitted on, made of data/judge/restart_examples.jsonl.

A classifier learns whatever tells restarts from the rest, the length of the example included. Examples are therefore
also shown within longer texts, sentences alone stand between two responses as restarts do, and two responses meet
without a word where nothing is to be found.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from esr.judging.restart_features import ParsedResponse
from esr.judging.sentences import split_sentences
from esr.storage.records import RestartExample

LONGER = 2  # longer versions of each example with a restart; one of each without
PLACES = 3  # places where each near miss stands
JUMPS = 250  # pairs of responses without a word between
SLACK = 2  # characters between the annotated start of a restart and the first word of its sentence
UNKNOWN = 3  # sentences after an annotated start that may belong to it
# Weights of examples by origin: made by rule, plain text, which is frequent, and annotated responses, which are few
SPLICED, PLAIN, ANNOTATED = 0.6, 3.0, 2.0
CONTINUED = 0.5  # of sentences that continue a restart


@dataclass
class LabelledResponse:
    """A response with labels of its sentences. family: examples with a text in common."""

    parsed: ParsedResponse
    family: str
    kind: str
    begins: np.ndarray  # whether a restart begins with the sentence
    belongs: np.ndarray  # whether it is restart language
    weights: np.ndarray
    starts: list[int]

    @property
    def certain(self) -> np.ndarray:
        return self.weights > 0


def label(
    prompt: str, text: str, spans: Sequence[tuple[int, int]], *, family: str, kind: str, weight: float = 1.0
) -> LabelledResponse:
    """Labels from the spans of restarts; a sentence that a restart begins within has no weight."""
    parsed = ParsedResponse(prompt, text)
    n = len(parsed.sentences)
    begins, belongs, weights = np.zeros(n), np.zeros(n), np.full(n, weight)
    for start, end in spans:
        inside = [i for i, s in enumerate(parsed.sentences) if start - SLACK <= s.start < end]
        belongs[inside], weights[inside] = 1, CONTINUED * weight
        if inside:
            begins[inside[0]], weights[inside[0]] = 1, weight
        weights[[i for i, s in enumerate(parsed.sentences) if s.start < start - SLACK < s.end - SLACK]] = 0
    return LabelledResponse(parsed, family, kind, begins, belongs, weights, [start for start, _ in spans])


def label_annotated(
    prompt: str, text: str, starts: Sequence[int], family: str, disputed: Sequence[int] = ()
) -> LabelledResponse:
    """Labels from annotated starts; where a restart ends is not annotated.

    disputed: starts that one annotator found and another did not; their sentences have no weight.
    """
    found = label(prompt, text, [], family=family, kind="annotated", weight=ANNOTATED)
    places = np.array([s.start for s in found.parsed.sentences])
    first, unclear = ([int(np.abs(places - start).argmin()) for start in some] for some in (starts, disputed))
    for i in first:
        found.weights[i + 1 : i + 1 + UNKNOWN] = 0
    found.weights[unclear] = 0
    found.begins[first] = found.belongs[first] = 1
    found.weights[first] = ANNOTATED
    found.starts = list(starts)
    return found


def labelled_responses(examples: Sequence[RestartExample], seed: int) -> list[LabelledResponse]:
    """All examples, as they are and within longer texts."""
    rng = random.Random(seed)
    plain = [e for e in examples if e.kind == "plain"]
    found = []
    for i, example in enumerate(examples):
        family = f"{example.kind}-{i}"
        spans = [(example.start, example.end)] if example.kind == "restart" else []
        if example.kind in ("phrase", "near_miss"):
            places = 1 if example.kind == "phrase" else PLACES
            found += [_between(example.text, example.kind, family, examples, rng) for _ in range(places)]
            continue
        weight = PLAIN if example.kind == "plain" else 1.0
        found.append(label(example.prompt, example.text, spans, family=family, kind=example.kind, weight=weight))
        longer = {"restart": LONGER, "none": 1, "plain": 0}[example.kind]
        found += [_within(example, spans, family, plain, rng) for _ in range(longer)]
    return found + [_between("", "near_miss", f"jump-{i}", examples, rng) for i in range(JUMPS)]


def _within(example: RestartExample, spans, family: str, plain: Sequence[RestartExample], rng) -> LabelledResponse:
    """The example with sentences of other responses before, mostly, and after."""
    before = _excerpt(rng.choice(plain).text, rng.randint(1, 4), rng) if rng.random() < 0.7 else ""
    before += rng.choice([" ", "\n\n"]) if before else ""
    after = rng.choice([" ", "\n\n"]) + _excerpt(rng.choice(plain).text, rng.randint(2, 7), rng)
    shifted = [(start + len(before), end + len(before)) for start, end in spans]
    text = f"{before}{example.text}{after}"
    return label(example.prompt, text, shifted, family=family, kind=f"longer {example.kind}", weight=SPLICED)


def _between(sentence: str, kind: str, family: str, examples: Sequence[RestartExample], rng) -> LabelledResponse:
    """A sentence in place of the restart of an example, or between two responses; a changed subject alone is none."""
    prompt, before, after = _frame(examples, rng)
    before += "" if before[-1:].isspace() else rng.choice([" ", " ", "\n\n"])
    after = (rng.choice([" ", "\n\n"]) if sentence else "") + after.lstrip()
    spans = [(len(before), len(before) + len(sentence))] if kind == "phrase" else []
    return label(prompt, f"{before}{sentence}{after}", spans, family=family, kind=kind, weight=SPLICED)


def _frame(examples: Sequence[RestartExample], rng) -> tuple[str, str, str]:
    """A prompt, text on something else, and text on the prompt."""
    example = rng.choice([e for e in examples if e.kind in ("restart", "plain")])
    if example.kind == "restart":
        return example.prompt, example.text[: example.start], example.text[example.end :]
    other = rng.choice([e for e in examples if e.kind == "plain"]).text
    ends = [s.end for s in split_sentences(other)]
    before = other[: ends[min(len(ends) - 1, rng.randint(2, 8))]] if ends else other
    return example.prompt, before + ("" if before[-1:] in ".!?:" else "."), example.text


def _excerpt(text: str, n_sentences: int, rng) -> str:
    sentences = split_sentences(text)
    if len(sentences) < 4:
        return text
    first = rng.randrange(len(sentences) - 2)
    return text[sentences[first].start : sentences[min(len(sentences) - 1, first + n_sentences)].end]
