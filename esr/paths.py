"""Where things are, whoever asks: papermill runs a kernel in the repository's root, JupyterLab in notebooks/."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(os.environ.get("ESR_ROOT") or Path(__file__).resolve().parent.parent).resolve()
DATA = ROOT / "data"
PROMPTS = DATA / "prompts"
NOTEBOOKS = ROOT / "notebooks"
EXECUTED = NOTEBOOKS / "executed"
NUMBERS = ROOT / "paper" / "numbers"
FIGURES = ROOT / "paper" / "figures"
# Finished chunks of long work and downloaded wheels; DVC deletes a stage's outputs before it runs, this folder stays.
CACHE = Path(os.environ.get("ESR_CACHE") or ROOT / ".cache" / "esr").resolve()


def data_dir(stage: str, model: str | None = None) -> Path:
    """Folder of a stage's output, `data/<stage>` or `data/<stage>/<model>`; not created."""
    return DATA / stage / model if model else DATA / stage
