"""Which models run which stages: `models` of params.yaml, and what their entries in the registry say.

DVC's templates cannot derive lists, so dvc.yaml reads them from data/study.yaml, which `esr select` writes and every
stage checks.
"""

from __future__ import annotations

import io
from typing import get_args

from ruamel.yaml import YAML

from esr.config.registry import REGISTRY, Experiment, ModelEntry, base_of, load_registry, model_entry
from esr.config.schema import ConfigError, load_yaml
from esr.paths import DATA
from esr.storage.files import write_text

HEADER = "# Written by `esr select`: which models run which stages, and the paths that dvc.yaml names. Do not edit.\n"
STUDY = DATA / "study.yaml"
SUBJECTS = "data/prompts/corpus_subjects.txt"  # what a corpus is generated from
EXPERIMENTS: tuple[str, ...] = get_args(Experiment)


def bases_of(models: list[str]) -> list[str]:
    """The distinct models that the others were fine-tuned from, in order; a model without a base is one."""
    return list(dict.fromkeys(base_of(model) for model in models))


def running(stage: str, models: list[str]) -> list[str]:
    """Those of `models` on which the experiment `stage` runs."""
    return [model for model in models if stage in model_entry(model).experiments]


def with_sae(models: list[str]) -> list[str]:
    """Those of the bases of `models` that have an SAE."""
    return [model for model in bases_of(models) if model_entry(model).sae]


def write_study(models: list[str]) -> None:
    """Write data/study.yaml for `models`."""
    text = io.StringIO()
    YAML().dump({"study": derive(models)}, text)
    write_text(STUDY, HEADER + text.getvalue())


def derive(models: list[str]) -> dict[str, dict]:
    """The content of data/study.yaml: for each group of stages its models, with the paths that dvc.yaml needs of each.

    Raises ConfigError for a model that cannot be studied.
    """
    registry = load_registry()
    for model in models:
        model_entry(model)
        if not registry[model].steerable:
            raise ConfigError(
                f"{model} cannot be steered, as it has no sae or concepts in {REGISTRY}: choose another model, or add "
                "one of them."
            )
        base = registry[model].tuned_from
        if base not in [None, *models] and _folder(registry[model]).startswith(f"data/finetune/{base}"):
            raise ConfigError(f"{model} is made by fine-tuning {base}: select {base} too.")
    bases = bases_of(models)
    everyone = list(dict.fromkeys([*bases, *models]))
    kinds = {model: registry[model].source[0].kind for model in everyone}
    entries = {base: registry[base] for base in bases}
    groups: dict[str, dict] = {
        "fetched": {m: {} for m in everyone if kinds[m] not in ("folder", "adapter")},
        "local": {m: {"folder": _folder(registry[m])} for m in everyone if kinds[m] == "folder"},
        "merged": {
            m: {"base": str(registry[m].tuned_from), "adapter": _folder(registry[m])}
            for m in everyone if kinds[m] == "adapter"
        },
        "bases": {b: {"corpus": entry.corpus or SUBJECTS} for b, entry in entries.items()},
        "trained": {b: {} for b, entry in entries.items() if _weights(entry) == f"data/train_sae/{b}"},
        "with_sae": {
            b: {"weights": _weights(entry) or _always_there(b), "labels": _labels(b, entry)}
            for b, entry in entries.items() if entry.sae
        },
        "organisms": {b: _studied(b, registry) for b in bases if has_organism(b)},
        "with_concepts": {b: {"concepts": entry.concepts.path} for b, entry in entries.items() if entry.concepts},
        "models": {m: _studied(m, registry) for m in models},
    }  # fmt: skip
    groups |= {stage: {m: _studied(m, registry) for m in running(stage, models)} for stage in EXPERIMENTS}
    for model, paths in groups["finetune"].items():
        paths["trainings"] = f"data/organism/{model}" if model in groups["organisms"] else _always_there(model)
    return groups


def _studied(model: str, registry: dict[str, ModelEntry]) -> dict[str, str]:
    """base: whose corpus and scorer serve the model. latents: what it is steered with. directions: their vectors."""
    base = base_of(model)
    entry = registry[base]
    if entry.concepts:
        folder = f"data/concepts/{base}"
        return {"base": base, "latents": f"{folder}/latents.jsonl", "directions": f"{folder}/directions.safetensors"}
    return {
        "base": base,
        "latents": f"data/latents/{base}",
        "directions": _weights(entry) or f"data/sae/{base}/summary.json",
    }


def has_organism(base: str) -> bool:
    """Whether an entry of the registry is `base` with an adapter that the stage `organism` made."""
    return any(_folder(entry).startswith(f"data/organism/{base}/") for entry in load_registry().values())


def _folder(entry: ModelEntry) -> str:
    """Folder of a local model or adapter; "" for another source."""
    source = entry.source[0]
    return source.path.as_posix() if source.kind in ("folder", "adapter") else ""


def _weights(entry: ModelEntry) -> str | None:
    """Folder of the SAE; None for one that is downloaded, whose release is part of the entry."""
    return entry.sae.path if entry.sae and entry.sae.kind == "folder" else None


def _labels(base: str, entry: ModelEntry) -> str:
    return entry.labels.path if entry.labels.kind == "file" else _always_there(base)


def _always_there(base: str) -> str:
    """The path of an optional input where there is none: DVC needs one that exists."""
    return f"data/corpus/{base}/summary.json"


def check_study(models: list[str]) -> None:
    """Raise ConfigError unless data/study.yaml is that of `models`."""
    expected, command = {"study": derive(models)}, f"run `esr select {' '.join(models)}`"
    if load_yaml(STUDY, f"{command}, which writes it") != expected:
        raise ConfigError(f"{STUDY} is out of date for the models {', '.join(models)} of {REGISTRY}: {command}.")
