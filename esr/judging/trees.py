"""Boosted trees as plain arrays: scoring needs neither scikit-learn nor a pickle.

Read from the private `_predictors` of scikit-learn 1.9.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

TREES, DEPTH = 150, 4  # boosted trees; on held-out subjects 80 or 300 trees and depths 2 to 5 are within 0.02 Spearman


def predict_trees(
    trees: dict[str, np.ndarray], values: Float[np.ndarray, "rows features"]
) -> Float[np.ndarray, " rows"]:
    """Sum of the boosted trees; each array is [tree, node], a leaf pointing to itself."""
    row, tree = np.arange(len(values))[:, None], np.arange(len(trees["value"]))[None, :]
    node = np.zeros((len(values), len(trees["value"])), dtype=int)
    for _ in range(int(trees["depth"])):
        seen = values[row, trees["feature"][tree, node]]
        left = np.where(np.isnan(seen), trees["missing_left"][tree, node], seen <= trees["threshold"][tree, node])
        node = np.where(left, trees["left"][tree, node], trees["right"][tree, node])
    return trees["baseline"] + trees["value"][tree, node].sum(1)


def fit_trees(values: np.ndarray, shares: np.ndarray, monotonic: list[int], seed: int) -> dict:
    """Gradient-boosted trees as plain arrays, so that scoring needs neither scikit-learn nor a pickle."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    model = HistGradientBoostingRegressor(
        max_iter=TREES, max_depth=DEPTH, learning_rate=0.08, min_samples_leaf=30, l2_regularization=5.0,
        monotonic_cst=monotonic, early_stopping=False, random_state=seed,
    ).fit(values, shares)  # fmt: skip
    nodes = [predictors[0].nodes for predictors in model._predictors]
    width = max(map(len, nodes))
    trees = {"depth": DEPTH, "baseline": round(float(model._baseline_prediction[0, 0]), 6)}
    for name, source in (("feature", "feature_idx"), ("value", "value")):
        trees[name] = [[_plain(x) for x in own[source]] + [0] * (width - len(own)) for own in nodes]
    # Unrounded: a threshold may be a value of the training data, and rounding would send that text the other way.
    trees["threshold"] = [np.nan_to_num(own["num_threshold"]).tolist() + [0] * (width - len(own)) for own in nodes]
    for name in ("left", "right"):  # a leaf leads to itself
        trees[name] = [
            [i if n["is_leaf"] else int(n[name]) for i, n in enumerate(own)] + [0] * (width - len(own)) for own in nodes
        ]
    trees["missing_left"] = [[int(x) for x in own["missing_go_to_left"]] + [0] * (width - len(own)) for own in nodes]
    return trees


def _plain(number) -> float | int:
    return int(number) if isinstance(number, np.integer) else round(float(number), 6)
