"""Relevance of a text to its prompt, 0-100: a scorer fitted on texts with a known on-topic share.

`training_pairs` makes these texts from the model's responses: a response with its request (share 1) or another request
(0), two responses spliced at a known place, and responses corrupted by shuffled, foreign or looping words, whose share
is that of intact word trigrams. `fit` regresses the share on `FEATURES` of topic (sentence embeddings, shared word
stems), distractor and coherence. A small model often strays unsteered: `on_topic` selects responses for share 1.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from esr.judging.embedding import Embedder, RememberingEmbedder
from esr.judging.mixtures import Pair
from esr.judging.texts import (
    CLASS_NAMES,
    WORD_CLASS,
    content_stems,
    plain,
    split_pieces,
    without_echo,
    word_classes,
    words_of,
)
from esr.judging.trees import fit_trees, predict_trees
from esr.storage.digests import digest
from esr.storage.files import write_text

TEXTS = "lower case, no Markdown, no echo of the prompt"  # as `prepare` makes them: part of what a scorer is fitted on
MIN_KNOWN = 0.25  # of the words: below, a text is no language that the scorer knows
MIN_LABELLED, LABELLED_LEAF = 100, 15  # scored texts to calibrate on, and in each leaf
STRAY = 0.05  # a response nearer to this share of all subjects than to its subject is off topic
# Features of one (prompt, text, distractor). Score is monotonic in them: 1 increasing, -1 decreasing, 0 unconstrained.
FEATURES = {
    "whole_cosine": 1, "mean_cosine": 1, "max_cosine": 1, "lower_quartile_cosine": 1,
    "upper_quartile_cosine": 1, "end_cosine": 1,
    "near_share": 1, "distractor_margin": -1, "distractor_share": -1, "stem_coverage": 0, "stem_density": 0,
    "flow": 0, "pair_likelihood": 0, "lowest_pair_likelihood": 0, "known_words": 1, "function_words": 0, "letters": 0,
    "distinct_words": 1, "distinct_pairs": 1, "top_word": -1, "longest_run": -1, "log_words": 0,
}  # fmt: skip


def features(prompt, text, distractor, embeddings, likelihood, near, known) -> list[float]:
    """Values of `FEATURES`, in order.

    embeddings: text -> unit vector. likelihood: log-ratio of class pairs. near(cosine): probability that a piece is on
    topic. known: common words.
    """
    pieces = split_pieces(text)
    weights = np.array([len(p.split()) for p in pieces], dtype=float)
    weights /= weights.sum()
    vectors = np.stack([embeddings[p] for p in pieces])
    whole = weights @ vectors
    cosines = vectors @ embeddings[prompt]
    ordered, cumulative = np.sort(cosines), np.cumsum(weights[np.argsort(cosines)])
    lower, upper = (ordered[min(int(np.searchsorted(cumulative, q)), len(ordered) - 1)] for q in (0.25, 0.75))
    margin = vectors @ embeddings[distractor] - cosines if distractor else None
    flow = (vectors[1:] * vectors[:-1]).sum(1).mean() if len(vectors) > 1 else np.nan
    classes = word_classes(text)
    pairs = likelihood[classes[:-1], classes[1:]] if len(classes) > 1 else np.zeros(1)
    window = np.convolve(pairs, np.ones(12) / 12, mode="valid") if len(pairs) >= 12 else pairs.mean(keepdims=True)
    words = words_of(text) or ["?"]
    stems, prompt_stems = Counter(content_stems(text)), set(content_stems(prompt))
    hits = [stems[s] for s in prompt_stems]
    first, content = words[:60], [w for w in words if w not in WORD_CLASS]
    return [
        whole @ embeddings[prompt] / np.linalg.norm(whole),
        weights @ cosines, ordered[-1], lower, upper,
        cosines[-max(1, len(cosines) // 3) :].mean(),
        weights @ near(cosines),
        weights @ margin if margin is not None else np.nan,
        float(weights @ (margin > 0)) if margin is not None else np.nan,
        float(np.mean([h > 0 for h in hits])) if hits else np.nan,
        np.log1p(100 * sum(hits) / len(words)),
        flow, pairs.mean(), np.quantile(window, 0.1),
        float(np.mean([w in known or w.split("'")[0] in known for w in words])),
        float(np.mean([w in WORD_CLASS for w in words])),
        sum(c.isalpha() or c == " " for c in text) / len(text),
        len(set(first)) / len(first) ** 0.8,
        len(set(zip(words, words[1:], strict=False))) / max(1, len(words) - 1),
        max(Counter(content).values()) / len(words) if content else 1.0,
        np.log(_longest_run(words)),
        np.log(len(words)),
    ]  # fmt: skip


def _longest_run(words: Sequence[str]) -> int:
    return max(len(list(run)) for _, run in groupby(words))


def prepare(text: str, prompt: str) -> str:
    """What of `text` is scored: without what it copies from its prompt, in a form that layout does not change."""
    return plain(without_echo(text, prompt))


def is_language(text: str, known: Set[str]) -> bool:
    """Whether at least `MIN_KNOWN` of the words are common ones."""
    words = words_of(text)
    return bool(words) and sum(w in known or w.split("'")[0] in known for w in words) >= MIN_KNOWN * len(words)


class Scorer:
    """The fitted scorer; `parameters` are plain numbers (see `fit`), stored as JSON."""

    def __init__(self, embedder: Embedder | RememberingEmbedder, parameters: dict):
        self.embedder, self.parameters = embedder, parameters
        self.likelihood = np.array(parameters["class_pairs"])
        self.trees = {name: np.array(values) for name, values in parameters["trees"].items()}
        self.calibration = {name: np.array(values) for name, values in parameters.get("calibration", {}).items()}
        self.known: dict[str, np.ndarray] = {}  # embeddings of prompts and labels, which recur

    @property
    def fingerprint(self) -> str:
        """Digest of the fitted parameters."""
        return digest(self.parameters)

    @classmethod
    def load(cls, path: Path, embedder: Embedder | RememberingEmbedder) -> Scorer:
        """The scorer in `path`. Raises FileNotFoundError, or ValueError when it was fitted on other features."""
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist: run the stage that fits the relevance scorer.")
        parameters = json.loads(path.read_text(encoding="utf-8"))
        expected = {"features": list(FEATURES), "classes": CLASS_NAMES, "texts": TEXTS}
        if any(parameters.get(name) != value for name, value in expected.items()):
            raise ValueError(f"{path} was fitted on other features than this version computes: fit the scorer again.")
        return cls(embedder, parameters)

    def save(self, path: Path) -> None:
        write_text(path, json.dumps(self.parameters, separators=(",", ":")).replace('],"', '],\n"') + "\n")

    def score(
        self, prompts: Sequence[str], texts: Sequence[str], distractors: Sequence[str]
    ) -> Float[np.ndarray, " texts"]:
        """Relevance of each text to its prompt, 0-100; 0 where `is_language` finds none. distractors: labels or "".

        On the annotators' scale once `calibrate` has seen their scores; before, the share of the text that is on topic.
        """
        scores = np.zeros(len(texts))
        bodies = [prepare(text, prompt) for text, prompt in zip(texts, prompts, strict=True)]
        rows = [i for i, body in enumerate(bodies) if is_language(body, self.embedder.words)]
        if rows:
            values = self._features([(prompts[i], bodies[i], distractors[i]) for i in rows])
            shares = predict_trees(self.trees, values)
            if self.calibration:
                shares = predict_trees(self.calibration, np.column_stack([values, shares]))
            scores[rows] = 100 * np.clip(shares, 0, 1)
        return scores

    def _features(self, triples: Sequence[tuple[str, str, str]]) -> Float[np.ndarray, "texts features"]:
        embeddings = _embed(self.embedder, triples, self.known)
        return np.array([features(*t, embeddings, self.likelihood, self._near, self.embedder.words) for t in triples])

    def _near(self, cosines):
        slope, intercept = self.parameters["near"]
        return 1 / (1 + np.exp(-(slope * cosines + intercept)))


def _embed(embedder: Embedder | RememberingEmbedder, triples, known: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Unit vector of each prompt, label and piece, computed once; prompts and labels are added to `known`."""
    lasting = {text for prompt, _, label in triples for text in (prompt, label) if text} - known.keys()
    passing = {piece for _, text, _ in triples for piece in split_pieces(text)} - known.keys() - lasting
    order = sorted(lasting) + sorted(passing)
    vectors = dict(zip(order, embedder.encode(order), strict=True)) if order else {}
    known |= {text: vectors[text] for text in lasting}
    return known | vectors


def on_topic(
    subjects: Sequence[str], responses: Sequence[str], embedder: Embedder, words: int = 90
) -> Bool[np.ndarray, " responses"]:
    """Mask of responses whose first `words` words have less than `STRAY` of all subjects nearer than their subject."""
    names = sorted(set(subjects))
    pieces = [split_pieces(" ".join(response.split()[:words])) or [""] for response in responses]
    vectors = iter(embedder.encode([piece for some in pieces for piece in some]))
    means = np.stack([np.mean([next(vectors) for _ in some], axis=0) for some in pieces])
    cosines = means @ embedder.encode(names).T
    matched = cosines[np.arange(len(responses)), [names.index(subject) for subject in subjects]]
    return (cosines > matched[:, None]).mean(1) < STRAY


def score_pairs(scorer: Scorer, pairs: Sequence[Pair]) -> Float[np.ndarray, " n"]:
    return scorer.score(*zip(*[(p.prompt, p.text, p.distractor) for p in pairs], strict=True))


def evaluate(scores: Float[np.ndarray, " n"], pairs: Sequence[Pair]) -> dict[str, float]:
    """Accuracy of scores on pairs with held-out subjects.

    spearman, mean_absolute_error (points): against known shares. matched_auc: AUC for matched against mismatched pairs.
    """
    from scipy.stats import spearmanr
    from sklearn.metrics import roc_auc_score

    shares = np.array([p.share for p in pairs])
    kinds = np.array([p.kind for p in pairs])
    whole = np.isin(kinds, ["matched", "mismatched"])
    return {
        "n": len(pairs),
        "spearman": float(spearmanr(scores, shares)[0]),
        "mean_absolute_error": float(np.abs(scores - 100 * shares).mean()),
        "matched_auc": float(roc_auc_score(kinds[whole] == "matched", scores[whole])),
    }


def fit(pairs: Sequence[Pair], embedder: Embedder, seed: int = 0) -> Scorer:
    """A scorer with class-pair statistics, piece classifier and boosted trees fitted on pairs of known share.

    Monotonic constraints (`FEATURES`) keep scores sensible on other texts. Raises ValueError for too few pairs.
    """
    prepared = [replace(p, text=prepare(p.text, p.prompt)) for p in pairs]
    usable = [p for p in prepared if words_of(p.text)]
    whole = [p for p in usable if p.kind in ("matched", "mismatched")]
    if len(usable) < 100 or len({p.kind for p in whole}) < 2:
        raise ValueError(f"{len(usable)} pairs are too few: give at least 100, matched and mismatched ones among them.")
    triples = [(p.prompt, p.text, p.distractor) for p in usable]
    known: dict[str, np.ndarray] = {}
    embeddings = _embed(embedder, triples, known)
    parameters = {
        "features": list(FEATURES),
        "classes": CLASS_NAMES,
        "texts": TEXTS,
        "pairs": len(usable),
        "near": _fit_near(whole, embeddings),
        "class_pairs": _class_pairs([p.text for p in usable if p.kind == "matched"]),
        "trees": {},
    }
    draft = Scorer(embedder, parameters)
    values = [features(*t, embeddings, draft.likelihood, draft._near, embedder.words) for t in triples]
    parameters["trees"] = fit_trees(
        np.array(values), np.array([p.share for p in usable]), list(FEATURES.values()), seed
    )
    return Scorer(embedder, parameters)


def calibrate(scorer: Scorer, labelled: Sequence[tuple[str, str, str, float]], seed: int = 0) -> Scorer:
    """The scorer on the annotators' scale: trees over its features and its share, fitted on scored texts.

    labelled: (prompt, text, distractor, score 0-100). Each text is fitted with its distractor and without one: whether
    there is one must tell nothing, as it does where only steered responses have one. Raises ValueError for fewer than
    `MIN_LABELLED` texts.
    """
    prepared = [(prompt, prepare(text, prompt), label, score) for prompt, text, label, score in labelled]
    known = [row for row in prepared if is_language(row[1], scorer.embedder.words)]
    if len(known) < MIN_LABELLED:
        raise ValueError(f"{len(known)} scored texts are too few to calibrate on: label at least {MIN_LABELLED}.")
    usable = [
        (prompt, text, shown, score) for prompt, text, label, score in known for shown in dict.fromkeys((label, ""))
    ]
    values = scorer._features([row[:3] for row in usable])
    columns = np.column_stack([values, predict_trees(scorer.trees, values)])
    scores = np.array([row[3] for row in usable]) / 100
    trees = fit_trees(columns, scores, [*FEATURES.values(), 1], seed, min_samples_leaf=LABELLED_LEAF)
    return Scorer(scorer.embedder, scorer.parameters | {"calibration": trees})


def cross_validate(
    scorer: Scorer, labelled: Sequence[tuple[str, str, str, float]], seed: int = 0, folds: int = 5
) -> Float[np.ndarray, " texts"]:
    """Calibrated scores of the labelled texts, each by a calibration that saw no text on its prompt."""
    from sklearn.model_selection import GroupKFold

    scores = np.zeros(len(labelled))
    groups = [prompt for prompt, *_ in labelled]
    for seen, unseen in GroupKFold(folds).split(labelled, groups=groups):
        theirs = calibrate(scorer, [labelled[i] for i in seen], seed)
        prompts, texts, labels, _ = zip(*[labelled[i] for i in unseen], strict=True)
        scores[unseen] = theirs.score(prompts, texts, labels)
    return scores


def _fit_near(pairs: Sequence[Pair], embeddings) -> list[float]:
    """Slope and intercept of the log-odds that a piece is on topic, given its cosine to the prompt."""
    from sklearn.linear_model import LogisticRegression

    cosines, labels = [], []
    for pair in pairs:
        for piece in split_pieces(pair.text):
            cosines.append([embeddings[piece] @ embeddings[pair.prompt]])
            labels.append(int(pair.share))
    model = LogisticRegression(C=np.inf).fit(cosines, labels)
    return [round(float(model.coef_[0, 0]), 4), round(float(model.intercept_[0]), 4)]


def _class_pairs(texts: Sequence[str]) -> list[list[float]]:
    """log(P(b | a before b) / P(b)) of classes [a, b], with counts smoothed by one half."""
    counts = np.full((len(CLASS_NAMES), len(CLASS_NAMES)), 0.5)
    for text in texts:
        classes = word_classes(text)
        np.add.at(counts, (classes[:-1], classes[1:]), 1)
    ratios = np.log(counts / counts.sum(1, keepdims=True)) - np.log(counts.sum(0) / counts.sum())
    return np.round(ratios, 3).tolist()
