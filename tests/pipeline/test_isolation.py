"""Runs keep to themselves: two at once, a foreign kernelspec, a long temporary folder, a quota of cores."""

import json
import os
import subprocess
import sys
import time

import nbformat
import pytest

from esr.engine import workers
from esr.paths import ROOT

EXECUTE = """
import sys
from pathlib import Path
from esr.pipeline import run
source = Path(sys.argv[1])
run.ROOT = source.parent
run.execute(source, {}, source.parent / sys.argv[2])
"""
WAIT = """
import sys, time
from pathlib import Path
mark = Path("{mark}")
(mark / str(time.monotonic_ns())).touch()
while len(list(mark.iterdir())) < 2:
    time.sleep(0.05)
print(sys.executable)
"""


def write(path, source):
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    cells = [nbformat.v4.new_code_cell(source)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), path)
    return path


def start(notebook, executed, *prefix, **variables):
    command = [sys.executable, *prefix, "-c", EXECUTE, str(notebook), executed]
    environment = os.environ | {"ESR_CACHE": str(notebook.parent / "cache")} | variables
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def printed(notebook, executed):
    return nbformat.read(notebook.parent / executed, as_version=4).cells[-1].outputs[0]["text"].strip()


def test_two_runs_of_one_notebook_at_once_do_not_meet(tmp_path):
    (tmp_path / "mark").mkdir()
    notebook = write(tmp_path / "01_wait.ipynb", WAIT.format(mark=tmp_path / "mark"))
    both = [start(notebook, "executed.ipynb") for _ in range(2)]
    for process in both:
        assert process.wait(120) == 0, process.stdout.read()
    assert list((tmp_path / "cache" / "running").iterdir()) == []


@pytest.fixture
def foreign(tmp_path):
    """A folder of kernelspecs whose python3 is no Python."""
    spec = {"argv": ["/bin/false", "{connection_file}"], "display_name": "Python 3", "language": "python"}
    folder = tmp_path / "share" / "kernels" / "python3"
    folder.mkdir(parents=True)
    (folder / "kernel.json").write_text(json.dumps(spec))
    return str(tmp_path / "share")


def test_the_kernel_is_this_environments_python(tmp_path, foreign):
    notebook = write(tmp_path / "01_where.ipynb", "import sys\nprint(sys.executable)")
    process = start(notebook, "executed.ipynb", JUPYTER_PATH=foreign)
    assert process.wait(120) == 0, process.stdout.read()
    assert printed(notebook, "executed.ipynb") == sys.executable


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux only")
def test_a_long_temporary_folder_is_no_obstacle(tmp_path, foreign):
    temporary = tmp_path / ("long-" * 30)
    temporary.mkdir()
    notebook = write(tmp_path / "01_fork.ipynb", "import sys\nprint('statsmodels' in sys.modules)")
    process = start(notebook, "executed.ipynb", "-m", "esr.pipeline.kernels", sys.executable, TMPDIR=str(temporary))
    assert process.wait(300) == 0, process.stdout.read()
    assert printed(notebook, "executed.ipynb") == "True"  # it was forked: the socket could be reached
    end = time.monotonic() + 60  # the server leaves with its folder soon after the command
    while list(temporary.glob("*/kernels")):
        assert time.monotonic() < end, "the server is still there"
        time.sleep(0.1)


def test_workers_are_as_many_as_the_cores_this_process_may_use(monkeypatch):
    monkeypatch.delenv("ESR_WORKERS", raising=False)
    monkeypatch.setenv("ESR_DEVICE", "cpu")
    monkeypatch.setattr("joblib.cpu_count", lambda: 3)  # joblib counts affinity and the quota of a cgroup
    assert workers.default_count() == 3
