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
# Environment variables: of kernels that esr.pipeline.run starts, and of others once a notebook has its parameters
PIPELINE, BY_HAND = "ESR_PIPELINE", "ESR_BY_HAND"


def from_root(message: str) -> str:
    """`message` with the repository's files named from its root, as data/models.yaml."""
    return message.replace(f"{ROOT}{os.sep}", "")


def data_dir(stage: str, model: str | None = None) -> Path:
    """Folder of a stage's output, `data/<stage>` or `data/<stage>/<model>`; not created."""
    return DATA / stage / model if model else DATA / stage


def output_dir(stage: str, model: str | None = None) -> Path:
    """Folder a stage's notebook writes into: `data_dir`, but the same below `SCRATCH` where it is run by hand."""
    return output_file(data_dir(stage, model))


def output_file(path: Path) -> Path:
    """Where `path` is written: there, but below `SCRATCH` by a notebook that is run by hand."""
    return SCRATCH / path.relative_to(ROOT) if os.environ.get(BY_HAND) else path
