"""Figures of the tools: benchmark, judge, power."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

from esr.reporting.figures.style import (
    BLUE,
    GREY,
    INK,
    PALE,
    PALETTE,
    SKY,
    VERMILION,
    WIDTH,
    short_count,
    use_style,
)


def benchmark(numbers: dict) -> Figure:
    """Tokens per second of every method, and of the engine by batch size.

    numbers: paper/numbers/bench.json; omits methods that were not installed (null). Dashed line: the rate of the
    model's matrix products alone at the engine's batch size.
    """
    use_style()
    speeds = {name: speed for name, speed in numbers["tokens_per_second"].items() if speed is not None}
    order = sorted(speeds, key=speeds.__getitem__, reverse=True)
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
    left.xaxis.set_major_formatter(FuncFormatter(short_count))
    left.axvline(bound, color=VERMILION, linewidth=1.0, linestyle=(0, (4, 2)))
    left.set_xlabel("new tokens per second (dashed: matrix products alone)")
    left.set_title("All methods, same trials")
    rows = sorted(numbers["batch_sizes"], key=int)
    sizes = [int(size) for size in rows]
    right.plot(sizes, [numbers["batch_sizes"][size] for size in rows], "o-", color=BLUE, markersize=3.6, linewidth=1.1)
    right.set_xticks(sizes)
    right.set_ylim(bottom=0)
    right.set_xlabel("batch size of a worker")
    right.set_ylabel("new tokens per second")
    right.set_title("Engine by batch size, short responses")
    right.grid(axis="y", color=PALE, linewidth=0.6)
    return figure


def judge_calibration(deciles: dict) -> Figure:
    """Experiment 7: mean first-attempt score of each judge against the annotators', by deciles of the annotators'.

    deciles: {judge: "by_decile" of paper/numbers/judge.json}.
    """
    use_style()
    figure = Figure(figsize=(WIDTH / 2, 2.6))
    ax = figure.subplots()
    ax.plot([0, 100], [0, 100], color=PALE, linewidth=1.0, zorder=0)
    for (name, rows), colour in zip(deciles.items(), PALETTE, strict=False):
        ax.plot(
            [r["annotators"] for r in rows], [r["judge"] for r in rows], "o-", color=colour, markersize=3.5, label=name
        )
    ax.set_xlim(0, 100)
    ax.set_ylim(0, 100)
    ax.set_xlabel("annotators' mean score")
    ax.set_ylabel("judge's mean score")
    ax.legend(loc="lower right")
    return figure


def power_curves(curves: dict, power: float) -> Figure:
    """Power to detect a published reduction against trials per condition, a line per base rate.

    curves: `{name: {"trials": [...], "power": [...], "measured": bool}}`; published ones are drawn in grey.
    power: the target, a line.
    """
    use_style()
    figure = Figure(figsize=(WIDTH, 2.6))
    ax = figure.subplots()
    colours = iter(PALETTE)
    greys = iter(("-", (0, (4, 2)), (0, (1, 1)), (0, (4, 1, 1, 1)), (0, (6, 3))))
    for name, curve in curves.items():
        style = {"color": next(colours)} if curve["measured"] else {"color": GREY, "linestyle": next(greys)}
        ax.plot(curve["trials"], curve["power"], linewidth=1.3, label=name, **style)
    ax.axhline(power, color=PALE, linewidth=1.0, zorder=0)
    ax.set_xscale("log")
    ax.set_ylim(0, 1.02)
    ax.xaxis.set_major_formatter(FuncFormatter(short_count))
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.set_xlabel("trials per condition")
    ax.set_ylabel("power")
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure
