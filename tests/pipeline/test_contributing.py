"""The experiment that CONTRIBUTING.md adds: its blocks are applied to a copy of the repository, and the result runs."""

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import nbformat
import pytest

from esr.paths import PIPELINE, ROOT

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^( *)```(\w+)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


def blocks() -> list[tuple[str, str, str]]:
    """(file, language, content) of each fenced block on adding an experiment; a block without a file has the last's."""
    section = TEXT[TEXT.index("## Add an experiment") : TEXT.index("## Add a judge")]
    found, file, end = [], "", 0
    for fence in FENCE.finditer(section):
        named = re.findall(r"`([\w./]+\.(?:py|ipynb|yaml))`", section[end : fence.start()])
        file, end = (named or [file])[-1], fence.end()
        found.append((file, fence[2], textwrap.dedent(fence[3])))
    return found


def merge(text: str, diff: str) -> str:
    """`text` with the lines of `diff` that begin with + added between the others, which stand there once."""
    lines = diff.rstrip("\n").split("\n")
    before = "\n".join(line[1:] for line in lines if not line.startswith("+"))
    after = "\n".join(line[1:] for line in lines)
    assert text.count(f"{before}\n") + text.endswith(before) == 1, f"these lines do not stand there once:\n{before}"
    return text.replace(before, after)


def merge_notebook(path: Path, diff: str) -> None:
    notebook = nbformat.read(path, as_version=4)
    first = next(line[1:] for line in diff.split("\n") if line.startswith(" "))
    (cell,) = [cell for cell in notebook.cells if first in cell.source.split("\n")]
    cell.source = merge(cell.source, diff)
    nbformat.write(notebook, path)


def write_notebook(path: Path, percent: str) -> None:
    cells = []
    for part in re.split(r"^# %%", percent, flags=re.MULTILINE)[1:]:
        head, _, body = part.partition("\n")
        if "[markdown]" in head:
            text = "\n".join(line.removeprefix("#").removeprefix(" ") for line in body.strip().split("\n"))
            cells.append(nbformat.v4.new_markdown_cell(text))
        else:
            tags = ["parameters"] if "parameters" in head else []
            cells.append(nbformat.v4.new_code_cell(body.strip(), metadata={"tags": tags}))
    for number, cell in enumerate(cells):
        cell.id = f"cell-{number}"
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), path)


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("contribution")
    for name in ("esr", "notebooks", "data/prompts", "data/judge", "paper/numbers", "tests"):
        left_out = shutil.ignore_patterns("executed", "__pycache__", "smollm2-135m*")
        shutil.copytree(ROOT / name, folder / name, ignore=left_out)
    for name in (
        "params.yaml",
        "dvc.yaml",
        "data/experiments.yaml",
        "data/models.yaml",
        "data/study.yaml",
        "data/published.json",
        "data/rules.yaml",
        "pyproject.toml",
    ):
        shutil.copy(ROOT / name, folder / name)
    for file, language, content in blocks():
        path = folder / file
        if language == "python" and path.suffix == ".ipynb":
            write_notebook(path, content)
        elif language == "python":
            path.write_text(content)
        elif path.suffix == ".ipynb":
            merge_notebook(path, content)
        else:
            path.write_text(merge(path.read_text(), content))
    return folder


def run(copy: Path, *command: str, **variables: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1", PIPELINE: "test"} | variables
    return subprocess.run([sys.executable, *command], cwd=copy, env=environment, capture_output=True, text=True)


def test_the_experiment_runs_to_its_numbers_figure_and_verdict(copy, tmp_path):
    done = run(
        copy, str(copy / "tests/pipeline/replica.py"), str(copy),
        ESR_ROOT=str(tmp_path), ESR_CACHE=str(tmp_path / ".cache"), ESR_WORKERS="0", HF_HUB_OFFLINE="1",
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    numbers = json.loads((tmp_path / "paper/numbers/echo.json").read_text())
    assert set(numbers) == {"tiny", "tiny-selfcorrect", "tiny-concepts"} and set(numbers["tiny"]) == {
        "unsteered",
        "steered",
    }
    (row,) = [
        row for row in json.loads((tmp_path / "paper/numbers/claims.json").read_text()) if row["experiment"] == "14"
    ]
    assert row["measured"] == numbers["tiny"]["steered"]["echo_rate"] and row["verdict"] != "not measured"
    assert "</svg>" in (tmp_path / "paper/figures/echo.svg").read_text()


def test_the_tests_of_stages_notebooks_and_claims_pass(copy):
    reporting = [f"tests/reporting/test_{name}.py" for name in ("claims", "rules")]
    tests = ["tests/test_dag.py", "tests/pipeline/test_notebooks.py", *reporting]
    done = run(copy, "-m", "pytest", "-q", *tests, "-p", "no:cacheprovider", ESR_ROOT=str(copy))
    assert done.returncode == 0, done.stdout[-3000:]
