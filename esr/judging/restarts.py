"""Explicit restart language: where a response itself says that it starts again (paper section 3, judging).

Sentences are scored one by one: a linear model of words selects candidates, one of sentence embeddings (MiniLM,
Reimers & Gurevych 2019, arXiv:1908.10084) rates them, and boosted trees weigh both with the topic before and after and
the kind of text (`esr.judging.restart_features`). `esr.judging.restart_training` fits them on
data/judge/restart_examples.jsonl. Neighbouring sentences of restart language are one restart.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from esr.judging.cues import CUES
from esr.judging.embedding import Embedder, RememberingEmbedder
from esr.judging.restart_features import (
    CANDIDATE,
    FEATURES,
    LIKELY,
    PROMISING,
    Embeddings,
    ParsedResponse,
    features,
    score_frame,
    score_meaning,
    score_wording,
)
from esr.judging.trees import predict_trees
from esr.paths import DATA
from esr.storage.digests import digest
from esr.storage.files import write_text

CONTENT_WORDS = 5  # minimum words of an attempt; fewer are a restart cut by the length limit or repeated
RESTART = 0.5  # probability of restart language in a run of sentences, above which it is one (paper/LOG.md)
PART = 0.1  # probability of a beginning above which a sentence belongs to a restart
FIRST = 0.7  # a restart begins with its first sentence of at least this share of the largest probability
DETECTOR = DATA / "judge" / "restarts.json"


@dataclass(frozen=True)
class Restart:
    """`phrase` is the restart language, verbatim, at character `start`."""

    start: int
    phrase: str

    @property
    def end(self) -> int:
        return self.start + len(self.phrase)


class Detector:
    """Finds restarts; `parameters` are plain numbers (see `restart_training.fit`), stored as JSON."""

    def __init__(self, embedder: Embedder | RememberingEmbedder, parameters: dict[str, Any]):
        self.embedder, self.parameters = embedder, parameters
        self.trees = {name: np.array(values) for name, values in parameters["trees"].items()}

    @property
    def fingerprint(self) -> str:
        """Digest of the fitted parameters and of the constants that decide."""
        return digest(self.parameters, CUES, CANDIDATE, PROMISING, LIKELY, CONTENT_WORDS, RESTART, PART, FIRST)

    @classmethod
    def load(cls, embedder: Embedder | RememberingEmbedder, path: Path = DETECTOR) -> Detector:
        """The detector in `path`. Raises FileNotFoundError, or ValueError when it was fitted on other features."""
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist: run `python -m esr.judging.restart_training`.")
        parameters = json.loads(path.read_text(encoding="utf-8"))
        if parameters.get("features") != FEATURES:
            raise ValueError(f"{path} was fitted on other features: run `python -m esr.judging.restart_training`.")
        return cls(embedder, parameters)

    def save(self, path: Path = DETECTOR) -> None:
        write_text(path, json.dumps(self.parameters, separators=(",", ":")).replace('],"', '],\n"') + "\n")

    def find(self, prompts: Sequence[str], texts: Sequence[str]) -> list[list[Restart]]:
        """Restarts of each text in order, without one at its start, which follows no attempt."""
        responses = [ParsedResponse(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]
        return [group(parsed, scores) for parsed, scores in zip(responses, self.score(responses), strict=True)]

    def score(self, responses: Sequence[ParsedResponse]) -> list[Float[np.ndarray, " sentences"]]:
        """Probability that a restart begins with each sentence of each response."""
        for parsed in responses:
            score_wording(parsed, self.parameters["wording"])
        embeddings = embed_candidates(self.embedder, responses)
        for parsed in responses:
            score_meaning(parsed, self.parameters["meaning"], embeddings)
            score_frame(parsed, self.parameters["frame"], embeddings)
        rows = feature_rows(self.embedder, responses, embeddings)
        values = iter(predict_trees(self.trees, np.array(rows)) if rows else ())
        return [_spread(parsed, values) for parsed in responses]


def embed_candidates(embedder: Embedder | RememberingEmbedder, responses: Sequence[ParsedResponse]) -> Embeddings:
    """Unit vector of each prompt and candidate sentence."""
    return _embed(
        embedder,
        {r.prompt for r in responses} | {r.sentences[i].text for r in responses for i in r.candidates()},
    )


def feature_rows(
    embedder: Embedder | RememberingEmbedder, responses: Sequence[ParsedResponse], embeddings: Embeddings
) -> list[list[float]]:
    """Values of `FEATURES` of each promising sentence, response by response."""
    around = {p for r in responses for i in r.promising() for pieces in r.around(i) for p in pieces}
    embeddings = {**embeddings, **_embed(embedder, around)}
    return [features(r, i, embeddings) for r in responses for i in r.promising()]


def _embed(embedder: Embedder | RememberingEmbedder, texts: set[str]) -> Embeddings:
    ordered = sorted(texts)
    return dict(zip(ordered, embedder.encode(ordered), strict=True)) if ordered else {}


def _spread(parsed: ParsedResponse, values) -> Float[np.ndarray, " sentences"]:
    scores = np.zeros(len(parsed.sentences))
    for i in parsed.promising():
        scores[i] = min(1.0, max(0.0, float(next(values))))
    return scores


def group(parsed: ParsedResponse, scores: Float[np.ndarray, " sentences"], threshold: float = RESTART) -> list[Restart]:
    """Restarts of a response: runs of restart language that follow and precede `CONTENT_WORDS` words of content."""
    restarts: list[Restart] = []
    previous, n = 0, len(parsed.sentences)
    for run in _runs(parsed, scores):
        if 1 - np.prod(1 - scores[run]) <= threshold:
            continue
        first = run[int(np.argmax(scores[run] >= FIRST * scores[run].max()))]
        if min(parsed.words_between(previous, first), parsed.words_between(run[-1] + 1, n)) >= CONTENT_WORDS:
            start = parsed.sentences[first].start
            restarts.append(Restart(start, parsed.text[start : parsed.sentences[run[-1]].end]))
        previous = run[-1] + 1
    return restarts


def _runs(parsed: ParsedResponse, scores: Float[np.ndarray, " sentences"]) -> list[list[int]]:
    """Indices of sentences of restart language; `_adjoin` tells which of them share a run."""
    runs: list[list[int]] = []
    for i in range(len(scores)):
        near = bool(runs) and _adjoin(parsed, runs[-1][-1], i)
        if near and (scores[i] > PART or parsed.meaning[i] > LIKELY):
            runs[-1].append(i)
        elif scores[i] > PART:
            runs.append([i])
    return runs


def _adjoin(parsed: ParsedResponse, first: int, second: int) -> bool:
    """Whether there is no content between two sentences of restart language.

    A single sentence in the first person between them is none ("I was describing horses for some reason.").
    """
    if parsed.words_between(first + 1, second) < CONTENT_WORDS:
        return True
    return second == first + 2 and parsed.first_person[second] > parsed.first_person[first + 1]
