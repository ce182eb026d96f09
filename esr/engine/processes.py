"""The executable that starts a worker or kernel: Python, or a fork of the process that holds the libraries."""

from __future__ import annotations

import os

SERVER = "ESR_KERNELS"  # environment variable: the server's folder, with its socket and the executable `python`


def forking_python() -> str | None:
    """The executable to start instead of Python, with the same arguments, for a fork; None where no server runs."""
    python = f"{os.environ.get(SERVER, '')}/python"
    return python if os.access(python, os.X_OK) else None
