"""Strict schemas, YAML and one-sentence errors, shared by params.yaml and the registry."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from string import Formatter
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.fields import FieldInfo
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
                    raise ValueError(f"{upper} ({high}) is below {name} ({low}): raise {upper} or lower {name}")
        return self


def load_yaml(path, if_missing: str = "run inside a clone of the repository, or set ESR_ROOT to one") -> dict:
    """The mapping in a YAML 1.2 file. Raises ConfigError that names file, line and what to do."""
    if not path.exists():
        raise ConfigError(f"{path} does not exist: {if_missing}.")
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
    return mapping(content, str(path), remedy=": write lines as `key: value`, or restore the file from git")


NOT_YAML = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")  # U+0085, which is, would become a space


HINTS = {  # ruamel's words for a mistake, and a user's
    r"'\t'": "a tab indents the line: use spaces",
    "could not find expected ':'": "a colon and a space are missing after the key, as in `seed: 1`",
    "expected <block end>": "it is indented unlike the lines above: indent it as they are",
    "expected ',' or": "a bracket is opened and not closed: close it",
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


def mapping(value: Any, where: str, names: Iterable[str] = (), remedy: str = "") -> dict:
    """`value`, a mapping with a key or more, some of `names`. Raises ConfigError that names `where`."""
    if isinstance(value, dict) and value:
        return value
    found = "is empty" if value in (None, {}) else f"is {shown(value)}"
    raise ConfigError(f"{where} {found}; {_keys(names)}{remedy}.")


def _keys(names: Iterable[str]) -> str:
    some = ", ".join(list(names)[:3])
    return "it must hold keys with values" + (f", such as {some}" if some else "")


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
        raise ConfigError(f"{where}: {_sentence(problem, adapter, values, add)}.") from None


NUMBER = re.compile(r"[-+]?\d[\d.,]*(e[-+]?\d+)?")


def _sentence(problem: Any, adapter: TypeAdapter, values: Any, add: str) -> str:
    """One mistake, as pydantic describes it, in words of the file, which holds `values`."""
    location, value, kind, context = problem["loc"], problem["input"], problem["type"], problem.get("ctx", {})
    name, key = str(location[-1]) if location else "", ".".join(_written(location, values))
    sections = _beside(adapter, location)
    fields = [section.model_fields[name] for section in sections if name in section.model_fields]
    as_in = " or ".join(f"`{name}: {example}`" for field in fields for example in field.examples or [])
    message = _lower(problem["msg"]).replace("input should be", "it must be")
    if kind in ("extra_forbidden", "missing"):
        parent = _written(location[:-1], values)
        if kind == "missing":
            needed = f", as in {as_in}" if as_in else f", as {_type(fields[0])}" if fields else ""
            return f"{'.'.join([*parent, name])} is missing; {add}{needed}"
        names = dict.fromkeys(other for section in sections for other in section.model_fields)
        return f"{'.'.join(parent)}{': ' if parent else ''}unknown key {name!r}{_choice(name, list(names))}"
    if kind.startswith("union_tag"):
        tag, allowed = context["discriminator"].strip("'"), re.findall(r"'(.*?)'", context.get("expected_tags", ""))
        if kind == "union_tag_invalid":
            return f"{key}.{tag} is {shown(context['tag'])}{_choice(context['tag'], allowed)}"
        kinds = [kind for s in _beside(adapter, (*location, tag)) for kind in _kinds(s)]
        return f"{key} has no {tag}; add it, one of {', '.join(kinds)}"
    if kind == "value_error" and isinstance(value, dict | BaseModel):  # of a section as a whole
        return f"{key}: {message}" if key else message
    if kind in ("too_short", "string_too_short"):
        found = f"has {len(value)} item{'s' * (len(value) > 1)}" if value else "is empty"
        return f"{key} {found}; give {context['min_length']} or more" + (f", as in {as_in}" if as_in else "")
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        inner = [section for field in fields for section in _sections(field.annotation)]
        message = _keys(name for section in inner for name in section.model_fields)
        message += f", as in {as_in}" if as_in else ""
    elif kind == "string_pattern_mismatch" and as_in:
        message = f"write it as in {as_in}"
    elif kind == "literal_error":
        message += meant(value, re.findall(r"'(.*?)'", context["expected"]))
    elif kind == "list_type":
        message += f": write [{value}]"
    elif kind in ("int_type", "float_type") and isinstance(value, str) and NUMBER.fullmatch(value):
        message += ": write a point for the comma" if "," in value else ": remove the quotes"
    reason = next((f": {field.description}" for field in fields if field.description), "")
    return f"{key or 'it'} is {shown(value)}; {message}{reason}"


def _written(location: tuple, values: Any) -> list[str]:
    """The keys of `values` that lead to a mistake; pydantic also names kinds and puts lists around single values."""
    keys, tagged = [], None
    for step in location:
        if isinstance(values, dict) and values is not tagged and step == values.get("kind"):
            tagged = values
        elif isinstance(values, list) and isinstance(step, int) or isinstance(values, dict) and step in values:
            values = values[step]
            keys.append(str(step))
    return keys


TYPES: dict[Any, str] = {int: "an integer", float: "a number", str: "a text", bool: "true or false", list: "a list"}
BOUNDS = {"ge": "of at least", "gt": "above", "le": "at most", "lt": "below"}


def _type(field: FieldInfo) -> str:
    """Type and bounds of a field's values in words."""
    bounds = [
        f"{word} {getattr(part, name):g}"
        for part in field.metadata for name, word in BOUNDS.items() if hasattr(part, name)
    ]  # fmt: skip
    words = TYPES.get(get_origin(field.annotation) or field.annotation, "keys with values")
    return f"{words} {' and '.join(bounds)}".strip()


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
    text = {"None": "null", "True": "true", "False": "false"}.get(repr(value), repr(value))
    return text if len(text) <= 60 else f"{text[:57]}..."


def _lower(message: str) -> str:
    message = message.removeprefix("Value error, ")
    return message[:1].lower() + message[1:]
