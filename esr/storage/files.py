"""Atomic files and folders; JSON Lines with checked rows."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from esr.storage.records import Record


@contextmanager
def replacing(destination: Path) -> Iterator[Path]:
    """A temporary folder that replaces `destination` if the block succeeds and is removed otherwise."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=destination.parent, prefix=".partial-", ignore_cleanup_errors=True) as partial:
        new, old = Path(partial) / "new", Path(partial) / "old"
        new.mkdir()
        yield new
        if destination.exists():
            destination.rename(old)
        new.rename(destination)


Row = TypeVar("Row", bound=Record)


def write_rows(path: Path, rows: Iterable[Record]) -> None:
    """Write rows as JSON Lines, atomically."""
    write_text(path, "".join(row.model_dump_json() + "\n" for row in rows))


def read_rows(path: Path, kind: type[Row]) -> list[Row]:
    """Rows of `path`. Raises FileNotFoundError or ValueError naming file, line and field."""
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: run the stage that writes it (dvc repro), or check the name.")
    rows = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                rows.append(kind.model_validate_json(line))
            except ValidationError as error:
                problem = error.errors()[0]
                field = ".".join(map(str, problem["loc"])) or "the line"
                raise ValueError(
                    f"{path}, line {number}: {field}: {problem['msg']} (a {kind.__name__} is expected)."
                ) from None
    return rows


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically: a crash leaves the old content or the new, never half of it."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, content: dict) -> None:
    """Write indented, byte-stable JSON, atomically; dataclasses become objects."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False, default=asdict) + "\n")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
