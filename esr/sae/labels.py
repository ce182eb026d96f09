"""Labels of latents and their concreteness (paper section 3).

A label consists of the words that distinguish a latent's strongest contexts from the rest of the corpus. A word is
concrete to the extent that the requests whose responses use it are alike.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.sparse import csr_array

from esr.config.registry import model_entry
from esr.config.schema import ConfigError
from esr.paths import ROOT
from esr.sae.contexts import Contexts
from esr.sae.neuronpedia import Neuronpedia
from esr.sae.words import WINDOW, WORD, Words
from esr.storage.files import read_rows
from esr.storage.records import GivenLabel

MIN_SHARE, MIN_CONTEXTS, MIN_LIFT = 0.12, 3, 6.0  # below these, chance may explain a word
TOGETHER = 2.0  # minimum ratio of documents with both words of a label to those expected by chance
HALF = 0.05  # mean cosine between subjects at which concreteness is one half
Context = tuple[float, int, int]  # activation, document, position of the firing token in the document


def word_concreteness(words: Words, embedder) -> Float[np.ndarray, " vocabulary"]:
    """Concreteness of each word, 0 to 1: how alike the subjects of the documents that use it are.

    c / (c + HALF), with c the mean cosine between the subjects' sentence embeddings (centred over documents) of two
    random uses in different documents. c is 0.5 for "coral", 0.2 for "salt", 0.07 for "animals", 0.01 for "team", and 0
    for words of form and argument ("dear", "crucial", "techniques") and names of characters, whatever their frequency.
    embedder: `encode(texts) -> Float[ndarray, "texts dimension"]`.
    """
    distinct = sorted(set(words.subjects))
    vectors = embedder.encode(distinct)[np.searchsorted(distinct, words.subjects)]
    vectors = vectors - vectors.mean(0)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    shape = (len(words.spelling), len(words.starts))
    uses = csr_array((np.ones(len(words.word_of)), (words.word_of, words.document_of)), shape=shape)
    same = np.asarray(uses.multiply(uses).sum(1)).ravel()  # pairs within one document do not count
    cosine = ((uses @ vectors) ** 2).sum(1) - same
    pairs = words.count.astype(float) ** 2 - same
    cosine = np.clip(np.divide(cosine, pairs, out=np.zeros_like(cosine), where=pairs > 0), 0, None)
    seen = np.bincount(words.entries, minlength=len(words.spelling))
    return np.where(seen >= MIN_CONTEXTS, cosine / (cosine + HALF), 0.0)


GivenLabels = Mapping[int, str] | Neuronpedia


def read_labels(model_id: str) -> GivenLabels | None:
    """Labels that the model's entry names; None where they are made of contexts.

    Raises ConfigError for an index outside the SAE or with two labels.
    """
    entry = model_entry(model_id)
    if entry.labels.kind == "made":
        return None
    if entry.labels.kind == "neuronpedia":
        return Neuronpedia(entry.labels)
    if not (ROOT / entry.labels.path).is_file():
        raise ConfigError(
            f"data/models.yaml: labels.path of {model_id} is {entry.labels.path}, which does not exist: write that "
            "file, or correct the path."
        )
    rows = read_rows(ROOT / entry.labels.path, GivenLabel)
    labels = {row.index: row.label for row in rows}
    if len(labels) < len(rows):
        twice = next(i for i in labels if sum(row.index == i for row in rows) > 1)
        raise ConfigError(f"{entry.labels.path} has two labels of latent {twice}: keep one.")
    if labels and max(labels) >= (entry.d_sae or 0):
        raise ConfigError(
            f"{entry.labels.path} has a label of latent {max(labels)}, and the SAE of {model_id} has latents 0 to "
            f"{(entry.d_sae or 0) - 1}: name the labels of this SAE."
        )
    return labels


def given_label(text: str, words: Words, concrete: Float[np.ndarray, " vocabulary"]) -> Label:
    """A label that is given: as concrete as the most concrete of its words in the corpus."""
    index = {spelling.lower(): i for i, spelling in enumerate(words.spelling)}
    found = [index[word] for word in (match.group().lower() for match in WORD.finditer(text)) if word in index]
    return Label(text, [words.spelling[i] for i in found], float(max((concrete[i] for i in found), default=0.0)))


@dataclass(frozen=True)
class Label:
    """text: at most three words, "" when no word is distinctive. words: up to ten distinctive words, best first."""

    text: str
    words: list[str]
    concreteness: float


def label(words: Words, concrete: Float[np.ndarray, " vocabulary"], contexts: Sequence[Context]) -> Label:
    """Label and concreteness of a latent from its strongest contexts.

    A word's share is the activation-weighted share of contexts that have it among their last `WINDOW` words. Its lift
    is the share over the chance that a window of the corpus has it. A distinctive word has enough of both and shares
    documents with the best word. Words are ranked by share x log(lift), their part of the divergence of the contexts
    from the corpus, times a factor that grows with concreteness from 0.5 to 1.

    The label's concreteness is the activation-weighted mean over contexts of the most concrete distinctive word in the
    window (0 without one). Near 1, nearly every context is about the label's subject.
    """
    total = sum(activation for activation, _, _ in contexts)
    windows = [(a / total, set(words.window(d, p).tolist())) for a, d, p in contexts]
    share: defaultdict[int, float] = defaultdict(float)
    seen: Counter[int] = Counter()
    for weight, window in windows:
        for w in window:
            share[w] += weight
            seen[w] += 1
    scores: dict[int, float] = {}
    for w, part in share.items():
        lift = part / min(1.0, WINDOW * words.count[w] / len(words.word_of))
        if part >= MIN_SHARE and seen[w] >= MIN_CONTEXTS and lift >= MIN_LIFT and words.may_label(w):
            scores[w] = part * np.log(lift) * (0.5 + 0.5 * concrete[w])
    ranked = sorted(scores, key=scores.__getitem__, reverse=True)
    ranked = [w for w in ranked if w == ranked[0] or words.together(ranked[0], w) >= TOGETHER]
    best = [weight * max((concrete[w] for w in ranked if w in window), default=0.0) for weight, window in windows]
    clear = [words.spelling[w] for w in ranked if scores[w] >= 0.35 * scores[ranked[0]]]
    spelt = [words.spelling[w] for w in ranked[:10]]
    return Label(", ".join(_without_variants(clear)[:3]), spelt, float(sum(best)))


def _without_variants(spelt: list[str]) -> list[str]:
    """Drop words that begin like an earlier one: electricity, electric; bake, baking."""
    kept: list[str] = []
    for word in spelt:
        if not any(word[:5].lower() == w[:5].lower() or word.startswith(w) or w.startswith(word) for w in kept):
            kept.append(word)
    return kept


def contexts_of(contexts: Contexts, words: Words, latent: int) -> list[Context]:
    """A latent's strongest contexts, without template tokens inside a response: their residuals resemble BOS's."""
    rows = (contexts.activation[latent], contexts.document[latent], contexts.position[latent])
    found = zip(*(r.tolist() for r in rows), strict=True)
    return [(a, d, p) for a, d, p in found if a > 0 and words.pieces[words.starts[d] + p]]


def quote(words: Words, context: Context, before: int = 14, after: int = 5) -> str:
    """Text around a firing token, which is marked « »; ¶ stands for a line break. before, after: tokens."""
    _, document, position = context
    at, begin = words.starts[document] + position, words.starts[document]
    end = words.starts[document + 1] if document + 1 < len(words.starts) else len(words.pieces)
    left, right = words.pieces[max(begin, at - before) : at], words.pieces[at + 1 : min(end, at + 1 + after)]
    piece = words.pieces[at]
    spaces = piece[: len(piece) - len(piece.lstrip(" "))]
    return ("".join(left) + spaces + "«" + piece[len(spaces) :] + "»" + "".join(right)).strip().replace("\n", "¶")
