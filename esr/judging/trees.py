"""Boosted trees as plain arrays: scoring needs neither scikit-learn nor a pickle.

`fit_trees` reads the private `_predictors` and `_baseline_prediction` of HistGradientBoostingRegressor. Checked
with scikit-learn 1.9; a test compares `predict_trees` with scikit-learn's predictions.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

DEPTH = 4  # depths 2 to 5 and 80 to 300 trees are within 0.02 Spearman on held-out subjects
TREES = 150


def predict_trees(
    trees: dict[str, np.ndarray], values: Float[np.ndarray, "rows features"]
) -> Float[np.ndarray, " rows"]:
    """Predictions of the boosted trees. Arrays are [tree, node]; a leaf points to itself."""
    row, tree = np.arange(len(values))[:, None], np.arange(len(trees["value"]))[None, :]
    node = np.zeros((len(values), len(trees["value"])), dtype=int)
    for _ in range(int(trees["depth"])):
        seen = values[row, trees["feature"][tree, node]]
        left = np.where(np.isnan(seen), trees["missing_left"][tree, node], seen <= trees["threshold"][tree, node])
        node = np.where(left, trees["left"][tree, node], trees["right"][tree, node])
    return trees["baseline"] + trees["value"][tree, node].sum(1)


def fit_trees(
    values: np.ndarray,
    shares: np.ndarray,
    monotonic: list[int],
    seed: int,
    weights: np.ndarray | None = None,
    **settings: float,
) -> dict:
    """Arrays of gradient-boosted trees, for `predict_trees`. monotonic: -1, 0 or 1 per feature.

    settings: of HistGradientBoostingRegressor, in place of those here.
    """
    from sklearn.ensemble import HistGradientBoostingRegressor

    defaults = {"max_iter": TREES, "learning_rate": 0.08, "min_samples_leaf": 30, "l2_regularization": 5.0}
    model = HistGradientBoostingRegressor(
        **defaults | settings, max_depth=DEPTH, monotonic_cst=monotonic, early_stopping=False, random_state=seed
    ).fit(values, shares, sample_weight=weights)
    nodes = [predictors[0].nodes for predictors in model._predictors]
    width = max(map(len, nodes))
    trees: dict = {"depth": DEPTH, "baseline": round(float(model._baseline_prediction[0, 0]), 6)}
    for name, source in (("feature", "feature_idx"), ("value", "value")):
        trees[name] = [[_plain(x) for x in tree[source]] + [0] * (width - len(tree)) for tree in nodes]
    # Not rounded: a threshold may equal a training value, which rounding would move to the other side.
    trees["threshold"] = [np.nan_to_num(tree["num_threshold"]).tolist() + [0] * (width - len(tree)) for tree in nodes]
    for name in ("left", "right"):  # a leaf leads to itself
        trees[name] = [
            [i if n["is_leaf"] else int(n[name]) for i, n in enumerate(tree)] + [0] * (width - len(tree))
            for tree in nodes
        ]
    trees["missing_left"] = [[int(x) for x in tree["missing_go_to_left"]] + [0] * (width - len(tree)) for tree in nodes]
    return trees


def mean_trees(forests: list[dict]) -> dict:
    """Arrays whose prediction is the mean of those of several results of `fit_trees`."""
    width = max(len(forest["value"][0]) for forest in forests)
    merged: dict = {"depth": DEPTH, "baseline": round(float(np.mean([f["baseline"] for f in forests])), 6)}
    for name in ("feature", "value", "threshold", "left", "right", "missing_left"):
        scale = 1 / len(forests) if name == "value" else 1
        trees = [tree for forest in forests for tree in forest[name]]
        merged[name] = [[x * scale if scale < 1 else x for x in tree] + [0] * (width - len(tree)) for tree in trees]
    merged["value"] = [[round(x, 6) for x in tree] for tree in merged["value"]]
    return merged


def _plain(number) -> float | int:
    return int(number) if isinstance(number, np.integer) else round(float(number), 6)
