"""Kernels that start at once: the libraries are imported a single time, and every stage's kernel is a fork of that.

    python -m esr.kernels dvc repro

A kernel imports torch, transformers and pandas for longer than many a stage computes (13 s on a slow core, thirty times
a run). While the command runs, a server process holds them, and the notebooks that run under it (esr.notebooks) get
forks of it as kernels. Only libraries are imported before a fork, never this project: a kernel always runs the code as
it is on disk. Without the server, as under plain `dvc repro`, kernels start as they always do and compute the same.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import shutil
import signal
import socket
import sys
import threading
import traceback
from contextlib import suppress
from tempfile import mkdtemp

ADDRESS = "ESR_KERNELS"  # environment variable: the server's socket
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
POLL = 1.0  # seconds between two looks at whether the parent is still there


def kernel_manager():
    """The class that starts a notebook's kernel: as a fork of the server where one runs, else as Jupyter does."""
    from jupyter_client import AsyncKernelManager

    class StageKernelManager(AsyncKernelManager):
        shutdown_wait_time = SHUTDOWN

    if ADDRESS not in os.environ:
        return StageKernelManager

    class ForkedKernelManager(StageKernelManager):
        def format_kernel_cmd(self, extra_arguments=None):
            command = super().format_kernel_cmd(extra_arguments)
            return [sys.executable, "-m", "esr.kernels", "--fork", *command[command.index("ipykernel_launcher") + 1 :]]

    return ForkedKernelManager


def serve(command: list[str]) -> None:
    """Become `command`, with a server beside it that ends when it does. Does not return."""
    if sys.platform == "linux":  # elsewhere libraries may break in a fork
        os.environ[ADDRESS] = _start_server()
    os.execvp(command[0], command)


def _start_server() -> str:
    """A server that lives as long as this process; returns the address of its socket."""
    folder = mkdtemp()
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
    return f"{folder}/kernels"


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
                _become_kernel(connection)
            connection.close()


def _become_kernel(connection: socket.socket) -> None:
    """Be the kernel of a launcher: with its arguments, folder, environment, path and output. Never returns."""
    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _, streams, *_ = socket.recv_fds(connection, 1, 3)
        for target, stream in enumerate(streams):
            os.dup2(stream, target)
            os.close(stream)
        lines = connection.makefile()
        job = json.loads(lines.readline())
        connection.sendall(f"{os.getpid()}\n".encode())
        threading.Thread(target=_leave_with, args=(lines,), daemon=True).start()
        os.chdir(job["folder"])
        os.environ.clear()
        os.environ.update(job["environment"])
        sys.argv, sys.path[:] = ["ipykernel_launcher", *job["arguments"]], job["path"]
        for name in [name for name in sys.modules if name.partition(".")[0] == "esr"]:
            del sys.modules[name]  # the launcher's folder may hold another copy
        runpy.run_module("ipykernel_launcher", run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(OSError):
            connection.sendall(f"{code}\n".encode())
        os._exit(code)


def _leave_with(lines) -> None:
    """The launcher never writes again: what ends its line is its end."""
    lines.readline()
    os._exit(1)


def launch(arguments: list[str]) -> int:
    """Ask the server for a kernel and stand for it: pass signals on, end when it ends. Returns its exit status.

    Without a server that answers, this process becomes the kernel.
    """
    parent = os.getppid()
    job = {"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ), "path": sys.path}
    with socket.socket(socket.AF_UNIX) as connection:
        answers = iter(())
        with suppress(OSError):
            connection.connect(os.environ[ADDRESS])
            socket.send_fds(connection, [b"\0"], [0, 1, 2])
            connection.sendall(json.dumps(job).encode() + b"\n")
            answers = _lines(connection, parent)
        if not (kernel := int(next(answers, "0"))):
            os.execv(sys.executable, [sys.executable, "-m", "ipykernel_launcher", *arguments])
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _frame: os.kill(kernel, number))
        return int(next(answers, "1"))  # it was killed and said nothing


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
        raise SystemExit("error: give the command to run, as in python -m esr.kernels dvc repro")
    serve(arguments)


if __name__ == "__main__":
    main()
