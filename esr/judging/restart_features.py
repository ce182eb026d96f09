"""Features of sentences that may begin a restart: words, meaning, topic before and after, kind of text.

They are computed in three rounds, each of fewer sentences: words of all (`Reading`), embeddings of those whose words
suggest a restart, the topic before and after of those whose embeddings do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from esr.judging.cues import CUES, FORM, GENRES, TextForm, cues, prompt_genres, words_in
from esr.judging.sentences import split_sentences
from esr.judging.texts import content_stems, split_pieces

WINDOW = 800  # characters before and after a sentence that are compared with the prompt
PIECES = 4  # of them, next to the sentence
OWN = frozenset("i i'm i've i'd i'll my me we our".split())
OTHERS = frozenset("he she his her him said asked".split())
SURFACE = ("words", "new_prompt_stems", "prompt_stems", "known_stems")
CONTEXT = (
    "meaning", "wording", "meaning_2_before", "meaning_before", "meaning_after", "meaning_2_after", "wording_before",
    "wording_after", "max_other_meaning",
)  # fmt: skip
TOPIC = (
    "before_prompt", "after_prompt", "before_after", "gain", "self_prompt", "self_before", "self_after",
    "before_stems", "after_stems", "resumed_stems", "own_before", "own_after", "others_share",
)  # fmt: skip
FEATURES = [
    *CONTEXT, *CUES, *SURFACE, *TOPIC, *(f"prompt_{genre}" for genre in GENRES), "prompt_of_errors", "prompt_frame", *FORM,
]  # fmt: skip


class Reading:
    """A response and its sentences. `signs` [sentence, cue or surface feature]."""

    def __init__(self, prompt: str, text: str):
        self.prompt, self.text = prompt, text
        self.sentences = split_sentences(text)
        self.words = [words_in(s.text) for s in self.sentences]
        self.form = TextForm(text, self.sentences)
        self.genres = prompt_genres(prompt)
        self.prompt_stems = set(content_stems(prompt))
        self.stems = [set(content_stems(s.text)) for s in self.sentences]
        counts = [cues(words) for words in self.words]
        self.signs = np.array([[*c, *s] for c, s in zip(counts, self._surface(), strict=True)], dtype=float)
        self.signs = self.signs.reshape(len(self.sentences), len(CUES) + len(SURFACE))
        own = [sum(w in OWN for w in words) for words in self.words]
        others = [sum(w in OTHERS for w in words) for words in self.words]
        self.own, self.others = np.cumsum([0, *own]), np.cumsum([0, *others])
        self.counts = np.cumsum([0, *map(len, self.words)])

    def _surface(self) -> list[list[float]]:
        rows, seen = [], set()
        for words, stems in zip(self.words, self.stems, strict=True):
            asked = stems & self.prompt_stems
            rows.append([min(8, len(words)), *(min(3, len(s)) for s in (asked - seen, asked, stems & seen))])
            seen |= stems
        return rows

    def n_words(self, first: int, last: int) -> int:
        """Number of words of the sentences `first` to `last`, without the last."""
        return int(self.counts[last] - self.counts[first])

    def around(self, index: int, end: int) -> tuple[list[str], list[str]]:
        """Pieces of text before the sentence and after the sentence `end` - 1, nearest `PIECES` of each."""
        start, stop = self.sentences[index].start, self.sentences[end - 1].end
        before = split_pieces(self.text[max(0, start - WINDOW) : start])[-PIECES:]
        return before, split_pieces(self.text[stop : stop + WINDOW])[:PIECES]


def wording(reading: Reading, weights: Mapping[str, float], signs: Sequence[float], bias: float) -> np.ndarray:
    """Probability by words alone that each sentence is restart language."""
    scores = [sum(weights.get(w, 0.0) for w in word_set(words)) for words in reading.words]
    return sigmoid(np.array(scores) + capped(reading.signs) @ np.asarray(signs) + bias)


def word_set(words: Sequence[str]) -> set[str]:
    """Distinct words and pairs of neighbours; the first word once more, marked."""
    pairs = (f"{a} {b}" for a, b in zip(words, words[1:], strict=False))
    return {*words, *pairs, f"^{words[0]}"} if words else set()


def capped(signs: np.ndarray) -> np.ndarray:
    """Cues as present or absent, surface features from 0 to about 2: inputs of the linear models."""
    n = len(CUES)
    return np.hstack([np.minimum(signs[:, :n], 1), signs[:, n : n + 1] / 4, signs[:, n + 1 :] / 1.5])


def meaning_inputs(vectors: np.ndarray, signs: np.ndarray, wording: np.ndarray) -> np.ndarray:
    """Inputs of the linear model of meaning: embedding, cues and the logarithm of `wording`."""
    return np.hstack([4 * vectors, capped(signs), np.log(wording + 1e-4)[:, None]])


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(x, -30, 30)))


def features(
    reading: Reading, index: int, wording: np.ndarray, meaning: np.ndarray, frame: float, embeddings: Mapping[str, np.ndarray]
) -> list[float]:
    """Values of `FEATURES` of one sentence. embeddings: unit vectors of prompt, sentence and pieces around it."""
    n, own = len(reading.sentences), embeddings[reading.sentences[index].text]
    prompt = embeddings[reading.prompt]

    def at(values: np.ndarray, i: int) -> float:
        return float(values[i]) if 0 <= i < n else 0.0

    others = np.delete(meaning, index)
    context = [
        meaning[index], wording[index], at(meaning, index - 2), at(meaning, index - 1), at(meaning, index + 1),
        at(meaning, index + 2), at(wording, index - 1), at(wording, index + 1), others.max() if n > 1 else 0.0,
    ]  # fmt: skip
    before_pieces, after_pieces = reading.around(index, run_end(meaning, index))
    before, after = mean_vector(before_pieces, embeddings), mean_vector(after_pieces, embeddings)
    stems_before, stems_after = (set(content_stems(" ".join(p))) for p in (before_pieces, after_pieces))
    topic = [
        before @ prompt, after @ prompt, before @ after, after @ prompt - before @ prompt,
        own @ prompt, own @ before, own @ after,
        min(3, len(stems_before & reading.prompt_stems)), min(3, len(stems_after & reading.prompt_stems)),
        min(5, len(stems_before & stems_after)),
        reading.own[index] / max(1, reading.counts[index]),
        (reading.own[n] - reading.own[index + 1]) / max(1, reading.n_words(index + 1, n)),
        reading.others[n] / max(1, reading.counts[n]),
    ]  # fmt: skip
    return [
        *map(float, context), *reading.signs[index], *map(float, topic), *reading.genres, frame,
        *reading.form.of(reading.sentences[index]),
    ]  # fmt: skip


def run_end(meaning: np.ndarray, index: int, threshold: float = 0.4) -> int:
    """Index after the run of sentences that look like restart language from `index` on."""
    end = index + 1
    while end < len(meaning) and meaning[end] > threshold and end < index + 6:
        end += 1
    return end


def mean_vector(texts: Sequence[str], embeddings: Mapping[str, np.ndarray]) -> Float[np.ndarray, " dimension"]:
    """Unit vector of the mean; zeros for no texts."""
    if not texts:
        return np.zeros_like(next(iter(embeddings.values())))
    mean = np.mean([embeddings[t] for t in texts], axis=0)
    return mean / max(1e-9, float(np.linalg.norm(mean)))
