"""Which models run which stages: `models` of params.yaml, and what their entries in the registry say.

DVC's templates cannot derive lists, so dvc.yaml reads them from data/study.yaml, which `esr select` writes and every
stage checks.
"""

from __future__ import annotations

from typing import Any, get_args

from esr.config.registry import REGISTRY, Experiment, ModelEntry, base_of, load_registry, model_entry
from esr.config.schema import ConfigError, load_yaml
from esr.paths import DATA

STUDY = DATA / "study.yaml"
EXPERIMENTS: tuple[str, ...] = get_args(Experiment)


def bases_of(models: list[str]) -> list[str]:
    """The distinct models that the others were fine-tuned from, in order; a model without a base is one."""
    return list(dict.fromkeys(base_of(model) for model in models))


def running(stage: str, models: list[str]) -> list[str]:
    """Those of `models` and their bases on which the experiment `stage` runs."""
    everyone = dict.fromkeys([*bases_of(models), *models])
    return [model for model in everyone if stage in model_entry(model).experiments]


def with_sae(models: list[str]) -> list[str]:
    """Those of the bases of `models` that have an SAE."""
    return [model for model in bases_of(models) if model_entry(model).sae]


def derive(models: list[str]) -> dict[str, Any]:
    """The content of data/study.yaml for these models. Raises ConfigError for a model that cannot be studied."""
    registry = load_registry()
    for model in models:
        if not _entry(registry, model).steerable:
            raise ConfigError(f"{model} cannot be steered: it has no sae or concepts in {REGISTRY.name}.")
    everyone = list(dict.fromkeys([*bases_of(models), *models]))
    adapters = [m for m in everyone if _adapter(registry[m])]
    return {
        "fetched": [m for m in everyone if m not in adapters],
        "merged": {m: {"base": registry[m].tuned_from, "adapter": _adapter(registry[m])} for m in adapters},
        "bases": bases_of(models),
        "with_sae": with_sae(models),
        "trained": [m for m in with_sae(models) if _is_trained(m, registry[m])],
        "models": list(models),
    } | {stage: running(stage, models) for stage in EXPERIMENTS}


def check_study(models: list[str]) -> None:
    """Raise ConfigError unless data/study.yaml is that of `models`."""
    if load_yaml(STUDY) != derive(models):
        raise ConfigError(
            f"{STUDY.name} is not of the models {', '.join(models)} as {REGISTRY.name} describes them: "
            f"run `esr select {' '.join(models)}`."
        )


def _entry(registry: dict[str, ModelEntry], model: str) -> ModelEntry:
    if model not in registry:
        raise ConfigError(f"Unknown model {model!r}: {REGISTRY.name} has {', '.join(registry)}.")
    return registry[model]


def _adapter(entry: ModelEntry) -> str | None:
    """Folder of the LoRA weights; None for a model that is fetched whole."""
    first = entry.source[0]
    return first.path.as_posix() if first.kind == "adapter" else None


def _is_trained(model: str, entry: ModelEntry) -> bool:
    return entry.sae is not None and entry.sae.kind == "folder" and entry.sae.path == f"data/train_sae/{model}"
