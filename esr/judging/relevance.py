"""How much of a text answers its prompt: a 0-100 scorer fitted on texts whose on-topic share is known.

No constant is guessed. `training_pairs` makes texts of known quality from a model's own answers: an answer under its
own request (share 1) and under another's (0), two answers spliced at a known place, and answers garbled by shuffled,
foreign or looping words, where the share is that of word trigrams left whole. `fit` regresses that share on the
`FEATURES` of a text, which look at topic (sentence embeddings, shared word stems), at the distractor and at coherence.
A small model often strays by itself: `on_topic` finds the answers that may stand for share 1.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from esr.judging.embedding import Embedder
from esr.judging.mixtures import Pair
from esr.judging.texts import CLASS_NAMES, WORD_CLASS, content_stems, split_pieces, word_classes, words_of
from esr.judging.trees import fit_trees, predict_trees
from esr.storage.digests import digest
from esr.storage.files import write_text

STRAY = 0.05  # an answer nearer to more than this share of all other subjects is no answer to its own
# Features of one (prompt, text, distractor). 1: a larger value may only raise the score; -1: only lower it; 0: either.
FEATURES = {
    "whole_cosine": 1, "mean_cosine": 1, "max_cosine": 1, "low_cosine": 1, "high_cosine": 1, "end_cosine": 1,
    "near_share": 1, "distractor_margin": -1, "distractor_share": -1, "stem_coverage": 0, "stem_density": 0,
    "flow": 0, "pair_likelihood": 0, "low_pair_likelihood": 0, "known_words": 1, "function_words": 0, "letters": 0,
    "distinct_words": 1, "distinct_pairs": 1, "top_word": -1, "longest_run": -1, "log_words": 0,
}  # fmt: skip


def features(prompt, text, distractor, embeddings, likelihood, near, known) -> list[float]:
    """Values of `FEATURES`. `embeddings`: unit vectors by text; `likelihood`: log-ratio of class pairs;
    `near(cosine)`: probability that a piece is on topic; `known`: ordinary words."""
    pieces = split_pieces(text)
    weights = np.array([len(p.split()) for p in pieces], dtype=float)
    weights /= weights.sum()
    vectors = np.stack([embeddings[p] for p in pieces])
    whole = weights @ vectors
    cosines = vectors @ embeddings[prompt]
    ordered, cumulative = np.sort(cosines), np.cumsum(weights[np.argsort(cosines)])
    low, high = (ordered[min(np.searchsorted(cumulative, q), len(ordered) - 1)] for q in (0.25, 0.75))
    margin = vectors @ embeddings[distractor] - cosines if distractor else None
    flow = (vectors[1:] * vectors[:-1]).sum(1).mean() if len(vectors) > 1 else np.nan
    classes = word_classes(text)
    pairs = likelihood[classes[:-1], classes[1:]] if len(classes) > 1 else np.zeros(1)
    window = np.convolve(pairs, np.ones(12) / 12, mode="valid") if len(pairs) >= 12 else pairs.mean(keepdims=True)
    words = words_of(text) or ["?"]
    stems, asked = Counter(content_stems(text)), set(content_stems(prompt))
    hits = [stems[s] for s in asked]
    first, content = words[:60], [w for w in words if w not in WORD_CLASS]
    return [
        whole @ embeddings[prompt] / np.linalg.norm(whole),
        weights @ cosines, ordered[-1], low, high,
        cosines[-max(1, len(cosines) // 3) :].mean(),
        weights @ near(cosines),
        weights @ margin if distractor else np.nan,
        weights @ (margin > 0) if distractor else np.nan,
        np.mean([h > 0 for h in hits]) if hits else np.nan,
        np.log1p(100 * sum(hits) / len(words)),
        flow, pairs.mean(), np.quantile(window, 0.1),
        np.mean([w in known or w.split("'")[0] in known for w in words]),
        np.mean([w in WORD_CLASS for w in words]),
        sum(c.isalpha() or c == " " for c in text) / len(text),
        len(set(first)) / len(first) ** 0.8,
        len(set(zip(words, words[1:], strict=False))) / max(1, len(words) - 1),
        max(Counter(content).values()) / len(words) if content else 1.0,
        np.log(_longest_run(words)),
        np.log(len(words)),
    ]  # fmt: skip


def _longest_run(words: Sequence[str]) -> int:
    longest = run = 1
    for before, word in zip(words, words[1:], strict=False):
        run = run + 1 if word == before else 1
        longest = max(longest, run)
    return longest


class Scorer:
    """The fitted scorer: `parameters` are plain numbers (see `fit`), kept as JSON."""

    def __init__(self, embedder: Embedder, parameters: dict):
        self.embedder, self.parameters = embedder, parameters
        self.likelihood = np.array(parameters["class_pairs"])
        self.trees = {name: np.array(values) for name, values in parameters["trees"].items()}
        self.known: dict[str, np.ndarray] = {}  # embeddings of prompts and labels, which come back

    @property
    def fingerprint(self) -> str:
        """A stable name of the fitted parameters."""
        return digest(self.parameters)

    @classmethod
    def load(cls, path: Path, embedder: Embedder) -> Scorer:
        """Raises FileNotFoundError, or ValueError when the file was fitted on other features than this code's."""
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist: run the stage that fits the relevance scorer.")
        parameters = json.loads(path.read_text(encoding="utf-8"))
        if parameters.get("features") != list(FEATURES) or parameters.get("classes") != CLASS_NAMES:
            raise ValueError(f"{path} was fitted on other features than this version computes: fit the scorer again.")
        return cls(embedder, parameters)

    def save(self, path: Path) -> None:
        write_text(path, json.dumps(self.parameters, separators=(",", ":")).replace('],"', '],\n"') + "\n")

    def score(
        self, prompts: Sequence[str], texts: Sequence[str], distractors: Sequence[str]
    ) -> Float[np.ndarray, " texts"]:
        """Relevance 0-100 of each text to its prompt; a text without a word scores 0. `distractors`: labels or ""."""
        scores = np.zeros(len(texts))
        rows = [i for i, text in enumerate(texts) if words_of(text)]
        if rows:
            values = self._features([(prompts[i], texts[i], distractors[i]) for i in rows])
            scores[rows] = 100 * np.clip(predict_trees(self.trees, values), 0, 1)
        return scores

    def _features(self, triples: Sequence[tuple[str, str, str]]) -> Float[np.ndarray, "texts features"]:
        embeddings = _embed(self.embedder, triples, self.known)
        return np.array([features(*t, embeddings, self.likelihood, self._near, self.embedder.words) for t in triples])

    def _near(self, cosines):
        slope, intercept = self.parameters["near"]
        return 1 / (1 + np.exp(-(slope * cosines + intercept)))


def _embed(embedder: Embedder, triples, known: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Unit vector of every prompt, label and piece, each computed once; prompts and labels are added to `known`."""
    lasting = {text for prompt, _, label in triples for text in (prompt, label) if text} - known.keys()
    passing = {piece for _, text, _ in triples for piece in split_pieces(text)} - known.keys() - lasting
    order = sorted(lasting) + sorted(passing)
    vectors = dict(zip(order, embedder.encode(order), strict=True)) if order else {}
    known |= {text: vectors[text] for text in lasting}
    return known | vectors


def on_topic(
    subjects: Sequence[str], responses: Sequence[str], embedder: Embedder, words: int = 90
) -> Bool[np.ndarray, " answers"]:
    """Whether each answer's beginning is nearer to its own subject than to all but `STRAY` of the other subjects."""
    names = sorted(set(subjects))
    texts = embedder.encode([" ".join(response.split()[:words]) for response in responses])
    cosines = texts @ embedder.encode(names).T
    own = cosines[np.arange(len(responses)), [names.index(subject) for subject in subjects]]
    return (cosines > own[:, None]).mean(1) < STRAY


def score_pairs(scorer: Scorer, pairs: Sequence[Pair]) -> Float[np.ndarray, " n"]:
    return scorer.score(*zip(*[(p.prompt, p.text, p.distractor) for p in pairs], strict=True))


def evaluate(scores: Float[np.ndarray, " n"], pairs: Sequence[Pair]) -> dict[str, float]:
    """How well scores tell known shares: Spearman and mean absolute error (points) over all pairs, and the area under
    the ROC curve of matched against mismatched ones. Use pairs whose subjects the scorer was not fitted on."""
    from scipy.stats import rankdata, spearmanr

    shares = np.array([p.share for p in pairs])
    kinds = np.array([p.kind for p in pairs])
    whole = np.isin(kinds, ["matched", "mismatched"])
    matched, ranks = kinds[whole] == "matched", rankdata(scores[whole])
    n_pairs = matched.sum() * (~matched).sum()
    return {
        "n": len(pairs),
        "spearman": float(spearmanr(scores, shares)[0]),
        "mean_absolute_error": float(np.abs(scores - 100 * shares).mean()),
        "matched_auc": float((ranks[matched].sum() - matched.sum() * (matched.sum() + 1) / 2) / n_pairs),
    }


def fit(pairs: Sequence[Pair], embedder: Embedder, seed: int = 0) -> Scorer:
    """Fit class-pair statistics, the piece classifier and the boosted trees on pairs of known share.

    Monotone in what may only raise or only lower the score, so that it behaves beyond the texts it was fitted on.
    Raises ValueError when there are too few pairs to fit anything.
    """
    usable = [p for p in pairs if words_of(p.text)]
    whole = [p for p in usable if p.kind in ("matched", "mismatched")]
    if len(usable) < 100 or len({p.kind for p in whole}) < 2:
        raise ValueError(f"{len(usable)} pairs are too few: give at least 100, matched and mismatched ones among them.")
    triples = [(p.prompt, p.text, p.distractor) for p in usable]
    known: dict[str, np.ndarray] = {}
    embeddings = _embed(embedder, triples, known)
    parameters = {
        "features": list(FEATURES),
        "classes": CLASS_NAMES,
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


def _fit_near(pairs: Sequence[Pair], embeddings) -> list[float]:
    """Slope and intercept of the log-odds that a piece at some cosine to the prompt answers it."""
    from sklearn.linear_model import LogisticRegression

    cosines, responses = [], []
    for pair in pairs:
        for piece in split_pieces(pair.text):
            cosines.append([embeddings[piece] @ embeddings[pair.prompt]])
            responses.append(int(pair.share))
    model = LogisticRegression(C=np.inf).fit(cosines, responses)
    return [round(float(model.coef_[0, 0]), 4), round(float(model.intercept_[0]), 4)]


def _class_pairs(texts: Sequence[str]) -> list[list[float]]:
    """Log-ratio of how often class b follows class a to how often b occurs, counts smoothed by one half."""
    counts = np.full((len(CLASS_NAMES), len(CLASS_NAMES)), 0.5)
    for text in texts:
        classes = word_classes(text)
        np.add.at(counts, (classes[:-1], classes[1:]), 1)
    ratios = np.log(counts / counts.sum(1, keepdims=True)) - np.log(counts.sum(0) / counts.sum())
    return np.round(ratios, 3).tolist()
