"""Kernels forked from a server do what kernels started by Jupyter do, and none outlives what it was started for."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest

from esr.paths import ROOT

SOURCES = {
    "where": "import json, os, sys\n"
    "own = [name for name in sys.modules if name.startswith('esr.')]\n"
    "print(json.dumps({'fork': 'torch' in sys.modules, 'folder': os.getcwd(), 'path': sys.path, 'own': own,"
    " 'MINE': os.environ.get('MINE'), 'backend': os.environ['MPLBACKEND']}))",
    "drawn": "%matplotlib inline\nimport numpy, torch\nfrom matplotlib.figure import Figure\n"
    "print(numpy.random.default_rng(1).random(), torch.manual_seed(1).initial_seed(), torch.rand(2).tolist())\n"
    "figure = Figure(figsize=(2, 1))\nfigure.subplots().plot([1, 2])\nfigure",
    "table": "import pandas\npandas.DataFrame([range(30)] * 90, columns=[f'a long name {i}' for i in range(30)])",
    "workers": "from multiprocessing import get_context\n"
    "with get_context('spawn').Pool(2) as pool:\n    print(pool.map(abs, [-1, -2]))",
    "elsewhere": "import esr, esr.paths\nprint(esr.copy, esr.paths.__file__)",
    "error": "1 / 0",
    "killed": "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
}


@pytest.fixture(scope="module")
def notebooks(tmp_path_factory):
    """A notebook of one cell for each source."""
    folder = tmp_path_factory.mktemp("kernels")
    for name, source in SOURCES.items():
        write(folder / f"{name}.ipynb", source)
    shutil.copytree(ROOT / "esr", folder / "esr")  # as `dvc exp run --temp` copies it
    (folder / "esr" / "__init__.py").write_text("copy = True")
    return folder


def write(file: Path, source: str) -> None:
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)], metadata=kernel), file)


RUN = """
import json, sys
from pathlib import Path
from esr import notebooks
import nbformat
outputs, root = {}, notebooks.ROOT
for file in sorted(Path(sys.argv[1]).glob("*.ipynb")):
    try:
        notebooks.ROOT = file.parent if file.stem == "elsewhere" else root
        notebooks.EXECUTED = notebooks.ROOT / ".cache" / "test_kernels"
        executed = notebooks.execute(file, {}, notebooks.EXECUTED / file.name)
        outputs[file.stem] = nbformat.read(executed, as_version=4).cells[-1].outputs
    except BaseException as error:
        outputs[file.stem] = f"{type(error).__name__}: {error}"
print(json.dumps(outputs))
"""


@pytest.fixture(scope="module")
def outputs(notebooks):
    """What the notebooks print, under the server ("forked") and without it ("started")."""
    found = {}
    for name, server in (("forked", ["-m", "esr.kernels", sys.executable]), ("started", [])):
        command = [sys.executable, *server, "-c", RUN, str(notebooks)]
        done = subprocess.run(
            command, cwd=ROOT, env=os.environ | {"MINE": "here"}, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        found[name] = json.loads(done.stdout)
    return found


def test_a_forked_kernel_has_the_libraries_and_nothing_of_this_project(outputs):
    forked, started = (json.loads(outputs[name]["where"][0]["text"]) for name in ("forked", "started"))
    assert forked.pop("fork") and not started.pop("fork")
    assert forked["own"] == []  # its modules are read when they are imported, as they are then
    assert forked["MINE"] == "here" and forked["folder"] == str(ROOT)
    assert forked == started


def test_a_forked_kernel_reads_the_code_of_the_folder_it_runs_in(outputs, notebooks):
    assert outputs["forked"]["elsewhere"][0]["text"] == f"True {notebooks / 'esr' / 'paths.py'}\n"


@pytest.mark.parametrize("name", ["drawn", "table", "workers", "elsewhere"])
def test_a_forked_kernel_prints_and_draws_the_same(outputs, name):
    assert outputs["forked"][name] == outputs["started"][name]
    assert outputs["forked"][name]


def test_an_error_and_a_death_of_a_kernel_are_told_as_ever(outputs):
    assert "ZeroDivisionError: division by zero" in outputs["forked"]["error"]
    assert "DeadKernelError" in outputs["forked"]["killed"]
    for name in ("error", "killed"):
        assert outputs["forked"][name].splitlines()[0] == outputs["started"][name].splitlines()[0]


def test_where_the_server_is_gone_kernels_start_as_ever(notebooks, outputs, tmp_path):
    shutil.copy(notebooks / "drawn.ipynb", tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(tmp_path)],
        cwd=ROOT, env=os.environ | {"ESR_KERNELS": str(tmp_path / "gone")}, capture_output=True, text=True,
    )  # fmt: skip
    assert json.loads(done.stdout)["drawn"] == outputs["started"]["drawn"]


def test_the_command_gets_its_arguments_and_its_status_is_the_result():
    done = subprocess.run(
        [sys.executable, "-m", "esr.kernels", "sh", "-c", 'echo "$0 $ESR_KERNELS"; exit 7', "a b"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    said, address = done.stdout.strip().rsplit(" ", 1)
    assert (done.returncode, said) == (7, "a b")
    wait_until(lambda: not Path(address).parent.exists())  # the server left with it


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_is_left_of_a_run_that_is_killed(tmp_path, number):
    mark = tmp_path / "kernel"
    write(tmp_path / "n.ipynb", f"import os, time\nopen('{mark}', 'w').write(str(os.getpid()))\ntime.sleep(600)")
    run = subprocess.Popen([sys.executable, "-m", "esr.kernels", sys.executable, "-c", RUN, str(tmp_path)], cwd=ROOT)
    wait_until(lambda: mark.exists() and mark.read_text(), 120)
    kernel = psutil.Process(int(mark.read_text()))
    server = kernel.parent()
    family = [kernel, server, *psutil.Process(run.pid).children(recursive=True)]
    run.send_signal(number)
    run.wait(60)
    wait_until(lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in family))


def test_without_a_command_it_says_how():
    done = subprocess.run([sys.executable, "-m", "esr.kernels"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "python -m esr.kernels dvc repro" in done.stderr


def wait_until(true, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.2)
