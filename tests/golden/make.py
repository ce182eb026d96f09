"""`python -m tests.golden.make` writes the results that the rooms' numerics versions stand for."""

import json
import sys
import tempfile
from pathlib import Path

import pytest

from esr.models.provenance import NUMERICS
from tests.golden import results
from tests.golden.repository import build, use


def text_of(room: str, found: dict) -> str:
    """The file of a room. Raises ValueError when its results changed under the versions they are stored with."""
    before, versions = results.stored(room), results.versions(room)
    if before and before["versions"] == versions:
        shared = before["results"].keys() & found.keys()
        only = {"versions": versions, "results": {name: before["results"][name] for name in shared}}
        if problem := results.complaint(room, only, {name: found[name] for name in shared}):
            raise ValueError(problem)
        found = found | only["results"]  # digits beyond the tolerance stay as they are
    cases = ",\n".join(f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in found.items())
    return f'{{\n "versions": {json.dumps(versions)},\n "results": {{\n{cases}\n }}\n}}\n'


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        use(build(Path(folder) / "repository"), patch)
        try:
            with results.far_apart():
                texts = {room: text_of(room, results.results(room)) for room in NUMERICS}
        except ValueError as problem:
            sys.exit(str(problem))
    for room, text in texts.items():
        (results.FOLDER / f"{room}.json").write_text(text)


if __name__ == "__main__":
    main()
