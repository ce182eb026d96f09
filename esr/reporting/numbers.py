"""Measured numbers of the paper: paper/numbers/NAME.json, kept in git and comparable byte by byte.

`python -m esr.reporting.tables compare [--strict]` compares the working tree's files with the committed ones.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, is_dataclass
from typing import Any

from filelock import FileLock

from esr import paths
from esr.statistics.estimates import from_json
from esr.storage.files import write_text

DIGITS = 6  # significant


def write_numbers(name: str, numbers: dict | list, section: str | None = None) -> None:
    """Write `numbers` atomically as paper/numbers/NAME.json, floats rounded to 6 significant digits.

    section: replaces only that part of the file, e.g. a model; sections are sorted by name, and concurrent writers wait
    for each other. Raises ValueError naming the key of a value that is not finite; write None for a missing number.
    """
    numbers = _rounded(numbers, name if section is None else f"{name}.{section}")
    path = paths.output_file(paths.NUMBERS / f"{name}.json")
    paths.CACHE.mkdir(parents=True, exist_ok=True)
    with FileLock(paths.CACHE / "numbers.lock"):
        if section is not None:
            sections = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
            numbers = dict(sorted((sections | {section: numbers}).items()))
        text = json.dumps(numbers, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        write_text(path, text)


def parse_numbers(text: str) -> Any:
    """The content of a numbers file, each measured number an Estimate."""
    return json.loads(text, object_hook=from_json)


def read_numbers(name: str) -> Any:
    """Content of paper/numbers/NAME.json (an object; a list in claims.json), each measured number an Estimate.

    Raises FileNotFoundError or ValueError with the command to run.
    """
    path = paths.NUMBERS / f"{name}.json"
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: run the stage that writes it (dvc repro), or check the name.")
    try:
        return parse_numbers(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error}): run dvc repro to write it again.") from None


def find(value: Any, *keys: str) -> Any:
    """Value of nested dicts under `keys`; None where one is missing."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _rounded(value, key: str):
    """Plain Python values with rounded floats, from dataclasses and numpy's scalars and arrays too."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        return {str(name): _rounded(item, f"{key}.{name}") for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item, f"{key}.{place}") for place, item in enumerate(value)]
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{key} is {value}: a number must be finite; write None for one that is missing.")
        return float(f"{value:.{DIGITS}g}")
    if value is None or isinstance(value, (str, int)):
        return value
    raise ValueError(f"{key} is a {type(value).__name__}: numbers are dicts, lists, numbers, text, true, false, None.")
