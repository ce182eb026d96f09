"""Figures of the setup: SAE, relevance scorer, calibration."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from esr.reporting.figures.style import (
    BLUE,
    GREEN,
    GREY,
    LABELLED,
    ORANGE,
    PALE,
    PURPLE,
    SKY,
    VERMILION,
    WIDTH,
    short_count,
    shorten,
    use_style,
)


def calibration(thresholds: pd.DataFrame, target: float) -> Figure:
    """First-attempt score against boost during calibration, and the thresholds by latent.

    thresholds: one row per latent, columns latent, label, boost, sd, score, converged, queries (Query objects or dicts
    boost, score, n), as in data/calibrate. Boosts are in units of the median residual norm at the steered layer.
    """
    use_style()
    figure = Figure(figsize=(WIDTH, float(np.clip(0.9 + 0.088 * len(thresholds), 2.6, 5.5))))
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
    _dose_response(left, thresholds, target)
    ordered = thresholds.sort_values("boost", ignore_index=True)
    for converged, colour, label in ((True, BLUE, "converged"), (False, GREY, "left out")):
        rows = ordered[ordered.converged == converged]
        if len(rows):
            style = {"markerfacecolor": colour if converged else "white", "markeredgecolor": colour}
            right.errorbar(
                rows.boost, rows.index, xerr=rows.sd, fmt="o", color=colour, markersize=3.4, linewidth=1.0,
                label=f"{label} ({len(rows)})", **style,
            )  # fmt: skip
    if len(ordered) <= LABELLED:
        labels = [shorten(row.label) or f"latent {row.latent}" for row in ordered.itertuples()]
        right.set_yticks(ordered.index, labels, fontsize=5.6)
    else:
        right.set_ylabel("latents, by threshold")
    right.set_ylim(-0.8, len(ordered) - 0.2)
    right.tick_params(axis="y", length=0)
    right.set_xlim(left=0)
    right.set_xlabel("threshold, bars one posterior sd\n(median residual norms)")
    right.set_title("Thresholds by latent")
    right.legend(loc="lower right", handlelength=1.2)
    return figure


def sae_training(history: pd.DataFrame, chosen: int | None = None) -> Figure:
    """Explained variance and share of dead latents over the training tokens, one line per layer.

    history: columns layer, tokens, explained_variance, dead_fraction. The layer `chosen` has a bold line.
    """
    use_style()
    figure = Figure(figsize=(WIDTH, 2.3))
    axes = figure.subplots(1, 2)
    layers = sorted(history.layer.unique())
    colours = dict(zip(layers, (SKY, BLUE, GREEN, ORANGE, PURPLE, VERMILION) * len(layers), strict=False))
    titles = {"explained_variance": "Explained variance", "dead_fraction": "Dead latents"}
    for ax, (column, title) in zip(axes, titles.items(), strict=True):
        for layer in layers:
            rows = history[history.layer == layer].sort_values("tokens")
            label = f"layer {layer}" + (" (used)" if layer == chosen else "")
            width = 2.0 if layer == chosen else 1.1
            ax.plot(rows.tokens, rows[column], color=colours[layer], linewidth=width, label=label)
        ax.set_title(title)
        ax.set_xlabel("training tokens")
        ax.xaxis.set_major_formatter(FuncFormatter(short_count))
        ax.xaxis.set_major_locator(MaxNLocator(5))
        ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        ax.grid(axis="y", color=PALE, linewidth=0.6)
    axes[0].set_ylim(max(0.0, float(history.explained_variance.quantile(0.1)) - 0.1), 1)
    axes[1].set_ylim(0, max(0.02, float(history.dead_fraction.max()) * 1.1))
    axes[0].legend(loc="lower right")
    return figure


def relevance(frame: pd.DataFrame) -> Figure:
    """Relevance scores of texts with known on-topic share: by kind of text, and by share.

    frame: columns kind, share (0-1) and score (0-100), one row per held-out text.
    """
    use_style()
    figure = Figure(figsize=(WIDTH, 2.5))
    left, right = figure.subplots(1, 2)
    order = frame.groupby("kind").share.mean().sort_values().index
    seaborn.boxplot(frame, x="score", y="kind", order=order, ax=left, color=SKY, fliersize=1.5, linewidth=0.8)
    left.set_ylabel("")
    left.set_title("Score by kind of text")
    bins = np.linspace(0, 1, 11)
    tenth = pd.cut(frame.share, bins, include_lowest=True)
    means = frame.groupby(tenth, observed=True)[["share", "score"]].mean()
    right.plot([0, 100], [0, 100], color=PALE, linewidth=1.0)
    right.plot(100 * frame.share, frame.score, ".", color=SKY, alpha=0.25, markersize=2.5)
    right.plot(100 * means.share, means.score, "o-", color=BLUE, markersize=3.6, linewidth=1.1)
    right.set_xlabel("true on-topic share (%)")
    right.set_title("Calibration, means by tenth")
    for ax in (left, right):
        ax.set_xlim(-2, 102)
    left.set_xlabel("score")
    right.set_ylabel("score")
    return figure


def latent_density(density: np.ndarray, tokens: int) -> Figure:
    """How often live latents fire: histogram of the share of `tokens` corpus tokens, on a logarithmic axis."""
    use_style()
    figure = Figure(figsize=(WIDTH, 1.9))
    ax = figure.subplots()
    ax.hist(density, bins=np.geomspace(density.min(), density.max() * 1.001, 60).tolist(), color=SKY)
    ax.set_xscale("log")
    ax.set_xlabel(f"share of {tokens:,} tokens on which a latent fires")
    ax.set_ylabel("latents")
    return figure


def _dose_response(ax: Axes, thresholds: pd.DataFrame, target: float) -> None:
    """All queries, the latents' thresholds and the target."""
    for row in thresholds.itertuples():
        queries = sorted((q["boost"], q["score"]) if isinstance(q, dict) else (q.boost, q.score) for q in row.queries)
        if queries:
            ax.plot(*zip(*queries, strict=True), color=SKY, alpha=0.35, linewidth=0.7, marker=".", markersize=2.5)
    kept = thresholds[thresholds.converged]
    out = thresholds[~thresholds.converged]
    ax.plot(kept.boost, kept.score, "o", color=BLUE, markersize=3.6)
    ax.plot(out.boost, out.score, "o", color=GREY, markerfacecolor="white", markersize=3.6)
    ax.axhline(target, color=VERMILION, linewidth=1.0, linestyle=(0, (4, 2)))
    ax.text(1.0, target + 1.5, f"target {target:g}", transform=ax.get_yaxis_transform(), ha="right", va="bottom",
            fontsize=7, color=VERMILION)  # fmt: skip
    ax.set_xlim(left=0)
    ax.set_ylim(0, 100)
    ax.set_xlabel("boost (median residual norms)")
    ax.set_ylabel("mean first-attempt score")
    ax.set_title("Scores during calibration")
