"""Kernels forked from a server do what kernels started by Jupyter do, and none outlives what it was started for."""

import asyncio
import inspect
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
from jupyter_client import AsyncKernelManager

from esr.paths import ROOT
from esr.pipeline.kernels import kernel_manager

SOURCES = {
    "where": "import json, os, sys\n"
    "imported = [name for name in sys.modules if name.startswith('esr.')]\n"
    "print(json.dumps({'fork': 'torch' in sys.modules, 'folder': os.getcwd(), 'path': sys.path, 'imported': imported,"
    " 'MINE': os.environ.get('MINE'), 'backend': os.environ['MPLBACKEND']}))",
    "drawn": "%matplotlib inline\nimport numpy, torch\nfrom matplotlib.figure import Figure\n"
    "print(numpy.random.default_rng(1).random(), torch.manual_seed(1).initial_seed(), torch.rand(2).tolist())\n"
    "figure = Figure(figsize=(2, 1))\nfigure.subplots().plot([1, 2])\nfigure",
    "table": "import pandas\npandas.DataFrame([range(30)] * 90, columns=[f'a long name {i}' for i in range(30)])",
    "workers": "from multiprocessing import get_context\n"
    "with get_context('spawn').Pool(2) as pool:\n    print(pool.map(abs, [-1, -2]))",
    "chunks": "import sys\nsys.path.insert(0, {folder!r})\nimport chunks\nchunks.run(chunks.where)",
    "elsewhere": "import esr, esr.paths\nprint(esr.copy, esr.paths.__file__)",
    "error": "1 / 0",
    "killed": "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
}


# What workers of this project do in a kernel: `where` tells, `sleep` stays until it is killed
CHUNKS = """
import json, os, sys, time
FORKED = "statsmodels" in sys.modules
from pathlib import Path
from esr.engine import workers

def where(chunk, report):
    import torch
    report(1, 1)
    return json.dumps([chunk["n"], FORKED, torch.get_num_threads(), os.getcwd()]).encode()

def sleep(chunk, report):
    Path(chunk["mark"]).write_text(str(os.getpid()))
    time.sleep(600)

def run(function, **chunk):
    workers.CACHE = Path(__file__).parent / str(os.getpid())
    chunks = [{"n": n} | {k: f"{v}{n}" for k, v in chunk.items()} for n in range(3)]
    os.environ["ESR_WORKERS"] = "3"
    with workers.Workers() as pool:
        files = pool.map(function, chunks, what="test", items=[20] * 3, item="responses")
    print(json.dumps([json.loads(file.read_bytes()) for file in files]))
"""


@pytest.fixture(scope="module")
def notebooks(tmp_path_factory):
    """A notebook of one cell for each source."""
    folder = tmp_path_factory.mktemp("kernels")
    (folder / "chunks.py").write_text(CHUNKS)
    for name, source in SOURCES.items():
        write(folder / f"{name}.ipynb", source.replace("{folder!r}", repr(str(folder))))
    shutil.copytree(ROOT / "esr", folder / "esr")  # as `dvc exp run --temp` copies it
    (folder / "esr" / "__init__.py").write_text("copy = True")
    return folder


def write(file: Path, source: str) -> None:
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)], metadata=kernel), file)


RUN = """
import json, sys
from pathlib import Path
from esr.pipeline import run as notebooks
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
    for name, server in (("forked", ["-m", "esr.pipeline.kernels", sys.executable]), ("started", [])):
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
    assert forked["imported"] == []  # its modules are read when they are imported, as they are then
    assert forked["MINE"] == "here" and forked["folder"] == str(ROOT)
    assert forked == started


def test_a_forked_kernels_workers_are_forks_and_compute_as_others_do(outputs):
    for name in ("forked", "started"):
        expected = [[n, name == "forked", 1, str(ROOT)] for n in range(3)]
        assert json.loads(outputs[name]["chunks"][0]["text"]) == expected


def test_a_forked_kernel_reads_the_code_of_the_folder_it_runs_in(outputs, notebooks):
    assert outputs["forked"]["elsewhere"][0]["text"] == f"True {notebooks / 'esr' / 'paths.py'}\n"


@pytest.mark.parametrize("name", ["drawn", "table", "workers", "elsewhere"])
def test_a_forked_kernel_prints_and_draws_the_same(outputs, name):
    assert outputs["forked"][name] == outputs["started"][name]
    assert outputs["forked"][name]


def test_an_error_and_a_death_of_a_kernel_are_reported_alike(outputs):
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
        [sys.executable, "-m", "esr.pipeline.kernels", "sh", "-c", 'echo "$0 $ESR_KERNELS"; exit 7', "a b"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    printed, folder = done.stdout.strip().rsplit(" ", 1)
    assert (done.returncode, printed) == (7, "a b")
    wait_until(lambda: not Path(folder).exists())  # the server left with it


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_is_left_of_a_run_that_is_killed(tmp_path, number):
    mark, marks = tmp_path / "kernel", [tmp_path / f"worker{n}" for n in range(3)]
    (tmp_path / "chunks.py").write_text(CHUNKS)
    source = f"import os, sys\nopen('{mark}', 'w').write(str(os.getpid()))\nsys.path.insert(0, '{tmp_path}')\n"
    write(tmp_path / "n.ipynb", source + f"import chunks\nchunks.run(chunks.sleep, mark='{tmp_path}/worker')")
    run = subprocess.Popen(
        [sys.executable, "-m", "esr.pipeline.kernels", sys.executable, "-c", RUN, str(tmp_path)], cwd=ROOT
    )
    wait_until(lambda: all(m.exists() and m.read_text() for m in (mark, *marks)), 120)
    kernel, *workers = (psutil.Process(int(m.read_text())) for m in (mark, *marks))
    server = kernel.parent()
    assert [w.parent() for w in workers] == [server] * 3
    family = [
        kernel,
        *workers,
        *kernel.children(recursive=True),
        server,
        *psutil.Process(run.pid).children(recursive=True),
    ]
    run.send_signal(number)
    run.wait(60)
    wait_until(lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in family))


def test_without_a_command_it_says_how():
    done = subprocess.run([sys.executable, "-m", "esr.pipeline.kernels"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "python -m esr.pipeline.kernels dvc repro" in done.stderr


def wait_until(true, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.2)


def test_a_kernel_is_not_interrupted_on_its_way_to_a_shutdown():
    """jupyter_client interrupts first (8.10, `_async_shutdown_kernel`), and an idle kernel then reports an error."""
    assert "self._async_interrupt_kernel()" in inspect.getsource(AsyncKernelManager._async_shutdown_kernel)
    manager = kernel_manager()()
    with pytest.raises(RuntimeError, match="No kernel is running"):
        asyncio.run(manager._async_interrupt_kernel())
    manager.shutting_down = True
    assert asyncio.run(manager._async_interrupt_kernel()) is None
