"""`--shard` and `--merge` of a stage, and the scripts in docs/ that use them."""

import ast
import os
import re
import shutil
import subprocess
import sys

import nbformat
import pytest

from esr.config.params import STAGES
from esr.config.schema import load_yaml
from esr.config.stages import stage_parameters
from esr.paths import ROOT
from esr.pipeline.run import notebook_path, share
from esr.pipeline.sizes import TRIALS

CELL = """
from esr.engine.workers import Workers

def square(chunk, report):
    return str(chunk["n"] ** 2).encode()

files = Workers(0).map(square, [{"n": n} for n in range(5)], what="steer", items=[1] * 5, item="squares")
[int(file.read_bytes()) for file in files]
"""


@pytest.fixture
def root(tmp_path):
    """A repository whose notebook of `steer` squares five numbers, a chunk each."""
    for name in ("params.yaml", "data/models.yaml", "data/study.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "notebooks").mkdir()
    declared = "\n".join(f"{name} = {value!r}" for name, value in stage_parameters("steer").items())
    parameters = nbformat.v4.new_code_cell(declared, metadata={"tags": ["parameters"]})
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    cells = [parameters, nbformat.v4.new_code_cell(CELL)]
    nbformat.write(
        nbformat.v4.new_notebook(cells=cells, metadata=kernel), tmp_path / "notebooks" / notebook_path("steer").name
    )
    return tmp_path


def start(root, command, **environment):
    environment = os.environ | {"ESR_ROOT": str(root), "PYTHONPATH": str(ROOT)} | environment
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=180)


def run(root, *options):
    return start(root, [sys.executable, "-m", "esr.pipeline.run", "steer", "--model", "smollm2-135m", *options])


def executed(root):
    return list((root / "notebooks" / "executed").glob("*"))


def test_shards_of_a_stage_end_with_a_sentence_and_the_last_one_writes_its_outputs(root):
    first = run(root, "--shard", "1/2")
    assert first.returncode == 0 and not executed(root)
    assert first.stdout == (
        "steer: shard 1/2 is finished; 2 of 5 chunks are left to other shards. Run the stage again when they have "
        "finished.\n"
    )
    script = ["bash", str(ROOT / "docs" / "slurm.sh"), "steer", "smollm2-135m"]
    task = {"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_COUNT": "2", "SLURM_SUBMIT_DIR": str(ROOT)}
    last = start(root, script, **task, PYTHON=sys.executable, ESR_CACHE=str(root / ".cache" / "esr"))
    assert last.returncode == 0, last.stderr
    [notebook] = executed(root)
    assert "[0, 1, 4, 9, 16]" in notebook.read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("steer", "3/2", None, None), "The shard is '3/2': write its number and their count"),
        (("steer", "1/2", None, 2), "--shard computes and --merge puts together: give one of them."),
        (("steer", None, 5.0, None), "--wait is for shards: add --shard, or leave it out."),
        (("steer", None, None, 0), "--merge is 0: give the number of shards, 1 or more."),
        (("judge", "1/2", None, None), "Hosts cannot share the stage 'judge'; allowed are corpus, "),
    ],
)
def test_what_cannot_be_shared_is_refused(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        share(*options)


def test_the_stages_that_hosts_share_are_those_whose_notebooks_run_chunks():
    chunked = {"esr.engine.workers": "Workers", "esr.experiments.run": "generate"}
    found = []
    for stage in STAGES:
        cells = nbformat.read(notebook_path(stage), as_version=4).cells
        code = "\n".join(c.source for c in cells if c.cell_type == "code")
        code = "\n".join(line for line in code.splitlines() if not line.startswith("%"))
        imports = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom)]
        if any(chunked.get(node.module) in [name.name for name in node.names] for node in imports):
            found.append(stage)
    assert found == list(TRIALS)


def test_the_docs_name_the_stages_and_scripts_that_there_are():
    text = (ROOT / "docs" / "hosts.md").read_text()
    assert re.findall(r"`(\w+)`", text.split("generate or train")[0]) == list(TRIALS)
    assert all((ROOT / name).exists() for name in re.findall(r"`(docs/[\w.]+)`", text))
    assert "esr.pipeline.run" in load_yaml(ROOT / "docs" / "skypilot.yaml")["run"]
