"""Strict schemas, YAML and one-sentence errors, shared by params.yaml and the registry."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from ruamel.yaml import YAML

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class ConfigError(ValueError):
    """A mistake in params.yaml, the registry or a notebook's parameters, in one sentence."""


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=())


def load_yaml(path) -> dict:
    """The mapping in a YAML 1.2 file. Raises ConfigError."""
    if not path.exists():
        raise ConfigError(f"{path} does not exist: run inside a clone of the repository, or set ESR_ROOT to one.")
    try:
        return YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8")) or {}
    except Exception as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None


def validate(adapter: TypeAdapter, values: Any, where: str):
    """`values` as the adapter's type. Raises ConfigError that names `where`, key, value and what is allowed."""
    try:
        return adapter.validate_python(values)
    except ValidationError as error:
        # a misspelt key also counts as missing: report the misspelling
        problem = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        key = ".".join(map(str, problem["loc"])) or "the entry"
        if problem["type"] == "extra_forbidden":
            message = f"{where}: unknown key {key!r}"
            fields = (
                getattr(getattr(adapter, "_type", None), "model_fields", None) if len(problem["loc"]) == 1 else None
            )
            raise ConfigError(f"{message}; allowed are {', '.join(fields)}." if fields else f"{message}.") from None
        if problem["type"] == "missing":
            raise ConfigError(f"{where}: {key} is missing; write it there or under scales.") from None
        raise ConfigError(f"{where}: {key} is {problem['input']!r}; {_lower(problem['msg'])}.") from None


def _lower(message: str) -> str:
    message = message.removeprefix("Value error, ")
    return message[:1].lower() + message[1:]
