"""Pages of responses in a real browser, headless Chromium where it is installed: what its script makes of the rows."""

import re
import shutil
import subprocess
from html import unescape

import pytest

from esr.publishing import responses
from tests.publishing.html_checks import Elements
from tests.publishing.sample import MODEL, judgement_of, sampled, trial_of, write_latents, write_stage
from tests.publishing.test_responses import HOSTILE, sampled_row

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium, as in apt-get install chromium")
N = 2000  # responses
HOSTILE_ID = "0123456789abcdef"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page of 2,000 responses, the first of them hostile."""
    root = tmp_path_factory.mktemp("browser")
    text = f"{HOSTILE} Wait, {HOSTILE}"
    hostile = trial_of(sampled_row(), id=HOSTILE_ID, text=text, prompt=HOSTILE, label=HOSTILE)
    pairs = [(hostile, judgement_of(hostile, [text.index("Wait,")], [10.0, 90.0])), *sampled(N - 1)]
    write_stage(root / "data", pairs)
    write_latents(root / "data", {trial.latent: "a word" for trial, _ in pairs})
    (file,) = responses.write_pages(root / "site", root / "data")
    return file, pairs


def shown(file, wanted=""):
    """The document that the browser makes of the page with these filters."""
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", f"file://{file}{wanted}"]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def texts(document):
    """Each response that is shown, as text."""
    articles = re.findall(r"<article.*?</article>", document, re.DOTALL)
    return [unescape(re.sub(r"<[^>]+>", "", article)) for article in articles]


def count(document):
    return re.search(r'<p id="count"[^>]*>(.*?)</p>', document, re.DOTALL)[1]


def test_responses_are_listed_as_text(page):
    file, pairs = page
    document = shown(file)
    assert count(document).startswith(f"{N} of {N} responses")
    assert HOSTILE in texts(document)[0] and texts(document)[0].count("score") == 2
    body = document[document.index("<main>") : document.index('<script type="application/json"')]
    assert not {tag for tag, _ in Elements(body).tags} & {"script", "img", "style", "textarea", "b"}
    marks = re.findall(r"<mark>(.*?)</mark>", body, re.DOTALL)
    expected = [a.restart for _, judgement in pairs[: len(texts(document))] for a in judgement.attempts[1:]]
    assert [unescape(mark).removeprefix("⟲ ") for mark in marks] == expected


@pytest.mark.parametrize(
    ("wanted", "holds"),
    [
        ("restart=yes", lambda t, j: len(j.attempts) > 1),
        ("restart=no&condition=unsteered", lambda t, j: len(j.attempts) == 1 and t.condition == "unsteered"),
        ("min=40&max=60", lambda t, j: 40 <= j.attempts[0].score <= 60),
        ("change=better", lambda t, j: j.attempts[-1].score > j.attempts[0].score),
        ("q=Fireplace", lambda t, j: "fireplace" in f"{t.prompt} {t.label} {t.text}".lower()),
        (f"id={HOSTILE_ID}", lambda t, j: t.id == HOSTILE_ID),
    ],
)
def test_filters_show_what_fits_and_nothing_else(page, wanted, holds):
    file, pairs = page
    expected = [trial for trial, judgement in pairs if holds(trial, judgement)]
    document = shown(file, f"#{wanted}")
    assert 0 < len(expected) < N and count(document).startswith(f"{len(expected)} of {N} responses")
    listed = [unescape(found) for found in re.findall(r'<article id="([^"]+)"', document)]
    assert listed == [trial.id for trial in expected[: len(listed)]] and listed


def test_how_a_response_was_made_is_with_it(page):
    file, pairs = page
    (text,) = texts(shown(file, f"#id={HOSTILE_ID}"))
    assert f"python -m esr.pipeline.run steer --model {MODEL}" in text and str(pairs[0][0].seed) in text
    assert "before «a word» after" in text
