"""Figures of the mechanism: experiments 3, 6, 9, 10, 11, 12 and 13."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from esr.reporting.figures.rates import draw_published_rate
from esr.reporting.figures.style import (
    ABLATIONS,
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PALE,
    PALETTE,
    PURPLE,
    SKY,
    VERMILION,
    WIDTH,
    draw_interval,
    draw_line,
    use_style,
)


def detectors(latents: pd.DataFrame, chance: float) -> Figure:
    """Experiment 3: every latent's mean largest activation on matched against mismatched responses, and the best AUCs.

    latents: columns matched_mean, mismatched_mean, auc and kind ("detector", "steered", "other"), as in
    data/detectors/<model>/separation.csv. chance: the largest AUC with shuffled pairs.
    """
    use_style()
    figure = Figure(figsize=(WIDTH, 2.6))
    left, right = figure.subplots(1, 2)
    kinds = {"other": GREY, "steered": SKY, "detector": VERMILION}
    ordered = latents.sort_values("auc", ascending=False, ignore_index=True).head(100)
    for kind, colour in kinds.items():
        rows, best = latents[latents.kind == kind], ordered[ordered.kind == kind]
        style = {"color": colour, "linestyle": "none", "markersize": 3.5 if kind == "detector" else 2}
        left.plot(rows.matched_mean, rows.mismatched_mean, ".", label=f"{kind} ({len(rows)})", **style)
        right.plot(best.index + 1, best.auc, "o", **style)
    largest = float(latents[["matched_mean", "mismatched_mean"]].max().max()) or 1.0
    left.plot([0, largest], [0, largest], color=PALE, linewidth=1.0, zorder=0)
    left.set_xscale("symlog", linthresh=1)
    left.set_yscale("symlog", linthresh=1)
    left.set_xlabel("matched responses")
    left.set_ylabel("mismatched responses")
    left.set_title("Mean largest activation")
    left.legend(loc="lower right", handlelength=0.8)
    right.axhline(chance, color=INK, linewidth=1.0, linestyle=(0, (4, 2)))
    right.text(
        1.0, chance, "best by chance ", transform=right.get_yaxis_transform(), ha="right", va="bottom", fontsize=7
    )
    right.set_xlabel("rank")
    right.set_ylabel("AUC")
    right.set_title("Separation by single latents")
    return figure


def ablation(rates: dict, published: dict) -> Figure:
    """Experiments 3b, 10 and 13: multi-attempt rate under each ablation, and its paired difference from steering alone.

    rates: {model: {condition: rates}}, as in paper/numbers/ablate.json; published rates are drawn in grey below.
    """
    use_style()
    rows = [(model, name, entry) for model, entries in rates.items() for name, entry in entries.items()]
    reference, base = published["detector_ablation"], published["models"]["llama-3.3-70b"]
    control = published["random_ablation"]
    grey = [
        ("steered", base | {"difference": None}),
        ("detectors", reference | {"n": reference["n_ablated"], "difference": reference["multi_attempt_rate"]}),
        ("random", control | {"difference": control["multi_attempt_rate"]}),
    ]
    figure = Figure(figsize=(WIDTH, 1.0 + 0.17 * (len(rows) + len(grey))))
    left, right = figure.subplots(1, 2, sharey=True)
    for place, (_, name, entry) in enumerate(rows):
        colour = ABLATIONS.get(name, ORANGE)
        draw_interval(left, entry["multi_attempt_rate"], place, colour)
        if "difference" in entry:
            draw_interval(right, entry["difference"], place, colour)
    for place, (_, entry) in enumerate(grey, start=len(rows)):
        draw_published_rate(left, entry, "multi_attempt_rate", place + 0.6)
        if entry["difference"] is not None:
            change = entry["difference"] - base["multi_attempt_rate"]
            right.plot(change, place + 0.6, marker="D", color=GREY, markersize=4, linestyle="none")
    places = [*range(len(rows)), *(len(rows) + place + 0.6 for place in range(len(grey)))]
    names = [f"{model}, {name}" for model, name, _ in rows] + [f"published, {name}" for name, _ in grey]
    left.set_yticks(places, [name.replace("_", " ") for name in names])
    left.set_ylim(max(places) + 0.6, -0.6)
    right.axvline(0, color=PALE, linewidth=1.0, zorder=0)
    for ax, title in ((left, "Multi-attempt rate"), (right, "Paired difference")):
        ax.set_title(title)
        ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        ax.axhline(len(rows) - 0.2, color=PALE, linewidth=0.8)
        ax.tick_params(axis="y", length=0)
    left.set_xlim(left=0)
    return figure


def activations(numbers: dict, published: dict) -> Figure:
    """Experiments 6 and 9: the detectors' mean activation through a self-correction, and its ratios to unsteered text.

    numbers: paper/numbers/activations.json; a model without episodes has no curve. Bands are the bins' intervals.
    """
    use_style()
    figure = Figure(figsize=(WIDTH, 2.6))
    left, right = figure.subplots(1, 2, width_ratios=(1.3, 1))
    names = {
        "off_topic_ratio": "off-topic part",
        "after_ratio": "after the restart",
        "never_restarted_ratio": "never restarts",
    }
    for shift, (model, entry) in enumerate(numbers.items()):
        colour = PALETTE[shift % len(PALETTE)]
        _course(left, entry, colour, f"{model} ({entry['episodes']} episodes)")
        for place, name in enumerate(names):
            draw_interval(right, entry[name], place + 0.15 * shift, colour)
    for place, name in enumerate(("off_topic_ratio", "on_topic_ratio")):
        reference = published["activation_statistics"][name]
        right.plot(reference, place - 0.2, marker="D", color=GREY, markersize=4, linestyle="none")
    left.axvline(0.5, color=GREY, linewidth=0.8, linestyle=(0, (1, 2)))
    left.set_xlim(0, 1)
    left.set_ylim(bottom=0)
    left.set_xticks([0.25, 0.5, 0.75], ["off-topic", "restart", "after"])
    left.set_ylabel("mean activation of the detectors")
    left.set_title("Through a self-correction")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    right.set_yticks(range(len(names)), list(names.values()))
    right.set_ylim(len(names) - 0.4, -0.6)
    right.axvline(1, color=PALE, linewidth=1.0, zorder=0)
    right.set_title("Ratio to unsteered responses")
    right.set_xlabel("diamonds: published (70B)")
    return figure


def _course(ax: Axes, entry: dict, colour: str, label: str) -> None:
    """The aligned mean with its band; unsteered responses dashed, steered ones that never restart dotted."""
    bins = entry["bins"]
    middles = (np.arange(len(bins)) + 0.5) / max(1, len(bins))
    ax.plot(middles, [b.estimate for b in bins], color=colour, linewidth=1.2, label=label)
    if bins and all(b.is_bounded for b in bins):
        ax.fill_between(middles, [b.low for b in bins], [b.high for b in bins], color=colour, alpha=0.2, linewidth=0)
    for name, dashes in (("baseline_mean", (4, 2)), ("never_restarted_mean", (1, 1))):
        if entry[name].is_known:
            ax.axhline(entry[name].estimate, color=colour, linewidth=0.9, linestyle=(0, dashes))


def controls(rates: dict) -> Figure:
    """Experiments 11 and 12 of one model: rates after the prefill, and scores by distance from a restart.

    rates: a model's entry in paper/numbers/controls.json.
    """
    use_style()
    detection = rates["detection"]
    sustained = {name: windows for name, windows in rates["sustained"].items() if name != "matched_difference"}
    figure = Figure(figsize=(WIDTH, 1.5 + 0.24 * len(detection)))
    left, right = figure.subplots(1, 2)
    measures = {"multi_attempt_rate": "restart", "silent_on_topic_rate": "on topic without restart"}
    for shift, ((name, label), colour) in enumerate(zip(measures.items(), (VERMILION, BLUE), strict=True)):
        for place, entry in enumerate(detection.values()):
            draw_interval(left, entry[name], place + 0.25 * shift, colour)
        left.plot([], [], "o", color=colour, markersize=3.5, label=label)
    left.set_yticks(range(len(detection)), [name.replace("_", " ") for name in detection])
    left.set_ylim(len(detection) - 0.4, -0.6)
    left.set_xlim(0, 1)
    left.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    left.set_title("After the prefill")
    left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)
    colours = (VERMILION, ORANGE, BLUE, PURPLE, GREEN)
    for (name, windows), colour in zip(sustained.items(), colours, strict=False):
        draw_line(right, range(len(windows)), list(windows.values()), colour, name.replace("_", " "))
    names = list(next(iter(sustained.values())))
    right.set_xticks(range(len(names)), names)
    right.set_ylim(0, 100)
    right.set_xlabel("tokens from the start of the span")
    right.set_title("Score by distance")
    right.legend(loc="upper center", bbox_to_anchor=(0.5, -0.24), ncols=2, fontsize=6)
    return figure
