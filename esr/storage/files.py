"""Atomic files and folders; JSON Lines with checked rows."""

from __future__ import annotations

import codecs
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

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
    """Rows of `path`; empty lines are skipped. Raises FileNotFoundError or ValueError naming file, line and field."""
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: run the stage that writes it (dvc repro), or check the name.")
    lines, rows = read_lines(path), []
    for number, line in enumerate(lines, start=1):
        try:
            if line.strip():
                rows.append(kind.model_validate_json(line))
        except ValidationError as error:
            problem = error.errors()[0]
            if problem["type"] == "json_invalid" and number == len(lines):  # a whole file ends with a line break
                raise ValueError(
                    f"{path}, line {number}: the last row is cut off: run the stage that writes the file again, "
                    "or remove the line."
                ) from None
            raise ValueError(f"{path}, line {number}{_explain(problem)}.") from None
    return rows


def _explain(problem: Any) -> str:
    """A row's mistake, to follow the number of its line."""
    field, message = ".".join(map(str, problem["loc"])), problem["msg"]
    if problem["type"] == "json_invalid":
        reason = re.sub(r"^Invalid JSON: | line \d+", "", message)
        return f" is not valid JSON ({reason}): correct it"
    if problem["type"] == "missing":
        return f" has no {field}: add it"
    return f": {field or 'the line'}: {message[:1].lower()}{message[1:].replace('nput should be', 't must be')}"


ENCODINGS = {
    codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32",  # before UTF-16, which begins with the same bytes
    codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16",
}  # fmt: skip
LINE_BREAK = re.compile(r"\r\n|\r|\n")  # str.splitlines also splits at U+2028, U+0085, form feeds and others


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, without its byte-order mark; line breaks as written.

    Raises ValueError that names file, line and what to do for another encoding and for NUL characters.
    """
    content = path.read_bytes()
    for mark, encoding in ENCODINGS.items():
        if content.startswith(mark):
            raise ValueError(f"{path} is encoded in {encoding}: save it as UTF-8.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = line_of(content[: error.start].decode("utf-8"))
        raise ValueError(
            f"{path}, line {line}: byte 0x{content[error.start]:02x} is not UTF-8: save the file as UTF-8."
        ) from None
    if "\0" in text:
        line = line_of(text.partition("\0")[0])
        raise ValueError(f"{path}, line {line} holds a NUL character, as UTF-16 does: remove it, or save it as UTF-8.")
    return text


def read_lines(path: Path) -> list[str]:
    """Lines of a UTF-8 file, without their ends. Raises ValueError as `read_text` does."""
    lines = LINE_BREAK.split(read_text(path))
    return lines if lines[-1] else lines[:-1]


def line_of(text_before: str) -> int:
    """The number of the line on which the text after `text_before` begins."""
    return len(LINE_BREAK.split(text_before))


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically: a crash leaves the old content or the new, never half of it."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, content: dict) -> None:
    """Write indented, byte-stable JSON, atomically; dataclasses become objects."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False, default=asdict) + "\n")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")  # two hosts may have equal process ids
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
