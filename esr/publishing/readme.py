"""The generated blocks of README.md, docs/results.md and data/README.md: findings, tables, verdicts, the archive.

    python -m esr.publishing.readme [--check]

A block stands between `<!-- begin NAME -->` and `<!-- end NAME -->`; what is between them is replaced by the block's
text, made from paper/numbers, data/experiments.yaml and data/archive.json. Where a block stands is up to the writer.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

from esr import paths
from esr.publishing.experiments import (
    VERDICTS,
    executed_notebooks,
    figure_files,
    read_experiments,
    seconds_of,
    verdicts_of,
)
from esr.publishing.findings import Read, findings
from esr.reporting import claims, tables
from esr.reporting.claims import ABOUT
from esr.reporting.numbers import read_numbers
from esr.storage.files import write_text

DOCUMENTS = ("README.md", "docs/results.md", "data/README.md")
BLOCK = re.compile(r"(<!-- begin ([\w-]+) -->\n).*?(<!-- end \2 -->)", re.DOTALL)
CAPTION = """*A steered response of the model that was taught to restart: of those that restart and improve, the one
with the median gain. Steering is on throughout. The offline judge scores each attempt. How many do so: below.*"""
MARK = re.compile(r"<!-- (?:begin|end) ([\w-]+) -->")


def tally(read: Read) -> str:
    """How many claims have each verdict, by what they are about."""
    rows = claims.as_rows(read("claims"))
    lines = [["verdict", *ABOUT, "all"], ["---"] + ["--:"] * (len(ABOUT) + 1)]
    for verdict in VERDICTS:
        counts = [sum(row.verdict == verdict and row.about == about for row in rows) for about in ABOUT]
        if sum(counts):
            lines.append([verdict, *(str(n or "–") for n in counts), str(sum(counts))])
    lines.append(["all", *(str(sum(row.about == about for row in rows)) for about in ABOUT), str(len(rows))])
    return _markdown(lines)


def experiments_table(read: Read) -> str:
    """Experiment, notebook, figure, verdicts, time: one line per experiment, with links from README."""
    rows, times = claims.as_rows(read("claims")), _times(read)
    lines = [["", "experiment", "notebook", "figure", "verdicts", "time"], ["---"] * 6]
    for experiment in read_experiments().experiments:
        notebooks = [_link(path.stem, path) for path in executed_notebooks(experiment.stage, paths.ROOT)]
        figures = [_link(path.stem, path) for path in figure_files(experiment.figures, paths.ROOT)]
        verdicts = [f"{n} {verdict}" for verdict, n in verdicts_of(experiment.id, rows).items()]
        cells = [", ".join(parts) or "–" for parts in (notebooks, figures, verdicts)]
        lines.append([experiment.id, experiment.title, *cells, _duration(seconds_of(experiment.stage, times))])
    return _markdown(lines)


def archive_table(_read: Read) -> str:
    """What the archive of the study's data holds, by stage; a sentence where there is none yet."""
    file = paths.DATA / "archive.json"
    if not file.exists():
        return "No archive has been made yet: `make archive`."
    made = json.loads(file.read_text(encoding="utf-8"))
    lines = [["stage", "files", "MB"], ["---", "--:", "--:"]]
    lines += [[name, str(s["files"]), f"{s['bytes'] / 1e6:.1f}"] for name, s in made["stages"].items()]
    size = f"`{made['name']}`, {made['bytes'] / 1e6:.1f} MB, SHA-256 `{made['sha256']}`. Unpacked:"
    return f"{size}\n\n{_markdown(lines)}"


def example(_read: Read) -> str:
    """The figure of a response that restarts; a sentence where the study has none."""
    name = "example"
    described = {key: text for e in read_experiments().experiments for key, text in e.figures.items()}[name]
    drawn = figure_files({name: described})
    images = [f"![{text}]({path.relative_to(paths.ROOT).as_posix()})\n\n{CAPTION}" for path, text in drawn.items()]
    return "\n".join(images) or "(The study draws a response that restarts and improves here, when it has one.)"


BLOCKS: dict[str, Callable[[Read], str]] = {
    "example": example,
    "findings": findings,
    "rates": lambda read: tables.results_table(read("esr")),
    "outcomes": lambda read: tables.outcomes_table(read("esr")),
    "finetuning": lambda read: tables.finetuning_table(read("finetune")),
    "judge": lambda read: tables.judge_table(read("judge")),
    "claims": lambda read: claims.table(claims.as_rows(read("claims"))),
    "tally": tally,
    "experiments": experiments_table,
    "archive": archive_table,
}


def filled(text: str, read: Read) -> str:
    """A document with its blocks made anew from numbers files.

    Raises ValueError for a block without an end, one that is there twice, or one that is not of `BLOCKS`.
    """
    whole = [match[2] for match in BLOCK.finditer(text)]
    for name in MARK.findall(text):
        if name not in BLOCKS:
            raise ValueError(f"There is no block {name!r}: name one of {', '.join(BLOCKS)}.")
        if whole.count(name) != 1 or MARK.findall(text).count(name) != 2:
            raise ValueError(f"The block {name!r} needs one begin and one end after it, as in <!-- end {name} -->.")
    return BLOCK.sub(lambda match: f"{match[1]}{BLOCKS[match[2]](read)}\n{match[3]}", text)


def stale(root: Path, read: Read) -> dict[Path, str]:
    """Documents whose blocks are out of date, with the text they should have."""
    found = {}
    for path in (root / name for name in DOCUMENTS):
        text = path.read_text(encoding="utf-8")
        if (fresh := filled(text, read)) != text:
            found[path] = fresh
    return found


def _times(read: Read) -> dict:
    """Measured times of stages; empty where nobody measured them."""
    try:
        return read("times")
    except FileNotFoundError:
        return {}


def _link(text: str, path: Path) -> str:
    return f"[{text}]({path.relative_to(paths.ROOT).as_posix()})"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _markdown(lines: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m esr.publishing.readme", description="Blocks of README.md.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 when a block is out of date")
    given = parser.parse_args(arguments)
    try:
        found = stale(paths.ROOT, read_numbers)
    except (FileNotFoundError, KeyError, ValueError) as error:
        print(paths.from_root(str(error)), file=sys.stderr)
        return 1
    for path, text in found.items():
        done = "out of date: run python -m esr.publishing.readme" if given.check else "written"
        print(f"{path.relative_to(paths.ROOT)}: {done}")
        if not given.check:
            write_text(path, text)
    return int(given.check and bool(found))


if __name__ == "__main__":
    sys.exit(main())
