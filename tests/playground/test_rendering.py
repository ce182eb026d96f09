"""The playground's HTML: escaped, marked at the right characters, legible on its colours."""

import re

import pytest
from matplotlib.colors import to_rgb

from esr.models.alignment import Alignment
from esr.playground import rendering
from esr.playground.session import Side
from esr.reporting.figures.style import CONDITIONS
from esr.steering.trials import Plan
from esr.storage.records import Attempt

HOSTILE = '<img src=x onerror=alert(1)> & "it\'s"'
TEXT = "Bread is <b>. Wait, again. Take a boat."


def side(boost=0.4, seen=True, finished=False, text=HOSTILE, label=HOSTILE):
    plan = Plan("steered", 3, label, "typed", "Describe a boat.", 5, boost, layer=1)
    return Side(plan, text, (1, 2), seen, "stop" if finished else None)


def plain(document):
    return re.sub(r"<[^>]+>", "", document)


@pytest.mark.parametrize(
    "document",
    [
        rendering.growing(side()),
        rendering.finished(side(finished=True), [], None, False),
        rendering.error(HOSTILE),
        rendering.code(HOSTILE),
        rendering.key([HOSTILE], 1.0),
        rendering.response(HOSTILE, [], rendering.Shades(Alignment(HOSTILE, (0, len(HOSTILE))), [1.0], [HOSTILE], 1.0)),
    ],
)
def test_what_others_wrote_is_text(document):
    assert "<img" not in document and "&lt;img" in document


def test_text_is_shown_and_called_steered_only_once_the_guard_saw_the_edit():
    unseen = rendering.growing(side(seen=False))
    assert "Steered" not in unseen and "alert" not in unseen
    assert "Steered with “&lt;img" in rendering.growing(side()) and "alert" in rendering.growing(side())
    assert ">Unsteered<" in rendering.growing(side(boost=0.0, seen=False))


def test_attempts_are_apart_and_restarts_marked_whatever_the_tokens():
    at = TEXT.index("Wait")
    phrase = "Wait, again."
    attempts = [
        Attempt(start=0, end=at, restart="", score=12.0),
        Attempt(start=at, end=len(TEXT), restart=phrase, score=80.0),
    ]
    starts = (0, 6, at - 2, at + 3, at + 14, len(TEXT))  # a token across the border, one across the phrase's end
    shades = rendering.Shades(Alignment(TEXT, starts), [0.0, 1.0, 2.0, 0.5, 2.0], list("abcde"), 2.0)
    for found in (rendering.response(TEXT, attempts, None), rendering.response(TEXT, attempts, shades)):
        assert plain(found).replace("&lt;", "<").replace("&gt;", ">") == (
            f"attempt 1 · score 12{TEXT[:at]}attempt 2 · score 80⟲ {TEXT[at:]}"
        )
        assert plain(re.search(r"<mark.*?</mark>", found)[0]) == f"⟲ {phrase}"
    deepest = f"{rendering.DEEPEST:.2f}"
    assert rendering.response(TEXT, attempts, shades).count(deepest) == 3  # two tokens, one of them cut in two


def luminance(rgb):
    return sum(
        w * (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4)
        for w, v in zip((0.2126, 0.7152, 0.0722), rgb, strict=True)
    )


@pytest.mark.parametrize(("page", "ink"), [("#ffffff", "#222222"), ("#111111", "#ffffff")])
def test_text_is_legible_on_the_deepest_colour(page, ink):
    """JupyterLab's light and dark themes; 4.5 is the contrast that accessibility guidelines ask for."""
    under, over = to_rgb(page), to_rgb(CONDITIONS["steered"])
    mixed = [rendering.DEEPEST * o + (1 - rendering.DEEPEST) * u for o, u in zip(over, under, strict=True)]
    bright, dark = sorted((luminance(mixed), luminance(to_rgb(ink))), reverse=True)
    assert (bright + 0.05) / (dark + 0.05) >= 4.5
