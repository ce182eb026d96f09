"""Parameters of a stage at the chosen scale, and the check of params.yaml.

YAML 1.2 throughout, as in DVC (1e-4 is a number, "no" is a word).
"""

from __future__ import annotations

import os
from typing import Any

from pydantic import TypeAdapter

from esr.config.params import STAGES, Generation
from esr.config.registry import REGISTRY, model_entry
from esr.config.schema import ConfigError, Section, load_yaml, validate
from esr.config.study import check_study
from esr.paths import BY_HAND, PIPELINE, ROOT, SCRATCH

PARAMS = ROOT / "params.yaml"


def stage_parameters(stage: str, model: str | None = None) -> dict[str, Any]:
    """Checked parameters of `stage` at the chosen scale, flat, for its notebook.

    Raises ConfigError for an unknown stage, scale or model, and for a wrong key, type or value anywhere in params.yaml.
    """
    if stage not in STAGES:
        raise ConfigError(f"Unknown stage {stage!r}: there are {', '.join(STAGES)}.")
    params = load_yaml(PARAMS)
    _check_file(params)
    model = model or params["models"][0]
    model_entry(model)
    return _assemble(stage, params, model).model_dump()


def notebook_parameters(stage: str, names: dict[str, Any]) -> Section:
    """The parameters cell of a notebook as a checked object; call with `globals()`.

    Raises ConfigError that names key, value and what is allowed: papermill's command line passes `false` as a string.
    """
    section, _ = STAGES[stage]
    given = {name: names[name] for name in section.model_fields if name in names}
    if PIPELINE not in os.environ:
        os.environ[BY_HAND] = "1"
        print(f"Run by hand: outputs go to {SCRATCH}, and the results of the pipeline stay as they are.")
    checked = validate(TypeAdapter(section), given, f"notebook {stage}")
    for model in [given["model"]] if "model" in given else given.get("models", []):
        model_entry(model)
    return checked


def _assemble(stage: str, params: dict, model: str) -> Section:
    section, others = STAGES[stage]
    sizes = params["scales"][params["scale"]]
    values = {"model": model, "models": params["models"], "seed": params["seed"]}
    values = {name: value for name, value in values.items() if name in section.model_fields}
    for name in others:
        given = (params.get(name) or {}) | (sizes.get(name) or {})
        theirs = (STAGES[name][0] if name in STAGES else Generation).model_fields  # for keys of other stages
        values |= {key: value for key, value in given.items() if key in section.model_fields or key not in theirs}
    values |= (params.get(stage) or {}) | (sizes.get(stage) or {})
    if "temperature" in values and (temperature := model_entry(model).sampling.temperature) is not None:
        values["temperature"] = temperature
    return validate(TypeAdapter(section), values, f"{PARAMS.name}: {stage}")


def _check_file(params: dict) -> None:
    """Check every section, to find mistakes before the first stage runs."""
    known = {"scale", "models", "seed", "scales", "generation", *STAGES}
    for key in params:
        if key not in known:
            raise ConfigError(f"{PARAMS.name}: unknown key {key!r}; allowed are {', '.join(sorted(known))}.")
    scales = params.get("scales") or {}
    if params.get("scale") not in scales:
        raise ConfigError(f"{PARAMS.name}: scale is {params.get('scale')!r}; allowed are {', '.join(scales)}.")
    for name, sizes in scales.items():
        for key in sizes:
            if key not in {"generation", *STAGES}:
                raise ConfigError(f"{PARAMS.name}: scales.{name} has the unknown section {key!r}.")
    models = params.get("models")
    if not isinstance(models, list) or not models:
        raise ConfigError(f"{PARAMS.name}: models is {models!r}; a list of ids of {REGISTRY.name} is expected.")
    check_study(models)
    for stage in STAGES:
        _assemble(stage, params, params["models"][0])
