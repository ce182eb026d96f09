"""Figures of rates and scores: experiments 1, 2, 4, 5 and 8."""

from __future__ import annotations

import matplotlib
import numpy as np
import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from esr.reporting.figures.style import (
    CONDITIONS,
    GREY,
    PALE,
    PALETTE,
    WIDTH,
    condition_colour,
    draw_interval,
    draw_line,
    draw_note,
    legend_below,
    use_style,
)
from esr.statistics.intervals import wilson
from esr.statistics.metrics import scored


def esr_by_model(esr: dict, published: dict) -> Figure:
    """Experiment 1: multi-attempt and ESR rate of every measured model and condition above the published ones.

    esr: paper/numbers/esr.json; published: data/published.json. The axis is linear up to 0.1 % and logarithmic above,
    to show both 0 and 7 %. Published intervals are Wilson's, from the published n.
    """
    use_style()
    rows = [
        (f"{model}, {condition}", condition_colour(condition, place), entry)
        for model, conditions in esr.items()
        for place, (condition, entry) in enumerate(conditions.items())
    ]
    references = [(entry["name"], entry) for entry in published["models"].values()]
    references.append(("all five, unsteered", published["no_steering"] | {"esr_rate": 0.0}))
    height = 1.05 + 0.18 * (len(rows) + len(references))
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.subplots(1, 2, sharey=True)
    for ax, name, title in zip(
        axes, ("multi_attempt_rate", "esr_rate"), ("Multi-attempt rate", "ESR rate"), strict=True
    ):
        for place, (_, colour, entry) in enumerate(rows):
            draw_interval(ax, entry[name], place, colour)
        for place, (_, entry) in enumerate(references, start=len(rows)):
            draw_published_rate(ax, entry, name, place + 0.6)
        _rate_axis(ax, title)
    places = [*range(len(rows)), *(place + 0.6 for place in range(len(rows), len(rows) + len(references)))]
    axes[0].set_yticks(places, [row[0] for row in rows] + [label for label, _ in references])
    for tick, (_, colour, _) in zip(axes[0].get_yticklabels(), rows, strict=False):
        tick.set_color(colour)
    axes[0].set_ylim(max(places) + 0.6, -0.6)
    for ax in axes:
        ax.axhline(len(rows) - 0.2, color=PALE, linewidth=0.8)
        ax.tick_params(axis="y", length=0)
    draw_note(axes[1], "this study", -0.45, "top")
    draw_note(axes[1], published["source"], len(rows) - 0.1, "top")
    return figure


def first_attempt_scores(frame: pd.DataFrame, esr: dict, published: dict) -> Figure:
    """Experiment 8: distribution of first-attempt scores, unsteered and steered, with their means; one panel per model.

    frame: esr.statistics.metrics.table; esr: paper/numbers/esr.json, for means and intervals; published:
    data/published.json, for the published unsteered range and the range from the published steered mean to the
    calibration's target. Each condition's bars sum to all its scored trials.
    """
    use_style()
    models = list(esr)
    figure = Figure(figsize=(WIDTH, 0.85 + 1.75 * len(models)))
    axes = figure.subplots(len(models), 1, sharex=True, squeeze=False)[:, 0]
    bins = np.arange(0, 101, 5)
    for ax, model in zip(axes, models, strict=True):
        top = 0.0
        for place, (condition, entry) in enumerate(esr[model].items()):
            colour = condition_colour(condition, place)
            rows = frame[(frame.model == model) & (frame.condition == condition)]
            scores = rows[scored(rows)].first_score
            shares = np.histogram(scores, bins)[0] / max(1, len(scores))
            top = max(top, shares.max())
            label = f"{condition} (n = {entry['first_attempt_score'].n})"
            ax.stairs(shares, bins, fill=True, color=colour, alpha=0.28)
            ax.stairs(shares, bins, color=colour, linewidth=1.1, label=label)
        for place, (condition, entry) in enumerate(esr[model].items()):
            draw_interval(
                ax, entry["first_attempt_score"], top * (1.10 + 0.09 * place), condition_colour(condition, place)
            )
        low, high = (published["no_steering"][f"first_attempt_score_{end}"] for end in ("min", "max"))
        _band(ax, low, high, f"published,\nunsteered\n{low}\u2013{high}", "right")
        low, high = published["models"]["llama-3.3-70b"]["first_attempt_score"], published["protocol"]["target"]
        _band(ax, low, high, f"published,\nsteered {low};\ntarget {high}", "left")
        ax.set_ylim(0, top * (1.45 + 0.09 * len(esr[model])) or 1)
        ax.set_xlim(0, 100)
        ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        ax.yaxis.set_major_locator(MaxNLocator(4))
        ax.set_ylabel("share of trials")
        ax.set_title(model)
        ax.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=len(esr[model]), handlelength=1.2, borderaxespad=0)
    axes[-1].set_xlabel("first-attempt score (0\u2013100); points: mean and its interval")
    return figure


def draw_published_rate(ax: Axes, entry: dict, name: str, y: float) -> None:
    """A published rate as an open point with Wilson's interval, a published upper bound as an arrow from it."""
    if name in entry:
        low, high = wilson(round(entry[name] * entry["n"]), entry["n"])
        ax.plot([low, high], [y, y], color=GREY, linewidth=1.2, solid_capstyle="butt")
        ax.plot(entry[name], y, "o", color=GREY, markerfacecolor="white", markersize=4.5, clip_on=False, zorder=3)
    else:
        bound = entry[f"{name}_max"]
        arrow = {"arrowstyle": "-|>", "color": GREY, "linewidth": 1.0, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 7}
        ax.annotate("", xy=(bound / 4, y), xytext=(bound, y), arrowprops=arrow)
        ax.plot(bound, y, "|", color=GREY, markersize=7, markeredgewidth=1.2)


def _rate_axis(ax: Axes, title: str) -> None:
    ax.set_xscale("symlog", linthresh=0.001, linscale=0.5)
    ticks = [0, 0.001, 0.01, 0.1, 1]
    ax.set_xticks(ticks, ["0", "0.1 %", "1 %", "10 %", "100 %"])
    ax.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    ax.set_xlim(0, 1.0)
    ax.grid(axis="x", color=PALE, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.set_title(title)


def _band(ax: Axes, low: float, high: float, label: str, side: str) -> None:
    """A published range, labelled at the panel's top on the given side."""
    ax.axvspan(low, high, color=GREY, alpha=0.22, linewidth=0, zorder=0)
    x, alignment = (high + 0.8, "left") if side == "left" else (low - 0.8, "right")
    place = ax.get_xaxis_transform()
    ax.text(x, 0.98, label, transform=place, ha=alignment, va="top", fontsize=6.5, color=GREY, linespacing=1.15)


def boost_sweep(rates: dict, published: dict) -> Figure:
    """Experiment 2: multi-attempt, improvement and ESR rate and first-attempt score by boost, a line per model.

    rates: paper/numbers/boost_sweep.json; the published peaks are marked in grey.
    """
    use_style()
    panels = {
        "multi_attempt_rate": "Multi-attempt rate",
        "esr_rate": "ESR rate",
        "improvement_rate": "Improvement rate",
        "first_attempt_score": "First-attempt score",
    }
    figure = Figure(figsize=(WIDTH, 3.7))
    axes = figure.subplots(2, 2, sharex=True).flat
    for ax, (name, title) in zip(axes, panels.items(), strict=True):
        for (model, entry), colour in zip(rates.items(), PALETTE, strict=False):
            rows = entry["boosts"]
            draw_line(ax, [row["boost_sd"] for row in rows], [row[name] for row in rows], colour, model)
        ax.set_title(title)
        ax.axvline(0, color=PALE, linewidth=0.8, zorder=0)
        if name.endswith("rate"):
            ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            peak = published["boost_sweep"][name.replace("_rate", "_peak")]
            at = published["boost_sweep"][name.replace("_rate", "_peak_sd")]
            ax.plot(at, peak, marker="D", color=GREY, markersize=4, linestyle="none", label="published peak (70B)")
    for ax in figure.axes[2:]:
        ax.set_xlabel("boost, sd from the latent's threshold")
    legend_below(figure)
    return figure


def meta_prompts(rates: dict, published: dict) -> Figure:
    """Experiment 5: multi-attempt and ESR rate under each instruction and the plain prompt, a colour per model.

    rates: paper/numbers/meta_prompts.json; the published self-monitoring rates are marked in grey.
    """
    use_style()
    variants = list(next(iter(rates.values())))
    figure = Figure(figsize=(WIDTH, 1.1 + 0.3 * len(variants)))
    axes = figure.subplots(1, 2, sharey=True)
    for ax, name in zip(axes, ("multi_attempt_rate", "esr_rate"), strict=True):
        for shift, (model, entries) in enumerate(rates.items()):
            colour = PALETTE[shift % len(PALETTE)]
            for place, variant in enumerate(variants):
                draw_interval(ax, entries[variant][name], place + 0.2 * shift, colour)
            ax.plot([], [], color=colour, marker="o", markersize=3.5, label=model)
        reference = published["meta_prompt"][name]
        ax.plot(reference, variants.index("monitor_yourself") - 0.2, marker="D", color=GREY, markersize=4,
                linestyle="none", label="published (70B)")  # fmt: skip
        ax.set_title({"multi_attempt_rate": "Multi-attempt rate", "esr_rate": "ESR rate"}[name])
        ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        ax.set_xlim(left=0)
    axes[0].set_yticks(range(len(variants)), [variant.replace("_", " ") for variant in variants])
    axes[0].set_ylim(len(variants) - 0.4, -0.6)
    legend_below(figure)
    return figure


def learning_curves(curves: dict) -> Figure:
    """Experiment 4: training loss by step, smoothed over ten steps, a line per ratio of self-corrections."""
    use_style()
    figure = Figure(figsize=(WIDTH, 2.0))
    ax = figure.subplots()
    for (ratio, steps), colour in zip(curves.items(), seaborn.color_palette("viridis", len(curves)), strict=True):
        loss = pd.Series([step.loss for step in steps], [step.step for step in steps])
        ax.plot(loss.rolling(10, min_periods=1).mean(), color=colour, linewidth=1.2, label=f"{float(ratio):.0%}")
    ax.set_xlabel("step")
    ax.set_ylabel("loss, nats")
    ax.legend(title="self-corrections", loc="best")
    return figure


def finetuning(rates: dict, published: dict) -> Figure:
    """Experiment 4: multi-attempt rate, ESR rate and first-attempt score by share of self-corrections in training.

    rates: by ratio, as in a model's entry in paper/numbers/finetune.json. The published result is qualitative:
    fine-tuning induces ESR in an 8B model.
    """
    use_style()
    panels = {
        "multi_attempt_rate": "Multi-attempt rate",
        "esr_rate": "ESR rate",
        "first_attempt_score": "First-attempt score",
    }
    figure = Figure(figsize=(WIDTH, 2.4))
    for ax, (name, title) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        for condition, colour in CONDITIONS.items():
            draw_line(
                ax, [float(r) for r in rates], [both[condition][name] for both in rates.values()], colour, condition
            )
        ax.set_title(title)
        ax.set_xlabel("share of self-corrections")
        ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        if name.endswith("rate"):
            ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            before = published["models"]["llama-3.1-8b"][f"{name}_max"]
            ax.axhline(before, color=GREY, linewidth=0.8, linestyle=":", label="untuned 8B, published (at most)")
    legend_below(figure)
    return figure
