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

SCRATCH = ROOT / "scratch"  # where notebooks write when they are run by hand: never over what the pipeline made
PIPELINE = "ESR_PIPELINE"  # environment variable: set in the kernels of esr.pipeline.run


def in_pipeline() -> bool:
    return PIPELINE in os.environ


def data_dir(stage: str, model: str | None = None) -> Path:
    """Folder of a stage's output, `data/<stage>` or `data/<stage>/<model>`; not created."""
    return DATA / stage / model if model else DATA / stage


def output_dir(stage: str, model: str | None = None) -> Path:
    """Folder a stage's notebook writes into: `data_dir` within the pipeline, else the same below `SCRATCH`."""
    folder = data_dir(stage, model)
    return folder if in_pipeline() else SCRATCH / folder.relative_to(ROOT)


def output_file(path: Path) -> Path:
    """Where a file of `NUMBERS` or `FIGURES` is written: there within the pipeline, else the same below `SCRATCH`."""
    return path if in_pipeline() else SCRATCH / path.relative_to(ROOT)
