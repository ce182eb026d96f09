"""The repository under test, and how a process of a study elsewhere is run."""

import os
import subprocess
import sys
from pathlib import Path

from esr.paths import BY_HAND, PIPELINE

REPOSITORY = Path(__file__).resolve().parents[2]


def environment(root: Path) -> dict[str, str]:
    """Of a process whose study is in `root`."""
    kept = {name: value for name, value in os.environ.items() if name not in (PIPELINE, BY_HAND)}
    return kept | {
        "ESR_ROOT": str(root), "ESR_CACHE": str(root / ".cache"), "ESR_WORKERS": "0", "PYTHONPATH": str(REPOSITORY),
        "HF_HUB_OFFLINE": "1",
    }  # fmt: skip


def run(root: Path, *command: str) -> str:
    """What a Python command prints. Fails with its output."""
    done = subprocess.run(
        [sys.executable, *command], env=environment(root), cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return done.stdout


def make_study(root: Path) -> Path:
    run(root, "-m", "tests.playground.study")
    return root
