"""The way of every measured figure into the paper: paper/numbers/NAME.json, kept in git and comparable byte by byte.

    python -m esr.reporting.numbers compare [--strict]

compares the files of the working tree with the committed ones, and so tells a reader what was reproduced.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass

from esr import paths
from esr.statistics.estimates import from_json
from esr.storage.files import write_text

DIGITS = 6  # significant


def write_numbers(name: str, numbers: dict | list, section: str | None = None) -> None:
    """Write `numbers` as paper/numbers/NAME.json, floats rounded to 6 significant digits, whole or not at all.

    With `section` (a model, say) only that part of the file is replaced, the others stay; sections are in order of
    name. Processes that write sections of one file at the same time wait for each other.
    Raises ValueError naming the key of a value that is not finite: a missing number is written as None.
    """
    numbers = _rounded(numbers, name if section is None else f"{name}.{section}")
    path = paths.output_file(paths.NUMBERS / f"{name}.json")
    with _locked():
        if section is not None:
            sections = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
            numbers = dict(sorted((sections | {section: numbers}).items()))
        text = json.dumps(numbers, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        write_text(path, text)


def parse_numbers(text: str) -> dict | list:
    """The content of a numbers file, each measured number an Estimate."""
    return json.loads(text, object_hook=from_json)


def read_numbers(name: str) -> dict | list:
    """Content of paper/numbers/NAME.json, each measured number an Estimate.

    Raises FileNotFoundError or ValueError with what to do.
    """
    path = paths.NUMBERS / f"{name}.json"
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: run the stage that writes it (dvc repro), or check the name.")
    try:
        return parse_numbers(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error}): run dvc repro to write it again.") from None


@contextmanager
def _locked() -> Iterator[None]:
    """One writer at a time; the lock is on the folder itself, so it leaves no file behind."""
    paths.NUMBERS.mkdir(parents=True, exist_ok=True)
    folder = os.open(paths.NUMBERS, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)  # releases the lock


def _rounded(value, key: str):
    """Plain Python values, floats rounded; dataclasses, and numpy's scalars and arrays, are taken as what they hold."""
    if is_dataclass(value):
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
