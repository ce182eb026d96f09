"""Shared colours, style and drawing of intervals.

Equal data give an equal SVG, byte for byte. Colours are Okabe and Ito's, safe for colour-blind readers.
"""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib
import seaborn
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from esr import paths
from esr.statistics.estimates import Estimate
from esr.storage.files import write_bytes

BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"
INK, GREY, PALE = "#222222", "#767676", "#DDDDDD"
PALETTE = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY)  # of models, judges and other series, in order
CONDITIONS = {"unsteered": BLUE, "steered": VERMILION}  # other conditions get other colours
ABLATIONS = CONDITIONS | {"detectors": BLUE, "held_out": GREEN}  # random sets are orange
WIDTH = 6.3  # inches: the text block of an A4 page
LABELLED = 50  # latents that fit a figure with labels


def use_style() -> None:
    """Set matplotlib's defaults for every figure; call before drawing."""
    seaborn.set_theme(context="paper", style="ticks", palette=list(PALETTE))
    matplotlib.rcParams.update(
        {
            "font.family": "DejaVu Sans",  # shipped with matplotlib
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
            "svg.hashsalt": "esr",  # makes ids in the SVG deterministic
        }
    )


def save(figure: Figure | None, name: str) -> Path | None:
    """Path of paper/figures/NAME.svg, written byte-identical for an identical figure; None without a figure."""
    if figure is None:
        return None
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    path = paths.output_file(paths.FIGURES / f"{name}.svg")
    write_bytes(path, buffer.getvalue())
    return path


def condition_colour(condition: str, place: int) -> str:
    others = [GREEN, PURPLE, ORANGE, SKY, INK]
    return CONDITIONS.get(condition) or others[place % len(others)]


def draw_interval(ax: Axes, measured: Estimate, y: float, colour: str) -> None:
    """A point with its interval; nothing for a null estimate."""
    if measured.estimate is None:
        return
    if measured.bounds:
        ax.plot(measured.bounds, [y, y], color=colour, linewidth=1.6, solid_capstyle="butt")
    ax.plot(measured.estimate, y, "o", color=colour, markersize=4.5, clip_on=False, zorder=3)


def draw_note(ax: Axes, text: str, y: float, alignment: str) -> None:
    place = ax.get_yaxis_transform()
    ax.text(1.0, y, text, transform=place, ha="right", va=alignment, fontsize=6.8, color=GREY, style="italic")


def shorten(label: str, length: int = 26) -> str:
    return label if len(label) <= length else label[: length - 1].rstrip() + "\u2026"


def short_count(value: float, _place=None) -> str:
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g} {unit}"
    return f"{value:g}"


def legend_below(figure: Figure) -> None:
    """One legend for all panels, below them."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))


def draw_line(ax: Axes, places, results, colour: str, label: str) -> None:
    """Estimates joined by a line, with their intervals; null ones are left out."""
    known = [(x, r) for x, r in zip(places, results, strict=True) if r.is_known]
    if not known:
        ax.plot([], [], color=colour, marker="o", markersize=3.5, label=label)
        return
    x, values = [k[0] for k in known], [k[1].estimate for k in known]
    ax.plot(x, values, color=colour, marker="o", markersize=3.5, linewidth=1.2, label=label)
    for place, entry in known:
        if entry.bounds:
            ax.plot([place, place], entry.bounds, color=colour, linewidth=0.9, alpha=0.7)
