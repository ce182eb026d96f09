"""A response as static, printable HTML, its tokens coloured by an activation."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from matplotlib.colors import to_rgb

from esr.models.alignment import Alignment
from esr.reporting.figures.style import CONDITIONS
from esr.storage.records import Judgement, Trial

MARKDOWN = re.compile(r"[\\`*_{}\[\]<>#|!~$&]")  # characters that a response must not format or link with


def show_attempts(trial: Trial, judgement: Judgement) -> str:
    """A whole response as Markdown, restarts marked and each attempt preceded by its score.

    What the model wrote is shown as written: it formats, links and embeds nothing.
    """
    texts = [verbatim(trial.text[a.start : a.end]) for a in judgement.attempts]
    parts = " **⟲** ".join(f"[{a.score:.0f}] {text}" for a, text in zip(judgement.attempts, texts, strict=True))
    label = verbatim(trial.label)
    return f"**{verbatim(trial.prompt)}** — latent {trial.latent} “{label}”, boost {trial.boost:.2f}\n\n> {parts}"


def verbatim(text: str) -> str:
    """Text in one line, as Markdown that shows it as it is."""
    return MARKDOWN.sub(lambda found: f"\\{found[0]}", " ".join(text.split()))


RGB = tuple(round(255 * part) for part in to_rgb(CONDITIONS["steered"]))
BOX = (
    "background:#fff;color:#222;border:1px solid #ddd;padding:8px 10px;margin:6px 0;white-space:pre-wrap;"
    "font:13px/1.7 sans-serif;print-color-adjust:exact;-webkit-print-color-adjust:exact"
)
MARK = f"border-bottom:2px solid {CONDITIONS['unsteered']};font-weight:bold"


def show_response(
    alignment: Alignment,
    values: Sequence[float],
    *,
    largest: float,
    restart: tuple[int, int] | None = None,
    heading: str = "",
) -> str:
    """HTML of a response, each token shaded by its value, which shows on hover.

    Tokens that spell one character together appear as one, with their largest value. largest: the value of the deepest
    colour. restart: first character and end of the restart phrase, underlined after a ⟲. Escapes text and heading.
    Raises ValueError unless every token has a value.
    """
    text, starts = alignment.text, alignment.starts[:-1]
    if len(starts) != len(values):
        raise ValueError(f"{len(starts)} tokens with {len(values)} values: each token needs one.")
    pieces = [
        _piece(text[start:end], value, largest, mark) for start, end, value, mark in _cut(text, starts, values, restart)
    ]
    title = f'<div style="color:#555;font:12px sans-serif">{html.escape(heading)}</div>' if heading else ""
    return f'{title}<div style="{BOX}">{"".join(pieces)}</div>'


def _cut(text: str, starts: Sequence[int], values: Sequence[float], restart):
    """(start, end, value, mark) of each piece: non-empty tokens, split at the restart's borders.

    mark: "first" for the restart's first piece, "more" for its others, else "".
    """
    first, last = restart or (-1, -1)
    largest: dict[int, float] = {}
    for start, value in zip(starts, values, strict=True):
        largest[start] = max(value, largest.get(start, value))
    borders = sorted({*largest, *(x for x in (first, last) if 0 < x < len(text)), len(text)})
    value = 0.0
    for start, end in zip(borders, borders[1:], strict=False):
        value = largest.get(start, value)
        mark = "first" if start == first else "more" if first < start < last else ""
        yield start, end, value, mark


def _piece(text: str, value: float, largest: float, mark: str) -> str:
    depth = min(1.0, max(0.0, value / largest)) if largest > 0 else 0.0
    style = f"background:rgba({RGB[0]},{RGB[1]},{RGB[2]},{0.75 * depth:.2f})" + (f";{MARK}" if mark else "")
    sign = "⟲ " if mark == "first" else ""
    return f'<span style="{style}" title="{value:.3g}">{sign}{html.escape(text)}</span>'
