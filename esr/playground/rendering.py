"""The playground's texts as HTML: everything that a model, a user or a file wrote is escaped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files

from esr.models.alignment import Alignment
from esr.playground.session import Side
from esr.reporting.viewer import RGB
from esr.storage.records import Attempt, Latent, Threshold

DEEPEST = 0.6  # opacity of the largest activation: text stays legible on it in light and dark themes
HALF_CHARACTER = "\ufffd"  # what the first token of a split character decodes to


@dataclass(frozen=True)
class Shades:
    """How tokens of a response are coloured. values: by token, 0 to `largest`. titles: shown where the mouse rests."""

    alignment: Alignment
    values: Sequence[float]
    titles: Sequence[str]
    largest: float


def style() -> str:
    sheet = files("esr.playground").joinpath("assets", "playground.css").read_text(encoding="utf-8")
    return f"<style>{sheet}</style>"


def name(text: str) -> str:
    return f'<div class="esr-name">{escape(text)}</div>'


def note(text: str) -> str:
    return f'<div class="esr-note">{escape(text)}</div>' if text else ""


def status(text: str) -> str:
    return f'<div class="esr-status" role="status">{escape(text)}</div>'


def error(text: str) -> str:
    return f'<div class="esr-error" role="alert">{escape(text)}</div>'


def code(text: str) -> str:
    return f'<pre class="esr-code">{escape(text)}</pre>'


def contexts(latent: Latent, of_sae: bool, n: int = 8) -> str:
    """A latent with its strongest contexts, the firing token marked; a concept with its texts. ¶ is a line break."""
    shown = "".join(f"<li>{_marked(text)}</li>" for text in latent.contexts[:n])
    kept = "one of the study's latents" if latent.kept else f"not one of the study's: {latent.reason}"
    facts = f"Fires on {100 * latent.density:.3g} % of corpus tokens; {kept}." if of_sae else f"A concept, {kept}."
    title = f"{'Latent' if of_sae else 'Concept'} {latent.index}: {latent.label}"
    heading = f"{name(title)}{note(facts)}"
    return f'{heading}<ol class="esr-contexts">{shown}</ol>' if shown else f"{heading}{note('It has no contexts.')}"


def _marked(context: str) -> str:
    before, _, rest = context.partition("«")
    token, _, after = rest.partition("»")
    return f"{escape(before)}<mark>{escape(token)}</mark>{escape(after)}"


def scale(threshold: Threshold | None, low: float, high: float) -> str:
    """The calibrated threshold as a mark below a slider from `low` to `high`, median residual norms."""
    if threshold is None:
        return '<div class="esr-scale">No calibrated threshold for this latent.</div>'
    place = 100 * min(1.0, max(0.0, (threshold.boost - low) / (high - low)))
    side = f"right:{100 - place:.1f}%" if place > 50 else f"left:{place:.1f}%"
    label = f"threshold {threshold.boost:.2f} (sd {threshold.sd:.2f})"
    return f'<div class="esr-scale"><i style="left:{place:.1f}%"></i><b style="{side}">{label}</b></div>'


def card(title: str, hint: str, body: str, edited: bool) -> str:
    """One response. body: HTML. title and hint are escaped."""
    kind = "esr-card esr-edited" if edited else "esr-card"
    head = f'<h3>{escape(title)}</h3><p class="esr-hint">{escape(hint)}</p>'
    return f'<div class="{kind}">{head}<div class="esr-text">{body}</div></div>'


def titles(side: Side) -> tuple[str, str]:
    """Title and hint of a response. It is called steered only where the guard saw the edit at every pass."""
    plan, n = side.plan, f"{len(side.tokens)} tokens"
    if not (plan.boost or plan.ablate):
        return "Unsteered", f"{n}."
    if not side.seen:
        return "No response yet", "The edit of the residual stream has not been seen yet."
    parts = [steered(plan.latent, plan.label, plan.boost)] if plan.boost else []
    parts += [f"{len(plan.ablate)} detectors ablated"] if plan.ablate else []
    title = ", ".join(parts)
    return title[:1].upper() + title[1:], f"{n}. The guard saw the edit in the residual stream at every pass."


def steered(latent: int, label: str, boost: float) -> str:
    """What a response was steered with: a latent of the SAE, or a concept of a model without one."""
    return f"Steered with “{label}” ({latent}), boost {boost:.3g}"


def growing(side: Side) -> str:
    """A response that is being written; without text while its edit has not been seen."""
    shown = side.text.rstrip(HALF_CHARACTER) if side.seen or not (side.plan.boost or side.plan.ablate) else ""
    return card(*titles(side), escape(shown) + ("" if side.finished else "▌"), _is_edited(side))


def finished(side: Side, attempts: Sequence[Attempt], shades: Shades | None, stopped: bool) -> str:
    """A whole response: attempts with their scores, restarts marked, tokens coloured by an activation."""
    title, hint = titles(side)
    hint += " Stopped by you." if stopped and not side.finished else ""
    return card(title, hint, response(side.text, attempts, shades), _is_edited(side))


def _is_edited(side: Side) -> bool:
    return bool(side.plan.boost or side.plan.ablate)


def response(text: str, attempts: Sequence[Attempt], shades: Shades | None) -> str:
    """A response's text: one block an attempt, restart phrases marked ⟲, tokens shaded."""
    if not attempts:
        return _span(text, 0, len(text), shades) or "(empty)"
    return "".join(_attempt(text, attempt, i, shades) for i, attempt in enumerate(attempts))


def _attempt(text: str, attempt: Attempt, place: int, shades: Shades | None) -> str:
    score = "not scored" if attempt.score is None else f"score {attempt.score:.0f}"
    chip = f'<span class="esr-score">attempt {place + 1} · {score}</span>'
    body = attempt.start + len(attempt.restart)
    phrase = _span(text, attempt.start, body, shades)
    restart = f'<mark class="esr-restart">⟲ {phrase}</mark>' if phrase else ""
    return f'<span class="esr-attempt">{chip}{restart}{_span(text, body, attempt.end, shades)}</span>'


def _span(text: str, start: int, end: int, shades: Shades | None) -> str:
    """Characters `start` to `end`, shaded by the tokens they belong to."""
    if shades is None:
        return escape(text[start:end])
    return "".join(
        _token(text[a:b], value / shades.largest if shades.largest else 0.0, title)
        for a, b, value, title in _cut(shades, start, end)
    )


def _cut(shades: Shades, start: int, end: int) -> Iterator[tuple[int, int, float, str]]:
    """Pieces of the text between two places: (start, end, value, title) of each token that has characters there."""
    starts = shades.alignment.starts
    for i, (value, title) in enumerate(zip(shades.values, shades.titles, strict=True)):
        a, b = max(start, starts[i]), min(end, starts[i + 1])
        if a < b:
            yield a, b, value, title


def _token(text: str, depth: float, title: str) -> str:
    opacity = DEEPEST * min(1.0, max(0.0, depth))
    colour = "background:rgba({},{},{},{:.2f})".format(*RGB, opacity) if opacity >= 0.01 else ""
    return f'<span class="esr-token" style="{colour}" title="{escape(title)}">{escape(text)}</span>'


def key(latents: Sequence[str], largest: float) -> str:
    """What the colours mean."""
    what = ", ".join(latents)
    if not largest:
        return note(f"No token of either response activates {what}.")
    return (
        f'<div class="esr-note">Colour: activation of {escape(what)}'
        f'{" (the largest of them)" if len(latents) > 1 else ""}, 0 <span class="esr-key"></span> {largest:.3g}. '
        "Rest the pointer on a token for its value.</div>"
    )
