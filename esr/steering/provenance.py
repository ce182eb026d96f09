"""Provenance of steered responses, and of adapters trained on them: the model's, and what steers."""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

from esr.config.registry import SaeSource, model_entry
from esr.config.schema import ConfigError
from esr.models.provenance import adapter_digests, backend_provenance, environment, model_provenance, numerics
from esr.paths import ROOT
from esr.sae.formats import describe, sae_config, sae_weights_path
from esr.steering.directions import directions_file
from esr.storage.digests import digest, file_digest


def engine_provenance(model_id: str, adapter: str = "") -> dict[str, Any]:
    """Of steered responses. adapter: folder of LoRA weights, relative to the repository's root; "" for none.

    An SAE on the hub is downloaded, if its cache lacks it. Raises ConfigError or FetchError when the model is not
    fetched, or when the adapter, the SAE or the concepts' directions are not there.
    """
    rooms = numerics("models", "engine", "sae", "steering")
    found = environment(*(("peft",) if adapter else ())) | {"numerics": rooms} | model_provenance(model_id)
    return (
        found
        | backend_provenance(model_id)
        | {
            "adapter": adapter_digests(ROOT / adapter) if adapter else {},
            "sampling": model_entry(model_id).sampling.model_dump(),
            "steering": steering_provenance(model_id),
        }
    )


def training_provenance(model_id: str) -> dict[str, Any]:
    """Of adapters trained on the model under its steering vectors. Raises as `engine_provenance` does."""
    rooms = numerics("models", "engine", "sae", "steering", "experiments")
    found = environment("peft") | {"numerics": rooms} | model_provenance(model_id)
    return found | {"steering": steering_provenance(model_id)}


def steering_provenance(model_id: str) -> dict[str, Any]:
    """What steering vectors and latents come from, and the fields of the entry that decide their use."""
    entry = model_entry(model_id)
    fields = {"steer_layer": entry.steer_layer, "boost_unit": entry.boost.unit if entry.boost else None}
    if entry.concepts:
        return fields | {"concepts": {"layer": entry.concepts.layer, "file": file_digest(directions_file(model_id))}}
    return fields | {"sae": _sae(entry.sae) if entry.sae else None}


def check_steering(model_id: str, provenance: dict[str, Any]) -> None:
    """Raise ConfigError unless this process finds the SAE or directions that `provenance` is of.

    A worker's SAE may be another: the branch of a repository on the hub may have moved since its parent looked.
    """
    if "steering" in provenance and steering_provenance(model_id) != provenance["steering"]:
        raise ConfigError(f"The SAE or the concepts of {model_id} changed while the run was going on: run it again.")


def _sae(source: SaeSource) -> dict[str, Any]:
    """The entry's fields but a local path; configuration as it is read, and weights."""
    config, weights = sae_config(source), sae_weights_path(source)
    if not weights.is_file():
        raise ConfigError(f"{describe(source)} has no {weights.name}: run the stage that trains it, or correct `path`.")
    fields = source.model_dump(exclude={"path"} if source.kind == "folder" else None)
    found = {"config": digest(json.loads(json.dumps(config, default=str))), "weights": file_digest(weights)}
    listed = {"sae-lens": version("sae-lens")} if source.kind == "release" else {}  # its list is a part of the release
    return fields | found | listed
