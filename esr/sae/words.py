"""The words of a corpus, singular and plural merged."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from esr.judging.texts import WORD_CLASS
from esr.models.chat import control_tokens
from esr.sae.corpus import Corpus

WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
WINDOW = 16  # words up to the firing token that may become a label
FRAME = 0.02  # share of requests above which a word belongs to their form, not to a subject
OPENING = 32  # first words that serve as the subject of a document without a request


@dataclass(frozen=True)
class Words:
    """The words of a corpus, singular and plural merged.

    spelling: the vocabulary. word_of, document_of: vocabulary entry and document of each word.
    at: index of the word each token belongs to or follows; -1 before a document's first word.
    pieces: text of each token. starts: index of each document's first token.
    subjects: each document's request without the words of form.
    entries, owners: distinct pairs of vocabulary entry and document, sorted by entry.
    count, requests: number of uses of each entry, and of requests with it.
    """

    spelling: list[str]
    word_of: Int[np.ndarray, " words"]
    document_of: Int[np.ndarray, " words"]
    at: Int[np.ndarray, " tokens"]
    pieces: list[str]
    starts: Int[np.ndarray, " documents"]
    subjects: list[str]
    entries: Int[np.ndarray, " pairs"]
    owners: Int[np.ndarray, " pairs"]
    count: Int[np.ndarray, " vocabulary"]
    requests: Int[np.ndarray, " vocabulary"]

    def window(self, document: int, position: int) -> Int[np.ndarray, " at_most_window"]:
        """The last `WINDOW` words of a document up to a token, in order."""
        last = self.at[self.starts[document] + position]
        if last < 0:
            return self.word_of[:0]
        return self.word_of[max(last - WINDOW + 1, np.searchsorted(self.document_of, document)) : last + 1]

    def documents_with(self, w: int) -> Int[np.ndarray, " documents"]:
        first, last = np.searchsorted(self.entries, (w, w + 1))
        return self.owners[first:last]

    def may_label(self, w: int) -> bool:
        """Whether a word is neither of a closed class (articles, pronouns, ...) nor of a form ("Write a poem")."""
        word = self.spelling[w]
        return len(word) > 2 and word.lower() not in WORD_CLASS and self.requests[w] <= FRAME * len(self.starts)

    def together(self, v: int, w: int) -> float:
        """Number of documents with both words over the number expected if they were independent."""
        with_v, with_w = self.documents_with(v), self.documents_with(w)
        return len(np.intersect1d(with_v, with_w)) * len(self.starts) / (len(with_v) * len(with_w))


def read_words(corpus: Corpus, tokenizer) -> Words:
    """Words of user messages and responses, without the chat template."""
    control = control_tokens(tokenizer)
    vocabulary = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
    tokens, starts, responses = corpus.tokens.tolist(), corpus.starts.tolist(), corpus.responses.tolist()
    pieces: list[str] = []
    found: list[str] = []
    documents: list[int] = []
    requested: list[bool] = []
    at = np.full(len(tokens), -1)
    for d, (begin, end) in enumerate(zip(starts, [*starts[1:], len(tokens)], strict=True)):
        texts = _without_template(tokens[begin:end], corpus.prefix, responses[d], control, vocabulary)
        pieces += texts
        ends = np.cumsum([len(p) for p in texts])
        matches = list(WORD.finditer("".join(texts)))
        response_at = ends[responses[d] - 1] if responses[d] else 0
        requested += [m.start() < response_at for m in matches]
        documents += [d] * len(matches)
        before = np.searchsorted([m.start() for m in matches], ends - 1, side="right") - 1
        at[begin:end] = np.where(before >= 0, before + len(found), -1)
        found += [m.group() for m in matches]
    spelling, word_of = _vocabulary(found)
    document_of, in_request, n = np.array(documents), np.array(requested), len(spelling)
    pairs = word_of * len(starts) + document_of  # one number per pair sorts ten times faster than two
    entries, owners = np.divmod(np.unique(pairs), len(starts))
    requests = np.bincount(np.unique(pairs[in_request]) // len(starts), minlength=n)
    count = np.bincount(word_of, minlength=n)
    subjects = _subjects(spelling, word_of, document_of, in_request, requests > FRAME * len(starts), len(starts))
    return Words(
        spelling, word_of, document_of, at, pieces, np.array(starts), subjects, entries, owners, count, requests
    )


def _without_template(tokens, prefix: int, response: int, control: Container[int], vocabulary: list[str]) -> list[str]:
    """Text of each token of a document; the template between user message and response becomes a line break."""
    closing = next((i for i in range(prefix, response) if tokens[i] in control), response)
    texts = ["" if t in control else vocabulary[t] for t in tokens]
    texts[:prefix] = [""] * min(prefix, len(texts))
    for i in range(closing, min(response, len(texts))):
        texts[i] = "\n" if i == closing else ""
    return texts


def _vocabulary(found: list[str]) -> tuple[list[str], Int[np.ndarray, " words"]]:
    """Spelling of distinct words and each word's index; plurals and possessives count as a singular of the corpus.

    The spelling is the most frequent one, capitalized only when over 80 % of the uses are (Egypt, Tuesday).
    """
    forms = Counter(found)
    lower: Counter = Counter()
    for form, n in forms.items():
        lower[form.lower()] += n
    singular = {w: _singular(w, lower) for w in lower}
    members: dict[str, Counter] = {}
    for form, n in forms.items():
        members.setdefault(singular[form.lower()], Counter())[form] += n
    index = {w: i for i, w in enumerate(members)}
    entry = {form: index[singular[form.lower()]] for form in forms}
    return [_spelling(forms) for forms in members.values()], np.array([entry[w] for w in found])


def _singular(word: str, known: Counter) -> str:
    for ending, instead in (("'s", ""), ("’s", ""), ("ies", "y"), ("s", ""), ("es", "")):
        base = word.removesuffix(ending) + instead
        if word.endswith(ending) and len(base) > 2 and base in known:
            return base
    return word


def _spelling(forms: Counter) -> str:
    lower: Counter = Counter()
    for form, n in forms.items():
        lower[form.lower()] += n
    best = lower.most_common(1)[0][0]
    capital = sum(n for form, n in forms.items() if form.lower() == best and form[0].isupper())
    return best.capitalize() if capital > 0.8 * lower[best] else best


def _subjects(spelling, word_of, document_of, in_request, frame, n_documents: int) -> list[str]:
    """Each request's words that are not of its form; without a request, the document's first words."""
    subjects = []
    borders = np.searchsorted(document_of, np.arange(n_documents + 1))
    for begin, end in zip(borders, borders[1:], strict=False):
        words = word_of[begin:end][in_request[begin:end]]
        words = words[~frame[words]] if len(words) else word_of[begin:end][:OPENING]
        subjects.append(" ".join(spelling[w] for w in words))
    return subjects
