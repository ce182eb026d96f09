"""Prompt-answer pairs whose on-topic, intact share is known: what the relevance scorer is fitted and tested on.

The share of a text is the share of its word trigrams that come, unbroken, from an answer to its prompt.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

KINDS = ("matched", "mismatched", "spliced", "returned", "shuffled", "salad", "looped", "echoed", "invaded", "decayed")
CYCLE = ("matched", "mismatched", *KINDS)  # whole answers twice as often as each way of spoiling one
REWORDED = ("{}", "Tell me about {}.", "Explain how {} can be understood.", "How do I learn about {}? Explain.")
MIN_WORDS, MAX_WORDS = 15, 160  # answers are cut at random, so that length says nothing


@dataclass(frozen=True)
class Pair:
    """`share` (0-1) of `text` answers `prompt`; `subject` is the prompt's, for splits that share no subject."""

    prompt: str
    text: str
    distractor: str
    share: float
    kind: str
    subject: str


def subject_of(request: str, forms: Sequence[str]) -> str:
    """What fills the braces of the form that `request` was made from. Raises ValueError when none fits."""
    for form in forms:
        before, after = form.split("{}")
        if request.startswith(before) and request.endswith(after):
            return request[len(before) : len(request) - len(after)]
    raise ValueError(f"The request {request!r} was made from none of the {len(forms)} forms: pass the forms it uses.")


def hold_out(subjects: Sequence[str], share: float, seed: int) -> set[str]:
    """A random `share` of the distinct subjects, to test on: two splits never share a subject."""
    names = sorted(set(subjects))
    return set(random.Random(seed).sample(names, round(share * len(names))))


def training_pairs(
    requests: Sequence[str], responses: Sequence[str], forms: Sequence[str], n: int, seed: int
) -> list[Pair]:
    """`n` pairs of all `KINDS`, prompts reworded half the time. Answers under 15 words are left out.

    Raises ValueError when the usable answers have fewer than two subjects.
    """
    documents = [
        (request, subject_of(request, forms), re.findall(r"\S+\s*", response))
        for request, response in zip(requests, responses, strict=True)
        if len(response.split()) >= MIN_WORDS
    ]
    if len({subject for _, subject, _ in documents}) < 2:
        raise ValueError(f"{len(documents)} usable answers share fewer than two subjects: give more answers.")
    rng = random.Random(seed)
    pairs = []
    for i in range(n):
        request, subject, words = rng.choice(documents)
        other = rng.choice([d for d in rng.choices(documents, k=50) if d[1] != subject] or [(None, "", words[::-1])])
        words, foreign = _cut(words, rng), _cut(other[2], rng)
        text, share = _compose(kind := CYCLE[i % len(CYCLE)], words, foreign, rng)
        prompt = request if rng.random() < 0.5 else rng.choice(REWORDED).format(subject)
        distractor = "" if rng.random() < 0.4 else _label(other[1], other[2], rng)
        pairs.append(Pair(prompt, text, distractor, share, kind, subject))
    return pairs


def _cut(words: list[str], rng: random.Random) -> list[str]:
    return words[: rng.randint(MIN_WORDS, min(MAX_WORDS, len(words)))]


def _label(subject: str, words: list[str], rng: random.Random) -> str:
    """A label as latents have them: a subject, or a few words of its contexts."""
    long = re.findall(r"[a-z]{6,}", "".join(words))
    return subject if rng.random() < 0.5 or len(long) < 3 else ", ".join(rng.sample(long, 3))


def _compose(kind: str, words: list[str], foreign: list[str], rng: random.Random) -> tuple[str, float]:
    """A text of `kind` made from an answer to the prompt and one to another, with its on-topic share."""
    cut = _sentence_ends(words, rng)
    if kind == "matched":
        return "".join(words), 1.0
    if kind == "mismatched":
        return "".join(foreign), 0.0
    if kind == "spliced":
        return "".join(words[:cut] + foreign), cut / (cut + len(foreign))
    if kind == "returned":
        return "".join(foreign + words[cut:]), (len(words) - cut) / (len(foreign) + len(words) - cut)
    if kind == "invaded":  # foreign words in place of the answer's own: a trigram survives when all three do
        rate = rng.uniform(0.1, 0.9)
        mixed = [rng.choice(foreign) if rng.random() < rate else w for w in words]
        return "".join(mixed), (1 - rate) ** 3
    if kind == "echoed":  # one on-topic phrase over and over: near the prompt in every piece, and no answer
        length = rng.randint(2, 10)
        at = rng.randrange(max(1, len(words) - length))
        return "".join((words[at : at + length] * len(words))[: len(words)]), min(1, length / len(words))
    start = rng.choice([0, 0, cut])  # garbled from the first word, or after an intact beginning
    share = start / len(words)
    tail = list(words[start:]) or list(words)
    if kind == "shuffled":
        rng.shuffle(tail)
    elif kind == "salad":
        tail = [rng.choice(foreign) for _ in tail]
    elif kind == "looped":
        at, length = rng.randrange(len(words)), rng.choice([1, 1, 2, 3, 5, 8])
        loop = rng.choice([words, foreign])[at : at + length] or words[-1:]
        tail = (loop * len(tail))[: len(tail)]
    elif kind == "decayed":  # coherent foreign text that breaks up: no kind of text may be told by its coherence alone
        tail = foreign[: max(3, len(foreign) // 2)] + rng.sample(foreign, len(foreign) // 2)
        share = start / (start + len(tail))
    return "".join(words[:start] + tail), share


def _sentence_ends(words: list[str], rng: random.Random) -> int:
    """A random place after the end of a sentence, or anywhere when there is none inside."""
    ends = [i + 1 for i, w in enumerate(words[:-3]) if i >= 3 and re.search(r"[.!?]\W*$", w)]
    return rng.choice(ends or range(1, len(words)))
