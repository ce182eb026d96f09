"""A response as a figure: what a restart under steering looks like."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from esr.reporting.figures.style import BLUE, CONDITIONS, GREY, INK, PALE, WIDTH, shorten
from esr.storage.records import Attempt, Judgement, Trial

COLUMNS = 88  # characters of a line
LINE = 0.165  # inches
BAR = 0.06  # width of a score's bar, in widths of the figure


def median_improvement(pairs: Sequence[tuple[Trial, Judgement]]) -> tuple[Trial, Judgement] | None:
    """Of the responses that restart and improve, the one whose last attempt gains the median over its first.

    So the example is neither the best nor chosen by taste. None where no response improves.
    """
    gains = [(_gain(judgement), trial.id, (trial, judgement)) for trial, judgement in pairs]
    better = sorted(row for row in gains if row[0] > 0)
    return better[len(better) // 2][2] if better else None


def _gain(judgement: Judgement) -> float:
    """Score of the last attempt minus that of the first; 0 for one attempt, or without scores."""
    scores = [attempt.score for attempt in judgement.attempts if attempt.score is not None]
    return scores[-1] - scores[0] if len(scores) == len(judgement.attempts) > 1 else 0.0


def example(trial: Trial, judgement: Judgement) -> Figure:
    """The prompt, and each attempt with its restart marked and its score beside it, steering on throughout."""
    blocks = [_lines(trial, attempt) for attempt in judgement.attempts]
    n_lines = 3 + sum(len(block) + 1 for block in blocks)
    figure = Figure(figsize=(WIDTH, LINE * n_lines))
    figure.set_layout_engine("none")
    y = 1.0

    def write(text: str, x: float, *, bold: bool = False, colour: str = INK) -> None:
        weight = "bold" if bold else "normal"
        figure.text(x, y, text, va="top", fontsize=8, color=colour, fontweight=weight)

    step = 1.0 / n_lines
    write(textwrap.shorten(trial.prompt, 100, placeholder=" …"), 0.0, bold=True)
    y -= 1.3 * step
    label = shorten(trial.label, 60)
    towards = f"steered at every token towards “{label}”, at {trial.boost:.2f} median residual norms"
    write(towards, 0.0, colour=CONDITIONS["steered"])
    figure.text(1.0, y, "score, 0–100", ha="right", va="top", fontsize=7, color=GREY)
    y -= 1.6 * step
    figure.add_artist(_bar(0.012, 0.5 * step, 0.006, y - 0.5 * step, CONDITIONS["steered"]))
    for attempt, block in zip(judgement.attempts, blocks, strict=True):
        score = 0.0 if attempt.score is None else attempt.score
        write("–" if attempt.score is None else f"{score:.0f}", 0.905, bold=True)
        figure.add_artist(_bar(0.94, y - 0.75 * step, BAR, 0.6 * step, PALE))
        figure.add_artist(_bar(0.94, y - 0.75 * step, BAR * score / 100, 0.6 * step, BLUE))
        for line, of_restart in block:
            write(line, 0.035, bold=of_restart, colour=BLUE if of_restart else INK)
            y -= step
        y -= step
    return figure


def _lines(trial: Trial, attempt: Attempt) -> list[tuple[str, bool]]:
    """Lines of an attempt, and whether each is of its restart phrase."""
    restart, text = attempt.restart, trial.text[attempt.start : attempt.end]
    marked = bool(restart) and text.startswith(restart)
    rest = text[len(restart) :] if marked else text
    found = [(line, True) for line in textwrap.wrap(restart.strip(), COLUMNS)] if marked else []
    return found + [(line, False) for line in textwrap.wrap(rest.strip(), COLUMNS)]


def _bar(x: float, y: float, width: float, height: float, colour: str) -> Rectangle:
    return Rectangle((x, y), width, height, color=colour, linewidth=0)
