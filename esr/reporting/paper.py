"""Compile paper/paper.typ to paper/paper.pdf, offline and byte-stable.

    python -m esr.reporting.paper

The text takes every measured number from paper/numbers/*.json and every published one from data/published.json; a
missing key stops the compilation.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import typst

from esr import paths
from esr.config.inheritance import sections_of
from esr.config.registry import model_entry
from esr.config.schema import load_yaml
from esr.config.study import EXPERIMENTS, STUDY
from esr.storage.files import write_bytes

TIMESTAMP = 1767225600  # 2026-01-01, seconds since 1970: equal text gives equal bytes on any day
SHOWN_PARAMS = {"generation", "organism"}  # sections of params.yaml that the text prints
FONTS = "Libertinus Serif, New Computer Modern or DejaVu Sans Mono"  # shipped with typst


class PaperError(RuntimeError):
    """The paper cannot be typeset; the message names cause and remedy."""


def compile_paper(source: Path | None = None) -> Path:
    """Path of the PDF typeset beside `source` (default paper/paper.typ), written atomically.

    Uses only typst's built-in fonts: every machine sets the same pages. Raises PaperError naming a missing file,
    number, figure, citation or font.
    """
    source = source or paths.ROOT / "paper" / "paper.typ"
    _require(source)
    try:
        content, warnings = typst.compile_with_warnings(
            str(source), root=str(paths.ROOT), format="pdf", ignore_system_fonts=True, timestamp=TIMESTAMP
        )
    except typst.TypstError as error:
        raise PaperError(
            f"{source.name} cannot be typeset: {_explain(error)}. When a number or a figure is missing, run dvc repro."
        ) from None
    fonts = [warning for warning in warnings if "font" in warning.message]
    if fonts:
        raise PaperError(f"{source.name}: {fonts[0].message}: use {FONTS}.")
    for warning in warnings:
        print(f"{source.name}: warning: {warning.message}", file=sys.stderr)
    target = source.with_suffix(".pdf")
    write_bytes(target, content)
    return target


def _require(source: Path) -> None:
    """Raises PaperError naming every missing file the paper reads: typst names one at a time."""
    if not source.exists():
        raise PaperError(f"{source} does not exist.")
    text = source.read_text(encoding="utf-8")
    named = re.findall(r'\b(?:json|yaml|image|bibliography)\(\s*"([^"]+)"\s*[,)]', text)
    missing = sorted({name for name in named if not (source.parent / name).resolve().exists()})
    if missing:
        raise PaperError(f"{source.name} needs {', '.join(missing)}, not there yet: run dvc repro to make them.")


def _explain(error: typst.TypstError) -> str:
    """The message with file, line and column, which typst gives only in its diagnostic drawing."""
    place = re.search(r"┌─ (?:\S*/)?(\S+)", error.diagnostic)
    return f"{error.message} at {place[1]}" if place else error.message


def main() -> int:
    study = load_yaml(STUDY)["study"]
    if idle := [stage for stage in EXPERIMENTS if not study[stage]]:
        print(f"The paper shows experiments that no chosen model runs ({', '.join(idle)}): paper.pdf stays as it is.")
        return 0
    if changed := [m for m in study["models"] if SHOWN_PARAMS & sections_of(model_entry(m).params)]:
        print(f"The paper prints generation and organism of params.yaml, and {', '.join(changed)} has its own in "
              "data/models.yaml: paper.pdf stays as it is.")  # fmt: skip
        return 0
    try:
        target = compile_paper()
    except PaperError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{target.relative_to(paths.ROOT)}: {target.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
