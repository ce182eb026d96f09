"""Processes that start at once: the libraries are imported a single time, and kernels and workers are forks of that.

    python -m esr.pipeline.kernels dvc repro

A kernel imports torch, transformers and pandas for longer than many a stage computes (13 s on a slow core, thirty times
a run), its workers (esr.engine.workers) again. While the command runs, a server process holds them, and the notebooks
that run under it (esr.pipeline.run) get forks of it. Only libraries are imported before a fork, never this project: a
fork always runs the code as it is on disk. Without the server, as under plain `dvc repro`, processes start as they
always do and compute the same.
"""

from __future__ import annotations

import fcntl
import gc
import importlib
import json
import os
import runpy
import shlex
import shutil
import signal
import socket
import sys
import threading
import traceback
import types
from contextlib import suppress
from pathlib import Path
from tempfile import mkdtemp

from esr.engine.processes import SERVER, forking_python

LIBRARIES = (
    "ipykernel.kernelapp",
    "torch",
    "transformers.models.llama.modeling_llama",
    "pandas",
    "scipy.stats",
    "seaborn",
    "statsmodels.api",
    "peft",
    "sae_lens",
)
# Seconds until a kernel whose notebook is done is killed, terminated halfway. When told to end it first waits for its
# children, and of those multiprocessing's resource tracker lives as long as the kernel and hears no signal.
SHUTDOWN = 1.0
MOST = 253  # open files that Linux passes on at once
HIGH = 512  # file descriptors from here on are out of the way of those that a process expects
POLL = 1.0  # seconds between two looks at whether the parent is still there


def kernel_manager():
    """The class that starts a notebook's kernel: as a fork of the server where one runs, else as Jupyter does."""
    from jupyter_client import AsyncKernelManager

    class StageKernelManager(AsyncKernelManager):
        shutdown_wait_time = SHUTDOWN

    class ForkedKernelManager(StageKernelManager):
        def format_kernel_cmd(self, extra_arguments=None):
            return [forking_python(), *super().format_kernel_cmd(extra_arguments)[1:]]

    return ForkedKernelManager if forking_python() else StageKernelManager


def serve(command: list[str]) -> None:
    """Become `command`, with a server beside it that ends when it does. Does not return."""
    if sys.platform == "linux":  # elsewhere libraries may break in a fork
        os.environ[SERVER] = _start_server()
    os.execvp(command[0], command)


def _start_server() -> str:
    """A server that lives as long as this process; returns its folder."""
    folder = mkdtemp()
    python = Path(folder, "python")
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m esr.pipeline.kernels --fork "$@"\n')
    python.chmod(0o700)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(f"{folder}/kernels")
    listening.listen()
    parent = os.getpid()
    if os.fork() == 0:
        os.setsid()  # Ctrl-C is for the command
        try:
            _fork_on_demand(listening, parent)
        except BaseException:
            traceback.print_exc()
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os._exit(0)
    return folder


def _fork_on_demand(listening: socket.socket, parent: int) -> None:
    """Import the libraries, then answer each connection with a fork, until the parent is gone."""
    # What ipykernel sets or reads when a kernel starts must be there when it is imported
    os.environ |= {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "JPY_PARENT_PID": str(os.getpid())}
    for name in LIBRARIES:
        importlib.import_module(name)
    sys.modules["pandas"].set_option("display.max_columns", 20)  # as in a kernel; outside one it expects a terminal
    gc.freeze()  # forks share these pages: no collection shall write to them
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks
    listening.settimeout(POLL)
    while os.getppid() == parent:
        with suppress(TimeoutError):
            connection, _ = listening.accept()
            if os.fork() == 0:
                listening.close()
                _become_python(connection)
            connection.close()


def _become_python(connection: socket.socket) -> None:
    """Be what a launcher was started as: its arguments, folder, environment, path and open files. Never returns."""
    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        connection = socket.socket(fileno=_raised(connection.detach()))
        _, files, *_ = socket.recv_fds(connection, 1, MOST)
        files = [_raised(file) for file in files]
        lines = connection.makefile()
        job = json.loads(lines.readline())
        for target, file in zip(job["files"], files, strict=True):
            os.dup2(file, target)
            os.close(file)
        connection.sendall(f"{os.getpid()}\n".encode())
        threading.Thread(target=_leave_with, args=(lines,), daemon=True).start()
        os.chdir(job["folder"])
        os.environ.clear()
        os.environ.update(job["environment"])
        sys.path[:] = job["path"]
        for name in [name for name in sys.modules if name.partition(".")[0] == "esr"]:
            del sys.modules[name]  # the launcher's folder may hold another copy
        _run(job["arguments"])
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(OSError):
            connection.sendall(f"{code}\n".encode())
        os._exit(code)


def _raised(file: int) -> int:
    """The same open file under a number from HIGH on."""
    raised = fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, HIGH)
    os.close(file)
    return raised


def _run(arguments: list[str]) -> None:
    """What `python [options] -m module ...` or `python [options] -c code ...` would; options are for an interpreter."""
    while arguments[0] not in ("-m", "-c"):
        del arguments[0]
    option, what, *rest = arguments
    sys.argv[:] = [what if option == "-m" else option, *rest]
    if option == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        sys.modules["__main__"] = types.ModuleType("__main__")
        exec(what, vars(sys.modules["__main__"]))


def _leave_with(lines) -> None:
    """The launcher never writes again: what ends its line is its end."""
    lines.readline()
    os._exit(1)


def launch(arguments: list[str]) -> int:
    """Ask the server for a fork and stand for it: pass signals on, end when it ends. Returns its exit status.

    arguments: as for Python. Without a server that answers, this process becomes what was asked for.
    """
    parent = os.getppid()
    files = [file for file in map(int, os.listdir("/proc/self/fd")) if _is_open(file)]
    job = {"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ), "path": sys.path}
    with socket.socket(socket.AF_UNIX) as connection:
        responses = iter(())
        with suppress(OSError):
            connection.connect(f"{os.environ[SERVER]}/kernels")
            socket.send_fds(connection, [b"\0"], files)
            connection.sendall(json.dumps(job | {"files": files}).encode() + b"\n")
            responses = _lines(connection, parent)
        if not (fork := int(next(responses, "0"))):
            os.execv(sys.executable, [sys.executable, *arguments])
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _frame: os.kill(fork, number))
        return int(next(responses, "1"))  # it was killed and said nothing


def _is_open(file: int) -> bool:
    try:
        os.fstat(file)
    except OSError:
        return False  # it was the listing's own
    return True


def _lines(connection: socket.socket, parent: int):
    """Lines as they come, while the other end is open and this process's parent is there."""
    connection.settimeout(POLL)
    text = b""
    while os.getppid() == parent:
        with suppress(TimeoutError):
            piece = connection.recv(64)
            text += piece
            while b"\n" in text:
                line, _, text = text.partition(b"\n")
                yield line.decode()
            if not piece:
                return


def main() -> None:
    arguments = sys.argv[1:]
    if arguments[:1] == ["--fork"]:
        sys.exit(launch(arguments[1:]))
    if not arguments:
        raise SystemExit("error: give the command to run, as in python -m esr.pipeline.kernels dvc repro")
    serve(arguments)


if __name__ == "__main__":
    main()
