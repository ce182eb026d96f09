"""What latents mean, whether their subject is concrete, and which of them may steer (paper section 3).

A label is made of the words that set a latent's strongest contexts apart from the rest of the corpus. It is concrete
as far as its words belong to a subject: as far as the requests whose answers use them are alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.sparse import csr_array

from esr.sae.contexts import Contexts
from esr.sae.words import WINDOW, Words

MIN_SHARE, MIN_CONTEXTS, MIN_LIFT = 0.12, 3, 6.0  # below, a word may be in the contexts by chance
TOGETHER = 2.0  # how much more often than by chance two words of a label share a document
HALF = 0.05  # mean cosine between subjects at which a word is half concrete
Context = tuple[float, int, int]  # activation, document, position of the firing token in the document


def word_concreteness(words: Words, embedder) -> Float[np.ndarray, " vocabulary"]:
    """How much a word belongs to a subject, 0 to 1: are the subjects of answers that use it alike?

    The mean cosine between the subjects' sentence embeddings (mean over documents taken off) of two random uses of the
    word in different documents: "coral" 0.5, "salt" 0.2, "animals" 0.07, "team" 0.01; words of form and argument
    ("dear", "crucial", "techniques") and the names of characters 0, whatever their frequency. c / (c + HALF) brings it
    to 0-1. embedder: `encode(texts) -> Float[ndarray, "texts dimension"]`.
    """
    distinct = sorted(set(words.subjects))
    vectors = embedder.encode(distinct)[np.searchsorted(distinct, words.subjects)]
    vectors = vectors - vectors.mean(0)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    shape = (len(words.spelling), len(words.starts))
    uses = csr_array((np.ones(len(words.word_of)), (words.word_of, words.document_of)), shape=shape)
    same = np.asarray(uses.multiply(uses).sum(1)).ravel()  # pairs of uses within one document do not count
    cosine = ((uses @ vectors) ** 2).sum(1) - same
    pairs = words.count.astype(float) ** 2 - same
    cosine = np.clip(np.divide(cosine, pairs, out=np.zeros_like(cosine), where=pairs > 0), 0, None)
    seen = np.bincount(words.entries, minlength=len(words.spelling))
    return np.where(seen >= MIN_CONTEXTS, cosine / (cosine + HALF), 0.0)


@dataclass(frozen=True)
class Label:
    """text: at most three words, "" when none set the contexts apart; words: all that do, most telling first."""

    text: str
    words: list[str]
    concreteness: float


def label(words: Words, concrete: Float[np.ndarray, " vocabulary"], contexts: Sequence[Context]) -> Label:
    """What a latent's strongest contexts are about, and how concrete it is.

    A word's share is the activation-weighted part of the contexts that have it among their last `WINDOW` words; its
    lift is that share over the chance that a window of the corpus has it. Words with too little of either, and those
    that avoid the most telling word's documents, do not count. They are ranked by share x log(lift), what the word
    adds to the divergence of the contexts from the corpus, times its concreteness (one half at least).

    The label's concreteness is the activation-weighted mean, over contexts, of the concreteness of the most concrete
    telling word in their window (0 where there is none): near 1, nearly every context is about the label's subject.
    """
    total = sum(activation for activation, _, _ in contexts)
    windows = [(a / total, set(words.window(d, p).tolist())) for a, d, p in contexts]
    share, seen = Counter(), Counter()
    for weight, window in windows:
        for w in window:
            share[w] += weight
            seen[w] += 1
    telling = {}
    for w, part in share.items():
        lift = part / min(1.0, WINDOW * words.count[w] / len(words.word_of))
        if part >= MIN_SHARE and seen[w] >= MIN_CONTEXTS and lift >= MIN_LIFT and words.may_label(w):
            telling[w] = part * np.log(lift) * (0.5 + 0.5 * concrete[w])
    ranked = sorted(telling, key=telling.get, reverse=True)
    ranked = [w for w in ranked if w == ranked[0] or words.together(ranked[0], w) >= TOGETHER]
    best = [weight * max((concrete[w] for w in ranked if w in window), default=0.0) for weight, window in windows]
    clear = [words.spelling[w] for w in ranked if telling[w] >= 0.35 * telling[ranked[0]]]
    spelt = [words.spelling[w] for w in ranked[:10]]
    return Label(", ".join(_without_variants(clear)[:3]), spelt, float(sum(best)))


def _without_variants(spelt: list[str]) -> list[str]:
    """Leave out words that begin like an earlier one: electricity, electric; bake, baking."""
    kept: list[str] = []
    for word in spelt:
        if not any(word[:5].lower() == w[:5].lower() or word.startswith(w) or w.startswith(word) for w in kept):
            kept.append(word)
    return kept


def contexts_of(contexts: Contexts, words: Words, latent: int) -> list[Context]:
    """A latent's strongest contexts; none at template tokens within an answer, whose residuals are as odd as BOS's."""
    rows = (contexts.activation[latent], contexts.document[latent], contexts.position[latent])
    found = zip(*(r.tolist() for r in rows), strict=True)
    return [(a, d, p) for a, d, p in found if a > 0 and words.pieces[words.starts[d] + p]]


def quote(words: Words, context: Context, before: int = 14, after: int = 5) -> str:
    """The text around a firing token, which stands between « and »; line breaks as ¶."""
    _, document, position = context
    at, begin = words.starts[document] + position, words.starts[document]
    end = words.starts[document + 1] if document + 1 < len(words.starts) else len(words.pieces)
    left, right = words.pieces[max(begin, at - before) : at], words.pieces[at + 1 : min(end, at + 1 + after)]
    piece = words.pieces[at]
    gap = piece[: len(piece) - len(piece.lstrip(" "))]
    return ("".join(left) + gap + "«" + piece[len(gap) :] + "»" + "".join(right)).strip().replace("\n", "¶")
