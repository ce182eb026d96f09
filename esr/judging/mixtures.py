"""Prompt-response pairs with a known on-topic share, to fit and test the relevance scorer.

The share of a text is the share of its word trigrams that come intact from a response to its prompt.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

KINDS = ("matched", "mismatched", "spliced", "returned", "shuffled", "salad", "looped", "echoed", "invaded", "decayed")
CYCLE = ("matched", "mismatched", *KINDS)  # whole responses are twice as frequent as each corruption
REWORDED = ("{}", "Tell me about {}.", "Explain how {} can be understood.", "How do I learn about {}? Explain.")
MIN_WORDS, MAX_WORDS = 15, 160  # responses are cut at random: length is uninformative


@dataclass(frozen=True)
class Pair:
    """`share` (0-1) of `text` responds to `prompt`, whose `subject` serves to split pairs by subject."""

    prompt: str
    text: str
    distractor: str
    share: float
    kind: str
    subject: str


def subject_of(request: str, forms: Sequence[str]) -> str:
    """The text in the braces of the form that `request` follows. Raises ValueError when no form fits."""
    for form in forms:
        before, after = form.split("{}")
        if request.startswith(before) and request.endswith(after):
            return request[len(before) : len(request) - len(after)]
    raise ValueError(f"The request {request!r} was made from none of the {len(forms)} forms: pass the forms it uses.")


def hold_out(subjects: Sequence[str], share: float, seed: int) -> set[str]:
    """A random `share` of the distinct subjects, held out for testing."""
    names = sorted(set(subjects))
    return set(random.Random(seed).sample(names, round(share * len(names))))


def training_pairs(
    requests: Sequence[str], responses: Sequence[str], forms: Sequence[str], n: int, seed: int
) -> list[Pair]:
    """`n` pairs of all `KINDS`; half of the prompts are reworded. Responses under `MIN_WORDS` words are left out.

    Raises ValueError when the other responses have fewer than two subjects.
    """
    documents = [
        (request, subject_of(request, forms), re.findall(r"\S+\s*", response))
        for request, response in zip(requests, responses, strict=True)
        if len(response.split()) >= MIN_WORDS
    ]
    if len({subject for _, subject, _ in documents}) < 2:
        raise ValueError(f"{len(documents)} usable responses have fewer than two subjects: give more responses.")
    rng = random.Random(seed)
    pairs = []
    for i in range(n):
        request, subject, words = rng.choice(documents)
        other = rng.choice([d for d in rng.choices(documents, k=50) if d[1] != subject] or [("", "", words[::-1])])
        words, foreign = _cut(words, rng), _cut(other[2], rng)
        text, share = _compose(kind := CYCLE[i % len(CYCLE)], words, foreign, rng)
        prompt = request if rng.random() < 0.5 else rng.choice(REWORDED).format(subject)
        distractor = "" if rng.random() < 0.4 else _label(other[1], other[2], rng)
        pairs.append(Pair(prompt, text, distractor, share, kind, subject))
    return pairs


def _cut(words: list[str], rng: random.Random) -> list[str]:
    return words[: rng.randint(MIN_WORDS, min(MAX_WORDS, len(words)))]


def _label(subject: str, words: list[str], rng: random.Random) -> str:
    """A label like those of latents: the subject or three long words."""
    long = re.findall(r"[a-z]{6,}", "".join(words))
    return subject if rng.random() < 0.5 or len(long) < 3 else ", ".join(rng.sample(long, 3))


def _compose(kind: str, words: list[str], foreign: list[str], rng: random.Random) -> tuple[str, float]:
    """A text of `kind` and its on-topic share; `words` respond to the prompt, `foreign` words to another."""
    cut = _sentence_ends(words, rng)
    if kind == "matched":
        return "".join(words), 1.0
    if kind == "mismatched":
        return "".join(foreign), 0.0
    if kind == "spliced":
        return "".join(words[:cut] + foreign), cut / (cut + len(foreign))
    if kind == "returned":
        return "".join(foreign + words[cut:]), (len(words) - cut) / (len(foreign) + len(words) - cut)
    if kind == "invaded":  # foreign words replace words at random: a trigram survives when all three do
        rate = rng.uniform(0.1, 0.9)
        mixed = [rng.choice(foreign) if rng.random() < rate else w for w in words]
        return "".join(mixed), (1 - rate) ** 3
    if kind == "echoed":  # one on-topic phrase repeated: every piece is near the prompt, yet none is a response
        length = rng.randint(2, 10)
        at = rng.randrange(max(1, len(words) - length))
        return "".join((words[at : at + length] * len(words))[: len(words)]), min(1, length / len(words))
    start = rng.choice([0, 0, cut])  # corrupted from the first word or after an intact opening
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
    elif kind == "decayed":  # coherent foreign text that breaks up: coherence alone must not identify a kind
        tail = foreign[: max(3, len(foreign) // 2)] + rng.sample(foreign, len(foreign) // 2)
        share = start / (start + len(tail))
    return "".join(words[:start] + tail), share


def _sentence_ends(words: list[str], rng: random.Random) -> int:
    """Index of a random word that begins a sentence, or of any word when no sentence ends inside."""
    ends = [i + 1 for i, w in enumerate(words[:-3]) if i >= 3 and re.search(r"[.!?]\W*$", w)]
    return rng.choice(ends or range(1, len(words)))
