"""A corpus as words, singular and plural merged."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from esr.judging.texts import WORD_CLASS
from esr.sae.corpus import Corpus

WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
WINDOW = 16  # words up to the firing token in which a label is looked for
FRAME = 0.02  # share of requests above which a word belongs to the form of the request, not to its subject
OPENING = 32  # words that stand for the subject of a document without a request


@dataclass(frozen=True)
class Words:
    """A corpus as words, singular and plural merged.

    spelling: the vocabulary. word_of, document_of: each word's entry in the vocabulary, and its document.
    at: index of the word each token is part of or follows; -1 before a document's first. pieces: text of each token.
    starts: first token of each document. subjects: what each document's request is about, without the words of form.
    entries, owners: the distinct pairs of vocabulary entry and document, by entry. requests: of each entry, the
    requests it occurs in.
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
        """The last words of a document up to a token, the token's own word last."""
        last = self.at[self.starts[document] + position]
        if last < 0:
            return self.word_of[:0]
        return self.word_of[max(last - WINDOW + 1, np.searchsorted(self.document_of, document)) : last + 1]

    def documents_with(self, w: int) -> Int[np.ndarray, " documents"]:
        first, last = np.searchsorted(self.entries, (w, w + 1))
        return self.owners[first:last]

    def may_label(self, w: int) -> bool:
        """No word of a closed class (articles, pronouns, ...), and none of the request's form ("Write a poem")."""
        word = self.spelling[w]
        return len(word) > 2 and word.lower() not in WORD_CLASS and self.requests[w] <= FRAME * len(self.starts)

    def together(self, v: int, w: int) -> float:
        """How many times as many documents have both words as if they were independent."""
        with_v, with_w = self.documents_with(v), self.documents_with(w)
        return len(np.intersect1d(with_v, with_w)) * len(self.starts) / (len(with_v) * len(with_w))


def read_words(corpus: Corpus, tokenizer) -> Words:
    """Words of the users' turns and the answers; the chat template is left out."""
    special = set(tokenizer.all_special_ids)
    vocabulary = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
    tokens, starts, responses = corpus.tokens.tolist(), corpus.starts.tolist(), corpus.responses.tolist()
    pieces: list[str] = []
    found: list[str] = []
    document_of, asked, at = [], [], np.full(len(tokens), -1)
    for d, (begin, end) in enumerate(zip(starts, [*starts[1:], len(tokens)], strict=True)):
        own = _without_template(tokens[begin:end], corpus.prefix, responses[d], special, vocabulary)
        pieces += own
        ends = np.cumsum([len(p) for p in own])
        matches = list(WORD.finditer("".join(own)))
        response_at = ends[responses[d] - 1] if responses[d] else 0
        asked += [m.start() < response_at for m in matches]
        document_of += [d] * len(matches)
        before = np.searchsorted([m.start() for m in matches], ends - 1, side="right") - 1
        at[begin:end] = np.where(before >= 0, before + len(found), -1)
        found += [m.group() for m in matches]
    spelling, word_of = _vocabulary(found)
    document_of, asked, n = np.array(document_of), np.array(asked), len(spelling)
    pairs = word_of * len(starts) + document_of  # one number for both sorts ten times faster
    entries, owners = np.divmod(np.unique(pairs), len(starts))
    requests = np.bincount(np.unique(pairs[asked]) // len(starts), minlength=n)
    count = np.bincount(word_of, minlength=n)
    subjects = _subjects(spelling, word_of, document_of, asked, requests > FRAME * len(starts), len(starts))
    return Words(
        spelling, word_of, document_of, at, pieces, np.array(starts), subjects, entries, owners, count, requests
    )


def _without_template(tokens, prefix: int, response: int, special: set[int], vocabulary: list[str]) -> list[str]:
    """Texts of a document's tokens; the template between the user's words and the answer becomes a line break."""
    closing = next((i for i in range(prefix, response) if tokens[i] in special), response)
    own = ["" if t in special else vocabulary[t] for t in tokens]
    own[:prefix] = [""] * min(prefix, len(own))
    for i in range(closing, min(response, len(own))):
        own[i] = "\n" if i == closing else ""
    return own


def _vocabulary(found: list[str]) -> tuple[list[str], Int[np.ndarray, " words"]]:
    """Distinct words, plural and possessive under their singular where the corpus has it, and each word's index.

    A word is spelt as it mostly is, with a capital letter only if that is the rule (Egypt, Tuesday).
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


def _subjects(spelling, word_of, document_of, asked, frame, n_documents: int) -> list[str]:
    """The request's words that are not of its form; without a request, the document's first words."""
    subjects = []
    borders = np.searchsorted(document_of, np.arange(n_documents + 1))
    for begin, end in zip(borders, borders[1:], strict=False):
        words = word_of[begin:end][asked[begin:end]]
        words = words[~frame[words]] if len(words) else word_of[begin:end][:OPENING]
        subjects.append(" ".join(spelling[w] for w in words))
    return subjects
