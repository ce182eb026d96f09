"""Features of sentences that may begin a restart: words, meaning, topic before and after, kind of text.

They are computed in three rounds, each of fewer sentences: words of all, embeddings of those whose words suggest a
restart (`candidates`), the topic before and after those whose embeddings do (`promising`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from esr.judging.cues import CUES, FORM, GENRES, TextForm, cues, prompt_genres, words_in
from esr.judging.sentences import split_sentences
from esr.judging.texts import content_stems, piece_spans

PIECES = 3  # before and after a sentence that are compared with the prompt
CANDIDATE = 0.03  # probability by words above which a sentence is embedded: about a fifth of all
PROMISING = 0.08  # probability by embedding above which its surroundings are read: about a tenth of all
LIKELY, MAX_RUN = 0.4, 6  # sentences that count as one restart with the one before
SCALE = 4  # of embeddings, whose components are small, beside 0-1 inputs of linear models
Embeddings = Mapping[str, np.ndarray]
FIRST_PERSON = frozenset(["i", "i'm", "i've", "i'd", "i'll", "my", "me", "we", "our"])
OTHERS = frozenset(["he", "she", "his", "her", "him", "said", "asked"])
SURFACE = ("words", "new_prompt_stems", "prompt_stems", "known_stems")
CONTEXT = (
    "meaning", "wording", "meaning_2_before", "meaning_before", "meaning_after", "meaning_2_after", "wording_before",
    "wording_after", "max_other_meaning",
)  # fmt: skip
TOPIC = (
    "before_prompt", "after_prompt", "before_after", "gain", "self_prompt", "self_before", "self_after",
    "before_stems", "after_stems", "resumed_stems", "first_person_before", "first_person_after", "others_share",
)  # fmt: skip
FEATURES = [
    *CONTEXT, *CUES, *SURFACE, *TOPIC, *(f"prompt_{genre}" for genre in GENRES), "prompt_of_errors",
    "prompt_frame", *FORM,
]  # fmt: skip


class ParsedResponse:
    """A response and its sentences. `signs` [sentence, cue or surface feature]."""

    def __init__(self, prompt: str, text: str):
        self.prompt, self.text = prompt, text
        self.sentences, self.pieces = split_sentences(text), piece_spans(text)
        self.words = [words_in(s.text) for s in self.sentences]
        self.form = TextForm(text, self.sentences)
        self.genres = prompt_genres(prompt)
        self.prompt_stems = set(content_stems(prompt))
        self.stems = [set(content_stems(s.text)) for s in self.sentences]
        counts = [cues(words) for words in self.words]
        self.signs = np.array([[*c, *s] for c, s in zip(counts, self._surface(), strict=True)], dtype=float)
        self.signs = self.signs.reshape(len(self.sentences), len(CUES) + len(SURFACE))
        self.first_person = np.cumsum([0, *(sum(w in FIRST_PERSON for w in words) for words in self.words)])
        self.others = np.cumsum([0, *(sum(w in OTHERS for w in words) for words in self.words)])
        self.counts = np.cumsum([0, *map(len, self.words)])
        self.wording = self.meaning = np.zeros(len(self.sentences))
        self.frame = 0.0
        self._top: np.ndarray | None = None

    def _surface(self) -> list[list[float]]:
        rows: list[list[float]] = []
        seen: set[str] = set()
        for words, stems in zip(self.words, self.stems, strict=True):
            named = stems & self.prompt_stems
            rows.append([min(8, len(words)), *(min(3, len(s)) for s in (named - seen, named, stems & seen))])
            seen |= stems
        return rows

    def words_between(self, first: int, last: int) -> int:
        """Number of words of the sentences `first` to `last`, without the last."""
        return int(self.counts[last] - self.counts[first])

    def candidates(self) -> np.ndarray:
        """Indices of the sentences to embed."""
        return np.flatnonzero(self.wording > CANDIDATE)

    def promising(self) -> np.ndarray:
        """Indices of the sentences whose surroundings decide."""
        return np.flatnonzero(self.meaning > PROMISING)

    def max_other_meaning(self, index: int) -> float:
        """The largest probability of another sentence."""
        if self._top is None:
            self._top = np.sort(self.meaning)[-2:][::-1]
        top = self._top
        return float(top[0] if self.meaning[index] < top[0] else top[1]) if len(top) > 1 else 0.0

    def around(self, index: int) -> tuple[list[str], list[str]]:
        """The nearest `PIECES` whole pieces before a sentence, and after the restart language it begins with.

        The piece that the sentence is in stands for them where there is none.
        """
        end = index + 1
        while end < min(len(self.sentences), index + MAX_RUN) and self.meaning[end] > LIKELY:
            end += 1
        start, stop = self.sentences[index].start, self.sentences[end - 1].end
        before = [self.text[a:b] for a, b in self.pieces if b <= start] or self._within(start)
        after = [self.text[a:b] for a, b in self.pieces if a >= stop] or self._within(stop - 1)
        return before[-PIECES:], after[:PIECES]

    def _within(self, place: int) -> list[str]:
        """The piece that a character is in."""
        return [self.text[a:b] for a, b in self.pieces if a <= place < b]


def word_set(words: Sequence[str]) -> set[str]:
    """Distinct words and pairs of neighbours; the first word once more, marked."""
    pairs = (f"{a} {b}" for a, b in zip(words, words[1:], strict=False))
    return {*words, *pairs, f"^{words[0]}"} if words else set()


def capped(signs: np.ndarray) -> np.ndarray:
    """Cues as present or absent, surface features from 0 to about 2: inputs of the linear models."""
    n = len(CUES)
    return np.hstack([np.minimum(signs[:, :n], 1), signs[:, n : n + 1] / 4, signs[:, n + 1 :] / 1.5])


def score_wording(parsed: ParsedResponse, model: Mapping) -> None:
    """Set the probability, by words alone, that each sentence is restart language. model: words, signs, bias."""
    scores = np.array([sum(model["words"].get(w, 0.0) for w in word_set(words)) for words in parsed.words])
    parsed.wording = sigmoid(scores + capped(parsed.signs) @ np.asarray(model["signs"]) + model["bias"])


def score_meaning(parsed: ParsedResponse, model: Mapping, embeddings: Embeddings) -> None:
    """Set the probability, by words and embedding, of the candidates; 0 of other sentences. model: weights, bias."""
    parsed.meaning = np.zeros(len(parsed.sentences))
    if len(rows := parsed.candidates()):
        parsed.meaning[rows] = sigmoid(
            meaning_inputs(parsed, rows, embeddings) @ np.array(model["weights"]) + model["bias"]
        )


def score_frame(parsed: ParsedResponse, model: Mapping, embeddings: Embeddings) -> None:
    """Set the probability, by the prompt's embedding, that the response speaks for somebody else."""
    inputs = SCALE * embeddings[parsed.prompt]
    parsed.frame = float(sigmoid(inputs @ np.array(model["weights"]) + model["bias"]))


def meaning_inputs(parsed: ParsedResponse, rows: Int[np.ndarray, " rows"], embeddings: Embeddings) -> np.ndarray:
    """Inputs of the linear model of meaning: embedding, signs and the logarithm of the wording's probability."""
    vectors = np.stack([embeddings[parsed.sentences[i].text] for i in rows])
    return np.hstack([SCALE * vectors, capped(parsed.signs[rows]), np.log(parsed.wording[rows] + 1e-4)[:, None]])


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(x, -30, 30)))


def features(parsed: ParsedResponse, index: int, embeddings: Embeddings) -> list[float]:
    """Values of `FEATURES` of one sentence. embeddings: of the prompt, the sentence and the pieces around it."""
    context = [parsed.meaning[index], parsed.wording[index]]
    context += [_at(parsed.meaning, index + step) for step in (-2, -1, 1, 2)]
    context += [_at(parsed.wording, index - 1), _at(parsed.wording, index + 1), parsed.max_other_meaning(index)]
    return [
        *map(float, context), *parsed.signs[index], *topic(parsed, index, embeddings), *parsed.genres, parsed.frame,
        *parsed.form.of(parsed.sentences[index]),
    ]  # fmt: skip


def topic(parsed: ParsedResponse, index: int, embeddings: Embeddings) -> list[float]:
    """Values of `TOPIC`: what the text before and after a sentence is about, and who speaks there."""
    sentence, prompt = embeddings[parsed.sentences[index].text], embeddings[parsed.prompt]
    pieces = parsed.around(index)
    before, after = (mean_vector(p, embeddings) for p in pieces)
    stems_before, stems_after = (set(content_stems(" ".join(p))) for p in pieces)
    n, first_person, counts = len(parsed.sentences), parsed.first_person, parsed.counts
    return [
        float(before @ prompt), float(after @ prompt), float(before @ after), float(after @ prompt - before @ prompt),
        float(sentence @ prompt), float(sentence @ before), float(sentence @ after),
        min(3, len(stems_before & parsed.prompt_stems)), min(3, len(stems_after & parsed.prompt_stems)),
        min(5, len(stems_before & stems_after)),
        first_person[index] / max(1, counts[index]),
        (first_person[n] - first_person[index + 1]) / max(1, counts[n] - counts[index + 1]),
        parsed.others[n] / max(1, counts[n]),
    ]  # fmt: skip


def _at(values: np.ndarray, index: int) -> float:
    return float(values[index]) if 0 <= index < len(values) else 0.0


def mean_vector(texts: Sequence[str], embeddings: Embeddings) -> Float[np.ndarray, " dimension"]:
    """Unit vector of the mean; zeros for no texts."""
    if not texts:
        return np.zeros_like(next(iter(embeddings.values())))
    mean = np.mean([embeddings[t] for t in texts], axis=0)
    return mean / max(1e-9, float(np.linalg.norm(mean)))
