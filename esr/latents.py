"""What latents mean, whether their subject is concrete, and which of them may steer (paper section 3).

A label is made of the words that set a latent's strongest contexts apart from the rest of the corpus. It is concrete
as far as its words belong to a subject: as far as the requests whose answers use them are alike.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_array

from esr.records import Latent, Prompt
from esr.sae import Contexts, Corpus, document_residuals, encoded
from esr.texts import WORD_CLASS

WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
WINDOW = 16  # words up to the firing token in which a label is looked for
MIN_SHARE, MIN_CONTEXTS, MIN_LIFT = 0.12, 3, 6.0  # below, a word may be in the contexts by chance
FRAME = 0.02  # share of requests above which a word belongs to the form of the request, not to its subject
TOGETHER = 2.0  # how much more often than by chance two words of a label share a document
HALF = 0.05  # mean cosine between subjects at which a word is half concrete
OPENING = 32  # words that stand for the subject of a document without a request

Context = tuple[float, int, int]  # activation, document, position of the firing token in the document


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
    tokens, starts, answers = corpus.tokens.tolist(), corpus.starts.tolist(), corpus.answers.tolist()
    pieces: list[str] = []
    found: list[str] = []
    document_of, asked, at = [], [], np.full(len(tokens), -1)
    for d, (begin, end) in enumerate(zip(starts, [*starts[1:], len(tokens)], strict=True)):
        own = _without_template(tokens[begin:end], corpus.prefix, answers[d], special, vocabulary)
        pieces += own
        ends = np.cumsum([len(p) for p in own])
        matches = list(WORD.finditer("".join(own)))
        answer_at = ends[answers[d] - 1] if answers[d] else 0
        asked += [m.start() < answer_at for m in matches]
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


def _without_template(tokens, prefix: int, answer: int, special: set[int], vocabulary: list[str]) -> list[str]:
    """Texts of a document's tokens; the template between the user's words and the answer becomes a line break."""
    closing = next((i for i in range(prefix, answer) if tokens[i] in special), answer)
    own = ["" if t in special else vocabulary[t] for t in tokens]
    own[:prefix] = [""] * min(prefix, len(own))
    for i in range(closing, min(answer, len(own))):
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


def prompt_activations(
    model, tokenizer, sae, layer: int, prompts: Sequence[Prompt], batch_size: int = 16
) -> Float[np.ndarray, " d_sae"]:
    """Each latent's largest activation on any token of the users' words of any prompt (the template left out)."""
    from esr.models import chat_tokens

    template = chat_tokens(tokenizer, "")
    largest = np.zeros(sae.W_dec.shape[0], dtype=np.float32)
    for first in range(0, len(prompts), batch_size):
        chats = [chat_tokens(tokenizer, p.text) for p in prompts[first : first + batch_size]]
        before = _agreement(template, chats[0])
        after = _agreement(template[::-1], chats[0][::-1])
        turns = [list(c[1 : len(c) - after]) for c in chats]  # a document begins behind BOS
        for _, acts in encoded(sae, document_residuals(model, layer, turns, before - 1, batch_size)):
            largest = np.maximum(largest, acts.amax(0).float().cpu().numpy())
    return largest


def _agreement(a: Sequence[int], b: Sequence[int]) -> int:
    """Number of leading tokens two sequences share."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def draw_latents(
    contexts: Contexts,
    words: Words,
    concrete: Float[np.ndarray, " vocabulary"],
    prompt_activation: Float[np.ndarray, " d_sae"],
    *,
    n: int,
    seed: int,
    min_concreteness: float,
    min_density: float,
    max_density: float,
    max_prompt_share: float = 0.0,
    n_contexts: int = 8,
) -> list[Latent]:
    """Draw latents in random order until `n` are kept; each drawn one is returned, with the first reason against it.

    Density bounds, then relevance, then concreteness (`concrete`: of `word_concreteness`). Relevance: no token of any
    prompt activates the latent by more than `max_prompt_share` of its median activation in its strongest contexts; 0 is
    the rule of the authors' code. Raises ValueError when the SAE has fewer than `n` that pass.
    """
    drawn: list[Latent] = []
    for index in np.random.default_rng(seed).permutation(len(contexts.density)).tolist():
        own = contexts_of(contexts, words, index)
        found = label(words, concrete, own) if own else Label("", [], 0.0)
        density, activation = float(contexts.density[index]), float(prompt_activation[index])
        reason = "kept"
        if density < min_density:
            reason = "too rare"
        elif density > max_density:
            reason = "too dense"
        elif activation > max_prompt_share * float(np.median([a for a, _, _ in own] or [0.0])):
            reason = "fires on a prompt"
        elif not found.text or found.concreteness < min_concreteness:
            reason = "label not concrete"
        drawn.append(
            Latent(
                index=index,
                label=found.text,
                words=found.words,
                concreteness=round(found.concreteness, 4),
                density=density,
                prompt_activation=activation,
                contexts=[quote(words, c) for c in own[:n_contexts]],
                kept=reason == "kept",
                reason=reason,
            )
        )
        if sum(latent.kept for latent in drawn) == n:
            return drawn
    reasons = Counter(latent.reason for latent in drawn)
    raise ValueError(
        f"{n} latents are asked for, but only {reasons['kept']} of {len(drawn)} pass the filters "
        f"({', '.join(f'{r}: {c}' for r, c in reasons.most_common() if r != 'kept')}): "
        "ask for fewer, lower min_concreteness or widen the density bounds."
    )
