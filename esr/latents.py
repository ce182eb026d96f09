"""What latents mean, whether their subject is concrete, and which ones may steer (paper section 3).

A label comes from the words that set a latent's strongest contexts apart from the rest of the corpus.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from esr.texts import WORD_CLASS, stem

WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
WINDOW = 16  # words up to the firing token in which a label is looked for


@dataclass(frozen=True)
class Words:
    """A corpus as words, inflected forms merged.

    stems: the vocabulary; `forms[s]`: how often each spelling of stem `s` occurs. stem_of, document_of: of each word.
    at: index of the word each token is part of, or follows; -1 before a document's first word.
    pieces: text of each token. count, documents: of each stem, words and documents it occurs in.
    """

    stems: list[str]
    forms: list[Counter]
    stem_of: Int[np.ndarray, " words"]
    document_of: Int[np.ndarray, " words"]
    at: Int[np.ndarray, " tokens"]
    pieces: list[str]
    starts: Int[np.ndarray, " documents"]
    count: Int[np.ndarray, " stems"]
    documents: Int[np.ndarray, " stems"]

    def window(self, document: int, position: int, size: int = WINDOW) -> Int[np.ndarray, " at_most_size"]:
        """Stems of the last words up to a token, the token's own word last."""
        last = self.at[self.starts[document] + position]
        if last < 0:
            return self.stem_of[:0]
        first = max(last - size + 1, np.searchsorted(self.document_of, document))
        return self.stem_of[first : last + 1]

    def spelling(self, s: int) -> str:
        """The most frequent spelling; with a capital letter only if that is the rule (Egypt, Tuesday)."""
        lower = Counter()
        for form, n in self.forms[s].items():
            lower[form.lower()] += n
        best = lower.most_common(1)[0][0]
        capital = sum(n for form, n in self.forms[s].items() if form.lower() == best and form[0].isupper())
        return best.capitalize() if capital > 0.8 * lower[best] else best


def read_words(corpus, tokenizer) -> Words:
    """Words of a corpus (`sae.read_corpus` or `sae.read_texts`): the users' words and the answers, no template."""
    special = set(tokenizer.all_special_ids)
    vocabulary = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
    tokens, starts, answers = corpus.tokens.tolist(), corpus.starts.tolist(), corpus.answers.tolist()
    pieces: list[str] = []
    ids: dict[str, int] = {}
    forms: list[Counter] = []
    stem_of, document_of, at = [], [], np.full(len(tokens), -1)
    for d, (begin, end) in enumerate(zip(starts, [*starts[1:], len(tokens)], strict=True)):
        own = _without_template(tokens[begin:end], corpus.prefix, answers[d], special, vocabulary)
        pieces += own
        ends = np.cumsum([len(p) for p in own])
        found = list(WORD.finditer("".join(own)))
        for word in found:
            s = ids.setdefault(stem(word.group().lower()), len(ids))
            if s == len(forms):
                forms.append(Counter())
            forms[s][word.group()] += 1
            stem_of.append(s)
            document_of.append(d)
        before = np.searchsorted([w.start() for w in found], ends - 1, side="right") - 1
        at[begin:end] = np.where(before >= 0, before + len(stem_of) - len(found), -1)
    stem_of, document_of = np.array(stem_of), np.array(document_of)
    pairs = np.unique(np.stack([stem_of, document_of]), axis=1)
    count, documents = np.bincount(stem_of, minlength=len(ids)), np.bincount(pairs[0], minlength=len(ids))
    return Words(list(ids), forms, stem_of, document_of, at, pieces, np.array(starts), count, documents)


def _without_template(tokens, prefix: int, answer: int, special: set[int], vocabulary: list[str]) -> list[str]:
    """Texts of a document's tokens, line breaks in the place of the template's."""
    own = [vocabulary[t] for t in tokens]
    closing = next((i for i in range(prefix, answer) if tokens[i] in special), answer)
    for i in (*range(prefix), *range(closing, answer)):
        own[i] = ""
    if closing < answer:
        own[closing] = "\n"
    return ["" if t in special and text != "\n" else text for t, text in zip(tokens, own, strict=True)]


@dataclass(frozen=True)
class Label:
    """text: at most three words, "" when none set the contexts apart; words: all that do, most telling first."""

    text: str
    words: list[str]
    stems: list[int]


def label(
    words: Words,
    contexts: Sequence[tuple[float, int, int]],
    *,
    min_share: float = 0.25,
    min_lift: float = 6.0,
    n_words: int = 3,
) -> Label:
    """What a latent's strongest contexts (activation, document, position) are about.

    A word's share is the activation-weighted part of the contexts that have it among their last `WINDOW` words; its
    lift is that share over the chance that a window of the corpus has it. Words of closed classes and words with
    a share or lift below the minimum do not count; the rest are ranked by share x log(lift), the term the word adds to
    the divergence of the contexts from the corpus.
    """
    share = word_shares(words, contexts)
    chance = {s: min(1.0, WINDOW * (words.count[s] + 1) / len(words.stem_of)) for s in share}
    telling = {
        s: share[s] * np.log(share[s] / chance[s])
        for s in share
        if share[s] >= min_share and share[s] / chance[s] >= min_lift and _may_label(words, s)
    }
    ranked = sorted(telling, key=telling.get, reverse=True)
    chosen = [s for s in ranked if telling[s] >= 0.4 * telling[ranked[0]]][:n_words]
    return Label(", ".join(words.spelling(s) for s in chosen), [words.spelling(s) for s in ranked[:10]], chosen)


def word_shares(words: Words, contexts: Sequence[tuple[float, int, int]]) -> dict[int, float]:
    """Activation-weighted share of the contexts whose window has each stem."""
    total = sum(activation for activation, _, _ in contexts)
    share: Counter = Counter()
    for activation, document, position in contexts:
        for s in set(words.window(document, position).tolist()):
            share[s] += activation / total
    return dict(share)


def _may_label(words: Words, s: int) -> bool:
    spelling = words.spelling(s)
    return len(spelling) > 2 and spelling.lower() not in WORD_CLASS
