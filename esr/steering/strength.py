"""The unit of boosts: the median residual norm."""

from __future__ import annotations

import json

from esr.config.registry import base_of
from esr.paths import data_dir


def residual_norm(model_id: str) -> float:
    """Median norm of the residual stream at the steered layer, measured by the `sae` stage: the unit of boosts."""
    summary = data_dir("sae", base_of(model_id)) / "summary.json"
    if not summary.exists():
        raise FileNotFoundError(f"{summary} does not exist: run `dvc repro sae` first.")
    return json.loads(summary.read_text())["median_residual_norm"]
