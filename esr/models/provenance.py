"""Provenance of results: recorded with them, and part of the key of cached chunks.

A changed engine, model, SAE or library version must not reuse cached chunks.
"""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path

from esr.config.registry import SaeSource, model_entry
from esr.paths import ROOT, data_dir
from esr.storage.digests import code_digest, file_digest

# modules below esr/ that decide the tokens of a response
ENGINE = (
    "engine/attention",
    "engine/cache",
    "engine/generation",
    "engine/interventions",
    "engine/linear",
    "engine/sampling",
    "models/alignment",
    "models/chat",
    "models/devices",
    "models/loading",
    "sae/loading",
    "sae/on_policy",
    "steering/trials",
)


def environment() -> dict[str, str]:
    """Versions and hardware; results repeat bit for bit only where these are equal."""
    import torch

    from esr.models.devices import compute_dtype, device

    return {
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "device": torch.cuda.get_device_name() if device().type == "cuda" else platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": "1",
        "dtype": str(compute_dtype()).removeprefix("torch."),
    }


def engine_provenance(model_id: str, adapter: str = "") -> dict[str, str]:
    """The environment and digests of the engine's code and of the weights of model, adapter and SAE."""
    here = Path(__file__).parent.parent
    return environment() | {
        "code": code_digest(*(here / f"{name}.py" for name in ENGINE)),
        "model": file_digest(data_dir("fetch", model_id) / "model.safetensors"),
        "adapter": file_digest(ROOT / adapter / "adapter_model.safetensors") if adapter else "",
        "sae": _sae_digest(model_entry(model_id).sae),
        "template": model_entry(model_id).template.model_dump_json(),
    }


def _sae_digest(source: SaeSource | None) -> str:
    """Digest of the SAE's weights, or its published id; "" without one."""
    if source is None or source.kind != "folder":
        return "" if source is None else source.id
    weights = ROOT / source.path / "sae_weights.safetensors"
    return file_digest(weights) if weights.exists() else ""
