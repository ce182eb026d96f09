"""Strict schemas, YAML and one-sentence errors, shared by params.yaml and the registry."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from string import Formatter
from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError

from esr.storage.files import line_of, read_text

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class ConfigError(ValueError):
    """A mistake in params.yaml, the registry or a notebook's parameters, in one sentence."""


class Section(BaseModel):
    """Named values of one part of a file; where it has `min_x` and `max_x`, they are in order."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, protected_namespaces=(), allow_inf_nan=False
    )  # fmt: skip

    @model_validator(mode="after")
    def _ranges_are_in_order(self):
        for name in type(self).model_fields:
            upper = name.replace("min_", "max_", 1)
            if name.startswith("min_") and upper in type(self).model_fields:
                low, high = getattr(self, name), getattr(self, upper)
                if None not in (low, high) and low > high:
                    raise ValueError(f"{upper} is {high}, {name} is {low}: give at least as much")
        return self


def load_yaml(path) -> dict:
    """The mapping in a YAML 1.2 file. Raises ConfigError that names file, line and what to do."""
    if not path.exists():
        raise ConfigError(f"{path} does not exist: run inside a clone of the repository, or set ESR_ROOT to one.")
    try:
        text = read_text(path)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if found := NOT_YAML.search(text):
        line, code = line_of(text[: found.start()]), f"U+{ord(found[0]):04X}"
        raise ConfigError(f"{path}, line {line}: the character {code} is not allowed in YAML: remove it.")
    try:
        content = YAML(typ="safe", pure=True).load(text)
    except MarkedYAMLError as error:
        raise ConfigError(f"{path}, {_problem(error)}.") from None
    except Exception as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from None
    return mapping(content, str(path))


NOT_YAML = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")  # U+0085, which is, would become a space


HINTS = {  # ruamel's words for a mistake, and a user's
    r"'\t'": "a tab indents the line: use spaces",
    "could not find expected ':'": "a key ends with a colon and a space, as in `seed: 1`",
    "expected <block end>": "it is indented unlike the lines above",
    "expected ',' or": "a bracket is opened and not closed",
}


def _problem(error: MarkedYAMLError) -> str:
    """Line and mistake."""
    problem = str(error.problem)
    started = str(error.context).startswith(("while parsing a flow", "while scanning a simple"))  # far above its end
    mark = error.context_mark if started else error.problem_mark
    line = f"line {mark.line + 1}" if mark else "at its end"
    if isinstance(error, DuplicateKeyError):
        key = re.search(r'duplicate key "(.*?)"', problem, re.DOTALL)
        return f"{line}: the key {key[1] if key else ''!r} is there twice: remove one"
    hint = next((hint for words, hint in HINTS.items() if words in problem), " ".join(problem.split()))
    return f"{line}: not valid YAML: {hint}"


def mapping(value: Any, where: str) -> dict:
    """`value`, a mapping with a key or more. Raises ConfigError that names `where`."""
    if isinstance(value, dict) and value:
        return value
    found = "is empty" if value in (None, {}) else f"is {shown(value)}"
    raise ConfigError(f"{where} {found}; keys with values are expected.")


def load_texts(path, names: Iterable[str] = ()) -> dict[str, str]:
    """Named texts of a YAML file, in which `{name}` stands for a value. Raises ConfigError for other names."""
    texts = validate(TypeAdapter(dict[str, str]), load_yaml(path), str(path))
    for key, text in texts.items():
        try:
            used = {name for _, name, _, _ in Formatter().parse(text) if name is not None}
        except ValueError as error:
            raise ConfigError(f"{path}: {key} has a single brace ({error}): write {{{{ or }}}} for one.") from None
        for name in sorted(used - set(names)):
            allowed = ", ".join(f"{{{n}}}" for n in names)
            raise ConfigError(f"{path}: {key} has {{{name}}}; allowed are {allowed or 'none'}.")
    return texts


def validate(adapter: TypeAdapter, values: Any, where: str, add: str = "add it"):
    """`values` as the adapter's type. Raises ConfigError that names `where`, key, value and what is allowed.

    add: what to do about a key that is missing.
    """
    try:
        return adapter.validate_python(values)
    except ValidationError as error:
        # a misspelt key also counts as missing: report the misspelling
        problem = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        raise ConfigError(f"{where}: {_sentence(problem, adapter, add)}.") from None


NUMBER = re.compile(r"[-+]?\d[\d.,]*(e[-+]?\d+)?")


def _sentence(problem: Any, adapter: TypeAdapter, add: str) -> str:
    """One mistake, as pydantic describes it, in words of the file."""
    key, value, message = ".".join(map(str, problem["loc"])), problem["input"], _lower(problem["msg"])
    kind, context = problem["type"], problem.get("ctx", {})
    if kind == "extra_forbidden":
        fields = dict.fromkeys(name for section in _beside(adapter, problem["loc"]) for name in section.model_fields)
        return f"unknown key {key!r}{_choice(problem['loc'][-1], list(fields))}"
    if kind == "missing":
        return f"{key} is missing; {add}"
    if kind.startswith("union_tag"):
        tag, allowed = context["discriminator"].strip("'"), re.findall(r"'(.*?)'", context.get("expected_tags", ""))
        if kind == "union_tag_invalid":
            return f"{key}.{tag} is {shown(context['tag'])}{_choice(context['tag'], allowed)}"
        kinds = [kind for s in _beside(adapter, (*problem["loc"], tag)) for kind in _kinds(s)]
        return f"{key} has no {tag}; allowed are {', '.join(kinds)}"
    if kind == "value_error" and isinstance(value, dict | BaseModel):  # of a section as a whole
        return f"{key}: {message}" if key else message
    if kind in ("model_type", "dict_type"):
        message = "keys with values are expected"
    elif kind == "string_pattern_mismatch":
        examples = [
            e for s in _beside(adapter, problem["loc"]) for e in s.model_fields[problem["loc"][-1]].examples or []
        ]
        message = f"write it as in {examples[0]!r}" if examples else message
    elif kind == "literal_error":
        message += meant(value, re.findall(r"'(.*?)'", context["expected"]))
    elif kind in ("int_type", "float_type") and isinstance(value, str) and NUMBER.fullmatch(value):
        message += ": write a point for the comma" if "," in value else ": remove the quotes"
    return f"{key or 'it'} is {shown(value)}; {message}"


def _beside(adapter: TypeAdapter, location: tuple) -> list[type[BaseModel]]:
    """The sections that the key at `location` may stand in."""
    sections = list(_sections(getattr(adapter, "_type", None)))
    for step in location[:-1]:
        if tagged := [section for section in sections if step in _kinds(section)]:
            sections = tagged
        elif isinstance(step, str):
            fields = [s.model_fields[step] for s in sections if step in s.model_fields]
            sections = [section for field in fields for section in _sections(field.annotation)]
    return sections


def _kinds(section: type[BaseModel]) -> tuple[str, ...]:
    """Values of the field `kind`, which tells sections of a union apart."""
    return get_args(section.model_fields["kind"].annotation) if "kind" in section.model_fields else ()


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    """Sections in a type, also in lists and unions of them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _sections(inner)


def refuse_unknown(word: Any, allowed: Iterable[str], where: str) -> None:
    """Raise ConfigError unless `word` is one of `allowed`; it names the likely meant one."""
    names = list(allowed)
    if word not in names:
        raise ConfigError(f"{where} {shown(word)}{_choice(word, names)}.")


def _choice(word: Any, allowed: list[str]) -> str:
    return f"{meant(word, allowed)}; allowed are {', '.join(allowed)}" if allowed else ""


def meant(word: Any, allowed: list[str]) -> str:
    """The name that a misspelt one is likely to stand for, as a remark in parentheses; "" for none."""
    names = {name.casefold(): name for name in allowed}
    close = get_close_matches(str(word).casefold(), names, n=1)
    return f" (did you mean {names[close[0]]!r}?)" if close else ""


def shown(value: Any) -> str:
    """`value` as a message quotes it, cut at 60 characters."""
    text = "null" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _lower(message: str) -> str:
    message = message.removeprefix("Value error, ")
    return message[:1].lower() + message[1:]
