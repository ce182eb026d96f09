"""The playground in headless Chromium, served as by `make play`: what a user who wants no code sees and presses.

ESR_SCREENSHOTS=<folder> keeps pictures of it: light and dark, on a screen and on a phone.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests.playground.repository import environment, make_study
from tests.playground.study import LABELS

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, as in apt-get install chromium")
PATIENCE = int(os.environ.get("ESR_PATIENCE_S", "90"))  # for what a slow machine takes long to do, seconds
ICONS = re.compile("https://[^/]+/.*fontawesome")  # that Voila's page links; the playground uses none
DARK = "share/jupyter/lab/themes/@jupyterlab/theme-dark-extension/index.css"


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Where Voila serves the notebook of a tiny study."""
    root = make_study(tmp_path_factory.mktemp("browser"))
    notebook = root / "notebooks" / "playground.ipynb"
    notebook.write_text(notebook.read_text().replace("smollm2-135m", "tiny"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "voila", str(notebook), "--no-browser", f"--port={port}"]
    with (root / "server.log").open("w") as log:
        server = subprocess.Popen(command, env=environment(root), cwd=root, stdout=log, stderr=log)
        try:
            wait_for(f"http://127.0.0.1:{port}/voila/static/", server, root / "server.log")
            yield f"http://127.0.0.1:{port}/"
        finally:
            server.terminate()
            server.wait(30)


def wait_for(url, server, log):
    """Until the server replies, with whatever."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and server.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=5)
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.2)
        else:
            return
    pytest.fail(f"Voila does not serve: {log.read_text()[-3000:]}")


@pytest.fixture
def page(address):
    """The opened playground with the model loaded, and what went wrong on the way."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1400, "height": 1100})
        page.set_default_timeout(1000 * PATIENCE)
        page.problems = []
        page.on("console", lambda m: page.problems.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        page.route(ICONS, lambda route: route.fulfill(body="", content_type="text/css"))
        page.on("request", lambda r: None if elsewhere(r.url, address) is None else page.problems.append(r.url))
        page.goto(address, timeout=1000 * PATIENCE)
        page.get_by_text("is loaded. Press Run.").wait_for()
        yield page
        browser.close()


def elsewhere(url, address):
    """The address of a request to another host; None for one to this server."""
    here = (address, address.replace("http", "ws"), "data:", "blob:")
    return None if url.startswith(here) or ICONS.match(url) else url


def press(page, name):
    page.get_by_role("button", name=name, exact=True).click()


def test_a_response_is_steered_stopped_and_made_again(page):
    page.locator(".esr-search input").fill("ships")
    page.locator(".esr-contexts mark").get_by_text(LABELS[8]).wait_for()
    before = float(page.locator(".esr-boost-value input").input_value())
    page.locator(".noUi-handle").press("ArrowRight")
    page.locator(".noUi-handle").press("ArrowRight")
    page.wait_for_function("before => +document.querySelector('.esr-boost-value input').value > before", arg=before)
    page.locator(".esr-prompt textarea").fill("Describe <b>a boat</b>.")
    length = page.locator(".esr-length input")
    length.fill("2000")
    length.press("Enter")
    press(page, "Run")
    page.locator(".esr-edited h3").get_by_text(f"Steered with “{LABELS[8]}”").wait_for()
    press(page, "Stop")
    page.get_by_text("Stopped: ").wait_for()
    text = page.locator(".esr-edited .esr-text").inner_text()
    count = int(page.locator(".esr-edited .esr-hint").inner_text().split()[0])
    assert text.strip() and 0 < count < 2000
    assert float(page.locator(".esr-boost-value input").input_value()) == pytest.approx(before + 0.02)
    code = page.locator("pre.esr-code").inner_text()
    assert "prompt='Describe <b>a boat</b>.'" in code and "latent=8" in code
    page.get_by_text(re.compile(f"latent 8 “{LABELS[8]}”")).first.wait_for()
    take_pictures(page)
    length.fill("12")
    length.press("Enter")
    press(page, "Run")
    page.get_by_text("Done: 24 tokens").wait_for()
    press(page, "Run it in the pipeline and compare")
    page.get_by_text("The pipeline made the same tokens.").wait_for()
    assert page.problems == []


def take_pictures(page):
    """Light, then dark by the variables of JupyterLab's theme; on a screen and on a phone."""
    if not (folder := os.environ.get("ESR_SCREENSHOTS")):
        return
    for theme in ("light", "dark"):
        if theme == "dark":
            page.add_style_tag(content=(Path(sys.prefix) / DARK).read_text())
        for width in (1400, 390):
            page.set_viewport_size({"width": width, "height": 1100})
            page.screenshot(path=Path(folder) / f"playground-{theme}-{width}.png", full_page=True)
    page.set_viewport_size({"width": 1400, "height": 1100})
