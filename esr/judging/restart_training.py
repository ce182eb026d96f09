"""Fits the restart detector: `python -m esr.judging.restart_training` writes data/judge/restarts.json.

Each round learns from the one before as it will be used: on responses that the earlier round was not fitted on
(stacking, Wolpert 1992). Precision and recall are measured by cross-validation over families of examples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from esr.judging.embedding import Embedder, RememberingEmbedder, load_embedder
from esr.judging.labels import read_labelled
from esr.judging.restart_examples import LabelledResponse, label_annotated, labelled_responses
from esr.judging.restart_features import (
    FEATURES,
    SCALE,
    Embeddings,
    capped,
    meaning_inputs,
    score_frame,
    score_meaning,
    score_wording,
    word_set,
)
from esr.judging.restarts import DETECTOR, Detector, embed_candidates, feature_rows
from esr.judging.trees import fit_trees, mean_trees
from esr.paths import DATA
from esr.progress import say
from esr.storage.digests import seeded
from esr.storage.files import read_rows
from esr.storage.records import AnnotatedResponse, RestartCase, RestartExample

SEED = 2602
FOLDS = 8
MIN_FAMILIES = 3  # of examples that a word or pair of words occurs in
MIN_WEIGHT = 0.03  # of words; smaller ones are left out
CLOSE = 10  # characters between a found and an annotated start of the same restart
FORESTS = 4  # with other random choices, whose mean varies less between fits
TREES = {"max_iter": 120, "learning_rate": 0.06, "min_samples_leaf": 25, "max_features": 0.3}
Rows = Sequence[LabelledResponse]


def fit(rows: Rows, embedder: Embedder | RememberingEmbedder, seed: int = SEED) -> Detector:
    """A detector fitted on labelled responses. Raises ValueError when no restart is among them."""
    if not any(row.begins.any() for row in rows):
        raise ValueError("The examples hold no restart: give some with and some without.")
    wording = _stacked(rows, fit_wording, lambda row, model: score_wording(row.parsed, model), seed)
    embeddings = embed_candidates(embedder, [row.parsed for row in rows])
    meaning = _stacked(
        rows,
        lambda some: fit_meaning(some, embeddings),
        lambda row, model: score_meaning(row.parsed, model, embeddings),
        seed,
    )
    frame = _stacked(
        rows,
        lambda some: fit_frame(some, embeddings),
        lambda row, model: score_frame(row.parsed, model, embeddings),
        seed,
    )
    values = np.array(feature_rows(embedder, [row.parsed for row in rows], embeddings))
    chosen = [(row, row.parsed.promising()) for row in rows]
    targets = np.concatenate([row.begins[indices] for row, indices in chosen])
    weights = np.concatenate([row.weights[indices] for row, indices in chosen])
    trees = mean_trees([
        fit_trees(values, targets, [0] * len(FEATURES), seed + i, weights, **TREES) for i in range(FORESTS)
    ])  # fmt: skip
    return Detector(
        embedder, {"features": FEATURES, "wording": wording, "meaning": meaning, "frame": frame, "trees": trees}
    )


def _stacked(rows: Rows, fit_model: Callable, score: Callable, seed: int) -> dict[str, Any]:
    """The model of all rows, after each row was scored by one that was fitted without its family."""
    for train, test in split(rows, FOLDS, seed):
        model = fit_model(train)
        for row in test:
            score(row, model)
    return fit_model(rows)


def split(rows: Rows, n: int, seed: int) -> list[tuple[list[LabelledResponse], list[LabelledResponse]]]:
    """`n` pairs of training and test rows; a family is in one test part as a whole."""
    families = sorted({row.family for row in rows})
    seeded(seed, n).shuffle(families)
    part = {family: i % n for i, family in enumerate(families)}
    return [([r for r in rows if part[r.family] != i], [r for r in rows if part[r.family] == i]) for i in range(n)]


def fit_wording(rows: Rows) -> dict[str, Any]:
    """Weights of words, pairs of words and signs in a logistic regression of restart language."""
    from scipy import sparse

    vocabulary = {word: i for i, word in enumerate(sorted(_vocabulary(rows)))}
    places, columns = [], []
    sentences = [words for row in rows for words in row.parsed.words]
    for place, words in enumerate(sentences):
        found = [vocabulary[word] for word in word_set(words) if word in vocabulary]
        places += [place] * len(found)
        columns += found
    bag = sparse.csr_matrix((np.ones(len(places)), (places, columns)), (len(sentences), len(vocabulary)))
    signs = capped(np.vstack([row.parsed.signs for row in rows]))
    weights, bias = _logistic(sparse.hstack([bag, signs]).tocsr(), *_language(rows), strength=0.5)
    kept = {word: round(weights[i], 3) for word, i in vocabulary.items() if abs(weights[i]) >= MIN_WEIGHT}
    return {"words": kept, "signs": _rounded(weights[len(vocabulary) :]), "bias": round(bias, 4)}


def _vocabulary(rows: Rows) -> set[str]:
    """Words and pairs of restart language and of texts that resemble it, of at least `MIN_FAMILIES` families."""
    seen: dict[str, set[str]] = {}
    for row in rows:
        for words, language in zip(row.parsed.words, row.belongs, strict=True):
            if language or row.kind in ("none", "near_miss", "annotated"):
                for word in word_set(words):
                    seen.setdefault(word, set()).add(row.family)
    return {word for word, families in seen.items() if len(families) >= MIN_FAMILIES}


def fit_meaning(rows: Rows, embeddings: Embeddings) -> dict[str, Any]:
    """Weights of embedding and signs of a candidate in a logistic regression of restart language."""
    chosen = [(row, row.parsed.candidates()) for row in rows if len(row.parsed.candidates())]
    inputs = np.vstack([meaning_inputs(row.parsed, indices, embeddings) for row, indices in chosen])
    targets = np.concatenate([row.belongs[indices] for row, indices in chosen])
    weights, bias = _logistic(inputs, targets, np.concatenate([row.weights[i] for row, i in chosen]), strength=0.1)
    return {"weights": _rounded(weights), "bias": round(bias, 4)}


def fit_frame(rows: Rows, embeddings: Embeddings) -> dict[str, Any]:
    """Weights of a prompt's embedding: is restart language in the response that of somebody else?"""
    prompts = {(row.parsed.prompt, row.kind) for row in rows if row.kind in ("restart", "none")}
    ordered = sorted(prompts)
    inputs = SCALE * np.stack([embeddings[prompt] for prompt, _ in ordered])
    targets = np.array([kind == "none" for _, kind in ordered], dtype=float)
    if len(set(targets)) < 2:
        return {"weights": [0.0] * inputs.shape[1], "bias": 0.0}
    balance = np.where(targets > 0, 1 / targets.mean(), 1 / (1 - targets.mean())) / 2
    weights, bias = _logistic(inputs, targets, balance, strength=0.3)
    return {"weights": _rounded(weights), "bias": round(bias, 4)}


def _language(rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate([row.belongs for row in rows]), np.concatenate([row.weights for row in rows])


def _logistic(inputs, targets: np.ndarray, weights: np.ndarray, strength: float) -> tuple[list[float], float]:
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=strength, max_iter=3000).fit(inputs, targets, sample_weight=weights)
    return model.coef_[0].tolist(), float(model.intercept_[0])


def _rounded(weights: Sequence[float]) -> list[float]:
    return [round(float(weight), 4) for weight in weights]


def evaluate(detector: Detector, rows: Rows) -> Counter[str]:
    """Counts of "found", "missed" and "false" restarts; a start is found within `CLOSE` characters."""
    counts: Counter[str] = Counter()
    found = detector.find([row.parsed.prompt for row in rows], [row.parsed.text for row in rows])
    for row, restarts in zip(rows, found, strict=True):
        left = list(row.starts)
        for restart in restarts:
            near = [start for start in left if abs(start - restart.start) <= CLOSE]
            counts["found" if near else "false"] += 1
            if near:
                left.remove(near[0])
        counts["missed"] += len(left)
    return counts


def summary(counts: Counter[str]) -> str:
    """Precision and recall in words."""
    found, false, missed = counts["found"], counts["false"], counts["missed"]
    shares = [f"{found / n:.2f}" if n else "-" for n in (found + false, found + missed)]
    return f"precision {shares[0]} ({false} false), recall {shares[1]} ({missed} missed), {found + missed} restarts"


def main() -> None:
    embedder = RememberingEmbedder(load_embedder(), capacity=1_000_000)
    rows = labelled_responses(read_rows(DATA / "judge" / "restart_examples.jsonl", RestartExample), SEED)
    for row in read_rows(DATA / "judge" / "annotated.jsonl", AnnotatedResponse):
        rows.append(label_annotated(row.prompt, row.text, row.starts, row.id))
    for case in read_rows(DATA / "judge" / "restart_cases.jsonl", RestartCase):
        if case.part == "develop":
            rows.append(label_annotated(case.prompt, case.text, case.starts, case.id))
    for labelled in read_labelled("develop"):
        response = labelled.response
        starts, disputed = labelled.shared_starts, labelled.disputed_starts
        rows.append(label_annotated(response.prompt, response.text, starts, response.id, disputed))
    fit(rows, embedder).save()
    say(f"wrote {DETECTOR}")
    counts: dict[str, Counter[str]] = {}
    for train, test in split(rows, FOLDS // 2, SEED + 1):
        detector = fit(train, embedder)
        for kind in sorted({row.kind for row in test}):
            counts.setdefault(kind, Counter()).update(evaluate(detector, [r for r in test if r.kind == kind]))
    for kind, found in counts.items():
        say(f"{kind}, cross-validated: {summary(found)}")


if __name__ == "__main__":
    main()
