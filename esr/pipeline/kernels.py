"""Kernels and workers that start at once: forks of one process that has imported the libraries.

    python -m esr.pipeline.kernels dvc repro

Optional: plain `dvc repro` computes the same and starts every process afresh. Importing torch, transformers and pandas
takes longer than many stages compute (4 s on a Zen 4 core, 13 s on a Zen 3 core, once for each kernel and its workers).
`make quick` took 177 s with this server and 303 s without (two Zen 4 cores, 2026-11-28). While the command runs, a
server process holds the libraries, and esr.pipeline.run and esr.engine.workers start forks of it. Only libraries are
imported before a fork, never this project: a fork always runs the code as it is on disk. Linux only; elsewhere the
command runs without a server.
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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
# Seconds until a kernel whose notebook is done is killed, terminated halfway. It waits for its children before it ends,
# and one of them, multiprocessing's resource tracker, lives as long as the kernel and ignores signals.
SHUTDOWN_S = 1.0
MAX_FILES = 253  # open files that Linux passes on at once
FREE_FROM = 512  # file descriptors from here on collide with none that a process expects
POLL_S = 1.0  # between two checks that the parent is still there


def kernel_manager():
    """The class that starts a notebook's kernel: a fork of the server where one runs, else a new process."""
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpec

    class StageKernelManager(AsyncKernelManager):
        shutdown_wait_time = SHUTDOWN_S
        transport_encryption = "auto"  # without, ipykernel warns at every start

        @property
        def kernel_spec(self):
            """This environment's Python, whatever kernelspecs JUPYTER_PATH or the user's folders hold."""
            argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
            curve = {"supported_encryption": "curve"}
            return KernelSpec(argv=argv, display_name="Python 3", language="python", metadata=curve)

        async def _async_interrupt_kernel(self) -> None:
            """Not before a shutdown, where jupyter_client interrupts first: an idle kernel would report an error."""
            if not self.shutting_down:
                await super()._async_interrupt_kernel()

    class ForkedKernelManager(StageKernelManager):
        def format_kernel_cmd(self, extra_arguments=None):
            return [forking_python(), *super().format_kernel_cmd(extra_arguments)[1:]]

    return ForkedKernelManager if forking_python() else StageKernelManager


def serve(command: list[str]) -> None:
    """Replace this process by `command`, with a server beside it that ends when it does. Does not return."""
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
    with _address(folder) as address:
        listening.bind(address)
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


@contextmanager
def _address(folder: str) -> Iterator[str]:
    """The server's socket in `folder`, by a path that stays under the limit of 107 bytes however long TMPDIR is."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}/kernels"
    finally:
        os.close(descriptor)


def _fork_on_demand(listening: socket.socket, parent: int) -> None:
    """Import the libraries, then answer each connection with a fork, until the parent is gone."""
    # What ipykernel sets or reads when a kernel starts must be there when it is imported
    os.environ |= {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "JPY_PARENT_PID": str(os.getpid())}
    for name in LIBRARIES:
        importlib.import_module(name)
    sys.modules["pandas"].set_option("display.max_columns", 20)  # as in a kernel; outside one it expects a terminal
    gc.freeze()  # forks share these pages: no collection shall write to them
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no process waits for the forks
    listening.settimeout(POLL_S)
    while os.getppid() == parent:
        with suppress(TimeoutError):
            connection, _ = listening.accept()
            if os.fork() == 0:
                listening.close()
                _become_python(connection)
            connection.close()


def _become_python(connection: socket.socket) -> None:
    """Take over a launcher's arguments, folder, environment, path and open files. Never returns."""
    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        connection = socket.socket(fileno=_raised(connection.detach()))
        _, files, *_ = socket.recv_fds(connection, 1, MAX_FILES)
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
    """The same open file under a number from FREE_FROM on."""
    raised = fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, FREE_FROM)
    os.close(file)
    return raised


def _run(arguments: list[str]) -> None:
    """Run `python [options] -m module ...` or `python [options] -c code ...`; the options are for an interpreter."""
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
    """End with the launcher: it never writes again, so a line ends when the launcher does."""
    lines.readline()
    os._exit(1)


def launch(arguments: list[str]) -> int:
    """Get a fork from the server, pass signals on to it and end when it ends. Returns its exit status.

    arguments: as for Python. Without a server this process runs them itself.
    """
    parent = os.getppid()
    files = [file for file in map(int, os.listdir("/proc/self/fd")) if _is_open(file)]
    job = {"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ), "path": sys.path}
    with socket.socket(socket.AF_UNIX) as connection:
        lines = iter(())
        with suppress(OSError):
            with _address(os.environ[SERVER]) as address:
                connection.connect(address)
            socket.send_fds(connection, [b"\0"], files)
            connection.sendall(json.dumps(job | {"files": files}).encode() + b"\n")
            lines = _lines(connection, parent)
        if not (fork := int(next(lines, "0"))):
            os.execv(sys.executable, [sys.executable, *arguments])
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _frame: os.kill(fork, number))
        return int(next(lines, "1"))  # a killed fork sends no status


def _is_open(file: int) -> bool:
    try:
        os.fstat(file)
    except OSError:
        return False  # it belonged to the listing
    return True


def _lines(connection: socket.socket, parent: int):
    """Lines as they come, while the other end is open and this process's parent is there."""
    connection.settimeout(POLL_S)
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
