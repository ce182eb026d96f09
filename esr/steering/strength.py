"""Median residual norms: at the steered layer the unit of boosts, at the SAE's layer what tells sinks from others."""

from __future__ import annotations

import json

from esr.config.registry import Boost, base_of, model_entry
from esr.config.schema import ConfigError
from esr.paths import data_dir


def residual_norm(model_id: str) -> float:
    """Median norm of the residual stream at the steered layer, measured by the stage `corpus` on the model's base."""
    return _measured(model_id)["median_residual_norm"]


def sae_norm(model_id: str) -> float | None:
    """The same at the layer of the model's SAE; None without one."""
    return _measured(model_id)["median_sae_norm"]


def _measured(model_id: str) -> dict:
    summary = data_dir("corpus", base_of(model_id)) / "summary.json"
    if not summary.exists():
        raise FileNotFoundError(f"{summary} does not exist: run `dvc repro corpus` first.")
    return json.loads(summary.read_text())


def boost_bounds(model_id: str) -> Boost:
    """The entry's bounds and prior in median residual norms, whichever unit it gives them in."""
    boost = model_entry(model_id).boost
    if boost is None:
        raise ConfigError(f"{model_id} cannot be steered: it has no boost in models.yaml.")
    if boost.unit == "residual_norm":
        return boost
    norm = residual_norm(model_id)
    scaled = {name: getattr(boost, name) / norm for name in ("min", "max", "prior_mean", "prior_sd")}
    return Boost(unit="residual_norm", **scaled)
