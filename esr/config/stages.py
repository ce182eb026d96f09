"""Parameters of a stage at the chosen scale, and the check of params.yaml.

YAML 1.2 throughout, as in DVC (1e-4 is a number, "no" is a word).
"""

from __future__ import annotations

import os
from typing import Any

from pydantic import Field, TypeAdapter, field_validator

from esr.config.params import STAGES, Generation
from esr.config.registry import REGISTRY, model_entry
from esr.config.schema import ConfigError, Section, load_yaml, mapping, refuse_unknown, validate
from esr.config.study import check_study
from esr.paths import BY_HAND, PIPELINE, ROOT, SCRATCH

PARAMS = ROOT / "params.yaml"
# Where dvc.yaml tracks a section: these under `scales` alone, those at the top level alone, the others at both places
SIZES = ("sae", "relevance", "steer", "meta_prompts", "ablate")
UNSIZED = ("train_sae", "judge", "activations", "cross_judge", "measure", "figures", "power", "claims", "fetch")
# Sections that an entry of the registry may change for its model: of the stages whose entry dvc.yaml tracks whole
OF_MODELS = (
    "generation", "corpus", "train_sae", "sae", "latents", "concepts", "calibrate", "steer", "organism", "finetune",
    "boost_sweep", "meta_prompts", "detectors", "ablate", "activations", "controls",
)  # fmt: skip


SEEDED = ("corpus", "train_sae")  # have a seed in params.yaml, which the study's does not change


class Study(Section):
    """What stands above the sections of params.yaml."""

    scale: str = Field(examples=["smoke", "laptop", "paper"])
    models: list[str] = Field(min_length=1, examples=["[smollm2-135m]"])
    seed: int
    scales: dict[str, Any] = Field(min_length=1, examples=["{laptop: {steer: {n_prompts: 10}}}"])

    @field_validator("models")
    @classmethod
    def _each_once(cls, models: list[str]) -> list[str]:
        for model in models:
            if models.count(model) > 1:
                raise ValueError(f"{model!r} is there twice: remove one")
        return models


def stage_parameters(stage: str, model: str | None = None, scale: str | None = None) -> dict[str, Any]:
    """Checked parameters of `stage` at the chosen scale, or at another `scale`, flat, for its notebook.

    Raises ConfigError for an unknown stage, scale or model, and for a wrong key, type or value anywhere in params.yaml.
    """
    refuse_unknown(stage, STAGES, "Unknown stage")
    params = load_yaml(PARAMS)
    if scale:
        refuse_unknown(scale, params.get("scales") or {}, "Unknown scale")
        params["scale"] = scale
    _check_file(params)
    model = model or params["models"][0]
    _check_entry(model, params["scales"])
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
    scale, entry = params["scale"], model_entry(model)
    changes = entry.params if "model" in section.model_fields else {}  # a stage of all models together has no entry
    values = {"model": model, "models": params["models"], "seed": params["seed"]}
    values = {name: value for name, value in values.items() if name in section.model_fields}
    for name in others:
        given = _settings(name, scale, params, changes)
        theirs = (STAGES[name][0] if name in STAGES else Generation).model_fields  # for keys of other stages
        values |= {key: value for key, value in given.items() if key in section.model_fields or key not in theirs}
    values |= _settings(stage, scale, params, changes)
    if "temperature" in values and entry.sampling.temperature is not None:
        values["temperature"] = entry.sampling.temperature
    where = f"{PARAMS}: {stage}"
    if any(_settings(name, scale, changes) for name in (stage, *others)):
        where += f", with params of {model} in {REGISTRY}"
    return validate(TypeAdapter(section), values, where, f"write it under {' or '.join(places(stage, scale))}")


def _settings(section: str, scale: str, *files: dict) -> dict[str, Any]:
    """Keys of a section at `scale`; a later file's count before an earlier one's."""
    values: dict[str, Any] = {}
    for file in files:
        sizes = (file.get("scales") or {}).get(scale) or {}
        values |= (file.get(section) or {}) | (sizes.get(section) or {})
    return values


def places(section: str, scale: str) -> list[str]:
    """Where keys of a section may stand in params.yaml: where DVC notices that they change."""
    return [section] * (section not in SIZES) + [f"scales.{scale}.{section}"] * (section not in UNSIZED)


def _check_file(params: dict) -> None:
    """Check every section, to find mistakes before the first stage runs."""
    where, sections = str(PARAMS), {"generation": Generation} | {name: section for name, (section, _) in STAGES.items()}
    for key in params:
        refuse_unknown(key, [*Study.model_fields, *sections], f"{where}: unknown key")
    study = {name: params[name] for name in Study.model_fields if name in params}
    validate(TypeAdapter(Study), study, where, "add it at the top level")
    scales = params["scales"]
    refuse_unknown(params["scale"], scales, f"{where}: scale is")
    parts = [(name, name, params.get(name)) for name in sections]
    for name, sizes in scales.items():
        remedy = ": write its settings there, or delete the key"
        for key, part in mapping(sizes, f"{where}: scales.{name}", sections, remedy).items():
            refuse_unknown(key, sections, f"{where}: scales.{name}: unknown key")
            parts.append((f"scales.{name}.{key}", key, part))
    for name, section, part in parts:
        scale = name.split(".")[1] if name != section else params["scale"]
        if part and name not in (allowed := places(section, scale)):
            raise ConfigError(f"{where}: {name} is where DVC does not notice its changes: move it to {allowed[0]}.")
        if part:  # an empty one is complete where the other place has its keys
            keys = [key for key in sections[section].model_fields if key not in ("model", "models", "seed")]
            mapping(part, f"{where}: {name}", keys)
    for model in params["models"]:
        model_entry(model, f" under models in {where}")
        _check_entry(model, scales)
    check_study(params["models"])
    sizes = scales[params["scale"]]
    given = (params.get("generation") or {}) | (sizes.get("generation") or {})
    add = f"write it under generation or scales.{params['scale']}.generation"
    validate(TypeAdapter(Generation), given, f"{where}: generation", add)
    shared = [name for _, others in STAGES.values() for name in others if name in STAGES]  # blamed before their users
    first, *rest = params["models"]
    for model in [first, *(model for model in rest if model_entry(model).params)]:
        for stage in [*shared, *STAGES]:
            _assemble(stage, params, model)


def _check_entry(model: str, scales: dict) -> None:
    """Check the names under `params` of an entry; values are checked where they are assembled.

    Raises ConfigError for a scale, section or key that does not exist or whose changes DVC would not notice.
    """
    written, where = model_entry(model).params, f"{REGISTRY}: {model}: params"
    parts = [("", {name: part for name, part in written.items() if name != "scales"})]
    for scale, sections in written.get("scales", {}).items():
        refuse_unknown(scale, scales, f"{where}.scales: unknown scale")
        parts.append((f".scales.{scale}", mapping(sections, f"{where}.scales.{scale}", OF_MODELS)))
    for place, sections in parts:
        for name, values in sections.items():
            refuse_unknown(name, OF_MODELS, f"{where}{place}: unknown section")
            section = STAGES[name][0] if name in STAGES else Generation
            given_above = {"model"} | ({"seed"} if name not in SEEDED else set())
            keys = [key for key in section.model_fields if key not in given_above]
            for key in mapping(values, f"{where}{place}.{name}", keys):
                refuse_unknown(key, keys, f"{where}{place}.{name}: unknown key")
