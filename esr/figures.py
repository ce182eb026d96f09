"""The study's figures, for paper and notebooks alike: each function takes numbers and returns a Figure.

A saved SVG has the same bytes whenever its data are the same. Colours are Okabe and Ito's, safe for colour-blind eyes.
"""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from esr import paths
from esr.metrics import scored
from esr.records import write_bytes
from esr.statistics import wilson

BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"
INK, GREY, PALE = "#222222", "#767676", "#DDDDDD"
CONDITIONS = {"unsteered": BLUE, "steered": VERMILION}  # further conditions take further colours
WIDTH = 6.3  # inches: the text block of an A4 page
LABELLED = 50  # latents a figure can name one by one


def use_style() -> None:
    """Set matplotlib's defaults for every figure of the study; call once, before drawing."""
    seaborn.set_theme(context="paper", style="ticks", palette=[BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY])
    matplotlib.rcParams.update(
        {
            "font.family": "DejaVu Sans",  # comes with matplotlib, so every machine has it
            "font.size": 8,
            "axes.titlesize": 8.5,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.labelsize": 8,
            "axes.edgecolor": GREY,
            "axes.labelcolor": INK,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "xtick.labelsize": 7.5,
            "ytick.labelsize": 7.5,
            "xtick.color": INK,
            "ytick.color": INK,
            "legend.fontsize": 7.5,
            "legend.frameon": False,
            "figure.dpi": 110,
            "figure.constrained_layout.use": True,
            "svg.fonttype": "path",
            "svg.hashsalt": "esr",  # ids in the SVG follow from this instead of from chance
        }
    )


def save(figure: Figure, name: str) -> Path:
    """Write paper/figures/NAME.svg, byte-identical for an identical figure, and return its path."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    path = paths.FIGURES / f"{name}.svg"
    write_bytes(path, buffer.getvalue())
    return path


def esr_by_model(esr: dict, published: dict) -> Figure:
    """Experiment 1: multi-attempt and ESR rate of every measured model and condition above the published ones.

    esr: paper/numbers/esr.json; published: data/published.json. Rates are on an axis that is linear up to 0.1 % and
    logarithmic above, so that 0 and 7 % both have a place. Published intervals are Wilson's, from the published n.
    """
    use_style()
    rows = [
        (f"{model}, {condition}", _colour(condition, place), entry)
        for model, conditions in esr.items()
        for place, (condition, entry) in enumerate(conditions.items())
    ]
    theirs = [(entry["name"], entry) for entry in published["models"].values()]
    theirs.append(("all five, unsteered", published["no_steering"] | {"esr_rate": 0.0}))
    height = 1.05 + 0.18 * (len(rows) + len(theirs))
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.subplots(1, 2, sharey=True)
    for ax, name, title in zip(
        axes, ("multi_attempt_rate", "esr_rate"), ("Multi-attempt rate", "ESR rate"), strict=True
    ):
        for place, (_, colour, entry) in enumerate(rows):
            _interval(ax, entry[name], place, colour)
        for place, (_, entry) in enumerate(theirs, start=len(rows)):
            _published_rate(ax, entry, name, place + 0.6)
        _rate_axis(ax, title)
    places = [*range(len(rows)), *(place + 0.6 for place in range(len(rows), len(rows) + len(theirs)))]
    axes[0].set_yticks(places, [row[0] for row in rows] + [label for label, _ in theirs])
    for tick, (_, colour, _) in zip(axes[0].get_yticklabels(), rows, strict=False):
        tick.set_color(colour)
    axes[0].set_ylim(max(places) + 0.6, -0.6)
    for ax in axes:
        ax.axhline(len(rows) - 0.2, color=PALE, linewidth=0.8)
        ax.tick_params(axis="y", length=0)
    _note(axes[1], "this study", -0.45, "top")
    _note(axes[1], published["source"], len(rows) - 0.1, "top")
    return figure


def first_attempt_scores(frame: pd.DataFrame, esr: dict, published: dict) -> Figure:
    """Experiment 8: distribution over trials of the first attempt's score, unsteered beside steered, with the means.

    frame: esr.metrics.table; esr: paper/numbers/esr.json, for means and intervals (the same rows, clustered by latent);
    published: data/published.json, for the published unsteered range and the range from the published steered mean to
    the calibration's target. One panel a model; every condition's bars add up to all its scored trials.
    """
    use_style()
    models = list(esr)
    figure = Figure(figsize=(WIDTH, 0.85 + 1.75 * len(models)))
    axes = figure.subplots(len(models), 1, sharex=True, squeeze=False)[:, 0]
    bins = np.arange(0, 101, 5)
    for ax, model in zip(axes, models, strict=True):
        top = 0.0
        for place, (condition, entry) in enumerate(esr[model].items()):
            colour = _colour(condition, place)
            rows = frame[(frame.model == model) & (frame.condition == condition)]
            scores = rows[scored(rows)].first_score
            shares = np.histogram(scores, bins)[0] / max(1, len(scores))
            top = max(top, shares.max())
            label = f"{condition} (n = {entry['first_attempt_score']['n']})"
            ax.stairs(shares, bins, fill=True, color=colour, alpha=0.28)
            ax.stairs(shares, bins, color=colour, linewidth=1.1, label=label)
        for place, (condition, entry) in enumerate(esr[model].items()):
            _interval(ax, entry["first_attempt_score"], top * (1.10 + 0.09 * place), _colour(condition, place))
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


def calibration(thresholds: pd.DataFrame, target: float) -> Figure:
    """Boost against first-attempt score while calibrating, and the thresholds that came out, latent by latent.

    thresholds: one row a latent, columns latent, label, boost, sd, score, converged, queries (list of Query or of dicts
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
        labels = [_shorten(row.label) or f"latent {row.latent}" for row in ordered.itertuples()]
        right.set_yticks(ordered.index, labels, fontsize=5.6)
    else:
        right.set_ylabel("latents, in order of threshold")
    right.set_ylim(-0.8, len(ordered) - 0.2)
    right.tick_params(axis="y", length=0)
    right.set_xlim(left=0)
    right.set_xlabel("threshold, bars one posterior sd\n(median residual norms)")
    right.set_title("Thresholds by latent")
    right.legend(loc="lower right", handlelength=1.2)
    return figure


def sae_training(history: pd.DataFrame, chosen: int | None = None) -> Figure:
    """Explained variance and share of dead latents over the training tokens, one line a layer.

    history: columns layer, tokens, explained_variance, dead_fraction. The layer `chosen` is drawn boldly.
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
        ax.xaxis.set_major_formatter(FuncFormatter(_short_count))
        ax.xaxis.set_major_locator(MaxNLocator(5))
        ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        ax.grid(axis="y", color=PALE, linewidth=0.6)
    axes[0].set_ylim(max(0.0, float(history.explained_variance.quantile(0.1)) - 0.1), 1)
    axes[1].set_ylim(0, max(0.02, float(history.dead_fraction.max()) * 1.1))
    axes[0].legend(loc="lower right")
    return figure


def relevance(frame: pd.DataFrame) -> Figure:
    """What the relevance scorer makes of texts of known on-topic share: by kind of text, and along the scale.

    frame: columns kind, share (0-1) and score (0-100), one row a text the scorer was not fitted on.
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
    ax.hist(density, bins=np.geomspace(density.min(), density.max() * 1.001, 60), color=SKY)
    ax.set_xscale("log")
    ax.set_xlabel(f"share of {tokens:,} tokens on which a latent fires")
    ax.set_ylabel("latents")
    return figure


def benchmark(numbers: dict) -> Figure:
    """Tokens per second of every way to steer, and of the engine by rows side by side in a worker.

    numbers: paper/numbers/bench.json; a method that was not installed (null) is left out. The dashed line is what the
    model's matrix products alone would allow at the engine's batch size.
    """
    use_style()
    speeds = {name: speed for name, speed in numbers["tokens_per_second"].items() if speed is not None}
    order = sorted(speeds, key=speeds.get, reverse=True)
    bound = numbers["matmul"]["tokens_per_second"]
    figure = Figure(figsize=(WIDTH, 2.3))
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    colours = [BLUE if name == "engine" else SKY for name in order]
    left.barh(range(len(order)), [speeds[name] for name in order], color=colours, height=0.62)
    for place, name in enumerate(order):
        ratio = numbers["ratios"].get(name)
        note = f" {speeds[name]:.0f}" + (f" (engine {ratio:.1f} x)" if ratio else "")
        ink = "white" if name == "engine" else INK
        inside = {"ha": "right", "color": ink} if speeds[name] > bound / 20 else {"ha": "left", "color": INK}
        left.text(speeds[name], place, f"{note} ", va="center", fontsize=7, **inside)
    left.set_xscale("log")
    left.set_xlim(min(speeds.values()) / 3, 1.3 * max(bound, *speeds.values()))
    left.set_yticks(range(len(order)), [name.replace("_", " ") for name in order])
    left.invert_yaxis()
    left.tick_params(axis="y", length=0)
    left.xaxis.set_major_formatter(FuncFormatter(_short_count))
    left.axvline(bound, color=VERMILION, linewidth=1.0, linestyle=(0, (4, 2)))
    left.set_xlabel("new tokens per second (dashed: matrix products alone)")
    left.set_title("All methods, same trials")
    rows = sorted(numbers["batch_sizes"], key=int)
    sizes = [int(size) for size in rows]
    right.plot(sizes, [numbers["batch_sizes"][size] for size in rows], "o-", color=BLUE, markersize=3.6, linewidth=1.1)
    right.set_xticks(sizes)
    right.set_ylim(bottom=0)
    right.set_xlabel("answers side by side in a worker")
    right.set_ylabel("new tokens per second")
    right.set_title("Engine by batch size, short answers")
    right.grid(axis="y", color=PALE, linewidth=0.6)
    return figure


def _colour(condition: str, place: int) -> str:
    others = [GREEN, PURPLE, ORANGE, SKY, INK]
    return CONDITIONS.get(condition) or others[place % len(others)]


def _interval(ax: Axes, result: dict, y: float, colour: str) -> None:
    """A point with its interval; nothing for a null estimate."""
    if result["estimate"] is None:
        return
    if result["low"] is not None:
        ax.plot([result["low"], result["high"]], [y, y], color=colour, linewidth=1.6, solid_capstyle="butt")
    ax.plot(result["estimate"], y, "o", color=colour, markersize=4.5, clip_on=False, zorder=3)


def _published_rate(ax: Axes, entry: dict, name: str, y: float) -> None:
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


def _note(ax: Axes, text: str, y: float, alignment: str) -> None:
    place = ax.get_yaxis_transform()
    ax.text(1.0, y, text, transform=place, ha="right", va=alignment, fontsize=6.8, color=GREY, style="italic")


def _dose_response(ax: Axes, thresholds: pd.DataFrame, target: float) -> None:
    """Every query of every latent, its latents' thresholds on top, and the target."""
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
    ax.set_title("Scores while calibrating")


def _shorten(label: str, length: int = 26) -> str:
    return label if len(label) <= length else label[: length - 1].rstrip() + "\u2026"


def _short_count(value: float, _place=None) -> str:
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g} {unit}"
    return f"{value:g}"


def boost_sweep(rates: dict, published: dict) -> Figure:
    """Experiment 2: multi-attempt, improvement and ESR rate and first-attempt score against the boost, a line a model.

    rates: {model: rows of paper/numbers/boost_sweep.json}; the published peaks are marked in grey.
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
        for (model, rows), colour in zip(rates.items(), (BLUE, VERMILION, GREEN, ORANGE), strict=False):
            _line(ax, [row["boost_sd"] for row in rows], [row[name] for row in rows], colour, model)
        ax.set_title(title)
        ax.axvline(0, color=PALE, linewidth=0.8, zorder=0)
        if name.endswith("rate"):
            ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            peak = published["boost_sweep"][name.replace("_rate", "_peak")]
            at = published["boost_sweep"][name.replace("_rate", "_peak_sd")]
            ax.plot(at, peak, marker="D", color=GREY, markersize=4, linestyle="none", label="published peak (70B)")
    for ax in figure.axes[2:]:
        ax.set_xlabel("boost, sd from the latent's threshold")
    _legend_below(figure)
    return figure


def meta_prompts(rates: dict, published: dict) -> Figure:
    """Experiment 5: multi-attempt and ESR rate under each instruction beside the plain prompt, a colour a model.

    rates: paper/numbers/meta_prompts.json; the published self-monitoring rates are marked in grey.
    """
    use_style()
    variants = list(next(iter(rates.values())))
    figure = Figure(figsize=(WIDTH, 1.1 + 0.3 * len(variants)))
    axes = figure.subplots(1, 2, sharey=True)
    for ax, name in zip(axes, ("multi_attempt_rate", "esr_rate"), strict=True):
        for shift, (model, entries) in enumerate(rates.items()):
            colour = (BLUE, VERMILION, GREEN, ORANGE)[shift % 4]
            for place, variant in enumerate(variants):
                _interval(ax, entries[variant][name], place + 0.2 * shift, colour)
            ax.plot([], [], color=colour, marker="o", markersize=3.5, label=model)
        theirs = published["meta_prompt"][name]
        ax.plot(theirs, variants.index("monitor_yourself") - 0.2, marker="D", color=GREY, markersize=4,
                linestyle="none", label="published (70B)")  # fmt: skip
        ax.set_title({"multi_attempt_rate": "Multi-attempt rate", "esr_rate": "ESR rate"}[name])
        ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        ax.set_xlim(left=0)
    axes[0].set_yticks(range(len(variants)), [variant.replace("_", " ") for variant in variants])
    axes[0].set_ylim(len(variants) - 0.4, -0.6)
    _legend_below(figure)
    return figure


def _legend_below(figure: Figure) -> None:
    """One legend for all panels, where it hides nothing."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))


def _line(ax: Axes, places, results, colour: str, label: str) -> None:
    """Estimates joined by a line, with their intervals; what could not be estimated is left out."""
    known = [(x, r) for x, r in zip(places, results, strict=True) if r["estimate"] is not None]
    if not known:
        ax.plot([], [], color=colour, marker="o", markersize=3.5, label=label)
        return
    x, values = [k[0] for k in known], [k[1]["estimate"] for k in known]
    ax.plot(x, values, color=colour, marker="o", markersize=3.5, linewidth=1.2, label=label)
    for place, entry in known:
        if entry["low"] is not None:
            ax.plot([place, place], [entry["low"], entry["high"]], color=colour, linewidth=0.9, alpha=0.7)


def learning_curves(curves: dict) -> Figure:
    """Experiment 4: training loss by step, smoothed over ten steps, a line for each ratio of self-corrections."""
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
    """Experiment 4: multi-attempt rate, ESR rate and first-attempt score by share of self-corrections trained on.

    rates: paper/numbers/finetune.json. The paper's statement is qualitative: fine-tuning induces ESR in an 8B model.
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
            _line(ax, [float(r) for r in rates], [both[condition][name] for both in rates.values()], colour, condition)
        ax.set_title(title)
        ax.set_xlabel("share of self-corrections")
        ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        if name.endswith("rate"):
            ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            before = published["models"]["llama-3.1-8b"][f"{name}_max"]
            ax.axhline(before, color=GREY, linewidth=0.8, linestyle=":", label="untuned 8B, published (at most)")
    _legend_below(figure)
    return figure


def detectors(latents: pd.DataFrame, chance: float) -> Figure:
    """Experiment 3: every latent's mean largest activation on matched against mismatched answers, and the best of them
    in order of how well they separate the two.

    latents: columns matched_mean, mismatched_mean, auc and kind ("detector", "steered", "other"), as in
    data/detectors/<model>/separation.csv. chance: the largest area under the curve with pairs shuffled.
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
    left.set_xlabel("answer to its own prompt")
    left.set_ylabel("answer to another prompt")
    left.set_title("Mean largest activation")
    left.legend(loc="lower right", handlelength=0.8)
    right.axhline(chance, color=INK, linewidth=1.0, linestyle=(0, (4, 2)))
    right.text(
        1.0, chance, "best by chance ", transform=right.get_yaxis_transform(), ha="right", va="bottom", fontsize=7
    )
    right.set_xlabel("rank")
    right.set_ylabel("area under the curve")
    right.set_title("How well single latents tell them apart")
    return figure


def ablation(rates: dict, published: dict) -> Figure:
    """Experiments 3b, 10 and 13: multi-attempt rate under each ablation, and its paired difference from steering alone.

    rates: {model: {condition: rates}}, as in paper/numbers/ablation.json; published figures are drawn in grey below.
    """
    use_style()
    rows = [(model, name, entry) for model, entries in rates.items() for name, entry in entries.items()]
    theirs, base = published["detector_ablation"], published["models"]["llama-3.3-70b"]
    control = published["random_ablation"]
    grey = [
        ("steered", base | {"difference": None}),
        ("detectors", theirs | {"n": theirs["n_ablated"], "difference": theirs["multi_attempt_rate"]}),
        ("random", control | {"difference": control["multi_attempt_rate"]}),
    ]
    figure = Figure(figsize=(WIDTH, 1.0 + 0.17 * (len(rows) + len(grey))))
    left, right = figure.subplots(1, 2, sharey=True)
    for place, (_, name, entry) in enumerate(rows):
        colour = _ablation_colour(name)
        _interval(left, entry["multi_attempt_rate"], place, colour)
        if "difference" in entry:
            _interval(right, entry["difference"], place, colour)
    for place, (_, entry) in enumerate(grey, start=len(rows)):
        _published_rate(left, entry, "multi_attempt_rate", place + 0.6)
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

    numbers: paper/numbers/activations.json; a model without episodes has no curve. Bands are intervals of each bin.
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
        colour = (BLUE, VERMILION, GREEN, ORANGE)[shift % 4]
        _course(left, entry, colour, f"{model} ({entry['episodes']} episodes)")
        for place, name in enumerate(names):
            _interval(right, entry[name], place + 0.15 * shift, colour)
    for place, name in enumerate(("off_topic_ratio", "on_topic_ratio")):
        theirs = published["activation_statistics"][name]
        right.plot(theirs, place - 0.2, marker="D", color=GREY, markersize=4, linestyle="none")
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
    right.set_title("Ratio to unsteered answers")
    right.set_xlabel("diamonds: published (70B)")
    return figure


def _ablation_colour(name: str) -> str:
    kinds = {"steered": VERMILION, "detectors": BLUE, "held_out": GREEN}
    return kinds.get(name, ORANGE)


def _course(ax: Axes, entry: dict, colour: str, label: str) -> None:
    """The aligned mean with its band, unsteered answers dashed and steered ones that never restart dotted."""
    bins = entry["bins"]
    middles = (np.arange(len(bins)) + 0.5) / max(1, len(bins))
    ax.plot(middles, [b["estimate"] for b in bins], color=colour, linewidth=1.2, label=label)
    if bins and all(b["low"] is not None for b in bins):
        ax.fill_between(
            middles, [b["low"] for b in bins], [b["high"] for b in bins], color=colour, alpha=0.2, linewidth=0
        )
    for name, dashes in (("baseline_mean", (4, 2)), ("never_restarted_mean", (1, 1))):
        if entry[name]["estimate"] is not None:
            ax.axhline(entry[name]["estimate"], color=colour, linewidth=0.9, linestyle=(0, dashes))


def controls(rates: dict) -> Figure:
    """Experiments 11 and 12 of one model: rates after what was put in, and scores by distance from a restart.

    rates: a model's entry in paper/numbers/controls.json.
    """
    use_style()
    detection = rates["detection"]
    sustained = {name: windows for name, windows in rates["sustained"].items() if name != "matched_difference"}
    figure = Figure(figsize=(WIDTH, 1.5 + 0.24 * len(detection)))
    left, right = figure.subplots(1, 2)
    measures = {"multi_attempt_rate": "restart", "silent_recovery_rate": "on topic without one"}
    for shift, ((name, label), colour) in enumerate(zip(measures.items(), (VERMILION, BLUE), strict=True)):
        for place, entry in enumerate(detection.values()):
            _interval(left, entry[name], place + 0.25 * shift, colour)
        left.plot([], [], "o", color=colour, markersize=3.5, label=label)
    left.set_yticks(range(len(detection)), [name.replace("_", " ") for name in detection])
    left.set_ylim(len(detection) - 0.4, -0.6)
    left.set_xlim(0, 1)
    left.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    left.set_title("After what was put in")
    left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)
    colours = (VERMILION, ORANGE, BLUE, PURPLE, GREEN)
    for (name, windows), colour in zip(sustained.items(), colours, strict=False):
        _line(right, range(len(windows)), list(windows.values()), colour, name.replace("_", " "))
    names = list(next(iter(sustained.values())))
    right.set_xticks(range(len(names)), names)
    right.set_ylim(0, 100)
    right.set_xlabel("tokens from where the text begins")
    right.set_title("Score by distance")
    right.legend(loc="upper center", bbox_to_anchor=(0.5, -0.24), ncols=2, fontsize=6)
    return figure


def judge_calibration(deciles: dict) -> Figure:
    """Experiment 7: mean first-attempt score of each judge against the readers', by tenths of the readers' scores.

    deciles: {judge: "by_decile" of paper/numbers/judge.json}.
    """
    use_style()
    figure = Figure(figsize=(WIDTH / 2, 2.6))
    ax = figure.subplots()
    ax.plot([0, 100], [0, 100], color=PALE, linewidth=1.0, zorder=0)
    for (name, rows), colour in zip(deciles.items(), (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY), strict=False):
        ax.plot(
            [r["readers"] for r in rows], [r["judge"] for r in rows], "o-", color=colour, markersize=3.5, label=name
        )
    ax.set_xlim(0, 100)
    ax.set_ylim(0, 100)
    ax.set_xlabel("readers' mean score")
    ax.set_ylabel("judge's mean score")
    ax.legend(loc="lower right")
    return figure


def power_curves(curves: dict, power: float) -> Figure:
    """Power to find a published reduction against trials under each condition, a line a base rate.

    curves: `{name: {"trials": [...], "power": [...], "measured": bool}}`; published ones are drawn in grey.
    power: the aim, a line.
    """
    use_style()
    figure = Figure(figsize=(WIDTH, 2.6))
    ax = figure.subplots()
    colours = iter((BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY))
    greys = iter(("-", (0, (4, 2)), (0, (1, 1)), (0, (4, 1, 1, 1)), (0, (6, 3))))
    for name, curve in curves.items():
        style = {"color": next(colours)} if curve["measured"] else {"color": GREY, "linestyle": next(greys)}
        ax.plot(curve["trials"], curve["power"], linewidth=1.3, label=name, **style)
    ax.axhline(power, color=PALE, linewidth=1.0, zorder=0)
    ax.set_xscale("log")
    ax.set_ylim(0, 1.02)
    ax.xaxis.set_major_formatter(FuncFormatter(_short_count))
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.set_xlabel("trials under each condition")
    ax.set_ylabel("power")
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure
