"""Provenance of results: everything that determines a computation but its own settings.

It is recorded with results and is part of the key of every cached chunk and of every trial's id. Files count by their
content, code by the numerics version of its room; where a file lies, when it was written and what else the registry
says do not count. `esr.steering.provenance` adds what steers.
"""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from esr.config.registry import model_entry
from esr.config.schema import ConfigError
from esr.models.layout import LICENSES, RECORD
from esr.models.loading import model_folder
from esr.models.vllm import versions
from esr.storage.digests import file_digest

# Numerics version of each room. Raise a room's version in the change that makes it compute anything else from the same
# inputs, be it by a rounding: nothing computed before is then reused. Leave it for renamed, moved or faster code with
# equal results. tests/golden holds results of each room and fails when they change and the version does not.
NUMERICS = {"models": 1, "engine": 3, "sae": 1, "steering": 1, "experiments": 3}

LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "jinja2")  # the last renders chat templates


def environment(*libraries: str) -> dict[str, str]:
    """Versions and hardware; results repeat bit for bit only where these are equal. libraries: further ones used."""
    import torch

    from esr.models.devices import compute_dtype, device

    return {name: version(name) for name in (*LIBRARIES, *libraries)} | {
        "device": torch.cuda.get_device_name() if device().type == "cuda" else f"{device().type} {platform.machine()}",
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": "1",
        "dtype": str(compute_dtype()).removeprefix("torch."),
    }


def numerics(*rooms: str) -> dict[str, int]:
    """Numerics versions of some rooms."""
    return {room: NUMERICS[room] for room in rooms}


def model_provenance(model_id: str) -> dict[str, Any]:
    """Of the model alone: its files and the settings of its chat template.

    Raises ConfigError when it is unknown or not fetched.
    """
    return {
        "model": file_digests(model_folder(model_id)),
        "template": model_entry(model_id).template.model_dump(mode="json"),
    }


def corpus_provenance(model_id: str) -> dict[str, Any]:
    """Of unsteered responses and their residuals. Raises ConfigError as `model_provenance` does."""
    found = environment() | {"numerics": numerics("models", "engine", "sae")} | model_provenance(model_id)
    return found | backend_provenance(model_id)


def backend_provenance(model_id: str) -> dict[str, Any]:
    """Of the backend of a model's entry; empty for transformers, which `environment` describes.

    Raises FileNotFoundError or ValueError when vLLM is asked for and not installed as it must be.
    """
    entry = model_entry(model_id)
    if entry.backend == "transformers":
        return {}
    cores = len(os.sched_getaffinity(0))  # on a CPU, sums in vLLM's kernels depend on their number
    return {"backend": {"kind": entry.backend, "options": entry.vllm, "versions": versions(), "cores": cores}}


def adapter_digests(folder: Path) -> dict[str, str]:
    """Digests of the files that PEFT reads of an adapter. Raises ConfigError when it has no weights."""
    files = sorted(folder.glob("adapter_config.json")) + sorted(folder.glob("adapter_model.*"))
    if not any(path.stem == "adapter_model" for path in files):
        raise ConfigError(f"{folder} holds no adapter: run the stage that trains it (dvc repro finetune).")
    return {path.name: file_digest(path) for path in files}


def file_digests(folder: Path) -> dict[str, str]:
    """Digest of each file at or below `folder` by its name there, without those that no computation reads."""
    names = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {name.as_posix(): file_digest(folder / name) for name in names if not any(map(_unread, name.parts))}


def _unread(name: str) -> bool:
    """Whether a file or folder is hidden, a licence, a text for people or the record of the download."""
    return name == RECORD or name.startswith((".", "README")) or name.endswith(".md") or bool(LICENSES.match(name))
