"""What a user reads when a stage or the pipeline cannot run: a sentence, and a traceback on request."""

import os
import shutil
import subprocess
import sys

import nbformat
import pytest

from esr.paths import ROOT

CELL = """
from esr.config.schema import ConfigError
from esr.models.fetch import FetchError
raise {error}
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A repository of params.yaml, registry and data/study.yaml, without notebooks."""
    root = tmp_path_factory.mktemp("repository")
    for name in ("params.yaml", "data/models.yaml", "data/study.yaml"):
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    (root / "notebooks").mkdir()
    return root


def notebook(root, error):
    parameters = nbformat.v4.new_code_cell('model: str = ""', metadata={"tags": ["parameters"]})
    cells = [parameters, nbformat.v4.new_code_cell(CELL.format(error=error))]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), root / "notebooks" / "01_fetch.ipynb")


def run(root, *arguments):
    environment = os.environ | {"ESR_ROOT": str(root), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "esr.pipeline.run", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["stear"], "error: Unknown stage 'stear' (did you mean 'steer'?); allowed are fetch, "),
        (
            ["steer", "--model", "smollm"],
            "error: Unknown model 'smollm' (did you mean 'smollm2-135m'?): data/models.yaml has",
        ),
        (["power"], "error: notebooks holds 0 notebooks named NN_power.ipynb; one is expected."),
    ],
)
def test_a_mistake_is_one_sentence_without_traceback(root, arguments, message):
    done = run(root, *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(message) and len(done.stderr.splitlines()) == 1


def test_the_traceback_is_shown_on_request(root):
    done = run(root, "stear", "--traceback")
    assert done.returncode == 1 and done.stderr.startswith("Traceback (most recent call last):")
    assert "ConfigError: Unknown stage 'stear'" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "error", ["ConfigError('Layer 40 is too high: choose 0 to 29.')", "FetchError('It is gated: log in.')"]
)  # fmt: skip
def test_a_refusal_within_a_notebook_is_its_bare_sentence(root, error):
    notebook(root, error)
    done = run(root, "fetch", "--model", "smollm2-135m")
    begins, sentence = done.stderr.splitlines()
    assert done.returncode == 1 and begins.startswith("01_fetch: begins (")
    assert sentence == f"error: {error.split(chr(39))[1]}"


def test_a_mistake_of_the_program_within_a_notebook_keeps_its_kind_and_place(root):
    notebook(root, "KeyError('latent')")
    done = run(root, "fetch", "--model", "smollm2-135m")
    _, message, place = done.stderr.splitlines()
    assert done.returncode == 1 and message == "error: 01_fetch.ipynb failed: KeyError: 'latent'"
    path = root / place.removeprefix("The notebook so far: ")
    assert "KeyError" in nbformat.read(path, as_version=4).cells[-1].outputs[0].ename


def test_the_traceback_within_a_notebook_is_shown_on_request(root):
    notebook(root, "ConfigError('Layer 40 is too high: choose 0 to 29.')")
    done = run(root, "fetch", "--model", "smollm2-135m", "--traceback")
    assert done.returncode == 1 and "raise ConfigError(" in done.stderr
    assert done.stderr.splitlines()[-1].endswith("NotebookError: Layer 40 is too high: choose 0 to 29.")


@pytest.mark.parametrize("target", ["repro", "quick", "bench"])
def test_a_downloaded_zip_says_that_dvc_needs_git(tmp_path, target):
    shutil.copy(ROOT / "Makefile", tmp_path)
    environment = os.environ | {"GIT_CEILING_DIRECTORIES": str(tmp_path.parent)}
    done = subprocess.run(["make", target], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode != 0 and not (tmp_path / ".venv").exists(), "refused before anything is installed"
    assert "This folder is not a git repository with a commit (a downloaded zip has none)" in done.stderr
    assert "'git init && git add . && git commit -m start'" in done.stderr
