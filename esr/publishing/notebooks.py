"""Executed notebooks for readers: what each asks, and its page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nbformat

from esr import paths
from esr.publishing import rendering
from esr.publishing.experiments import BENCH, executed_notebooks, model_of


@dataclass(frozen=True)
class Executed:
    """An executed notebook: its stage, the model it ran on ("" for all together), its title and its question."""

    path: Path
    stage: str
    model: str
    title: str
    question: str

    @property
    def address(self) -> str:
        return f"notebooks/{self.path.stem}.html"

    @property
    def short(self) -> str:
        """Its number, and the model where it ran on one."""
        number = self.title.partition(".")[0] if self.title[:1].isdigit() else self.title
        return f"Notebook {number}" + (f" ({self.model})" if self.model else "")

    @property
    def name(self) -> str:
        """The title, and the model where the notebook ran on one."""
        return f"{self.title} ({self.model})" if self.model else self.title


def all_executed(root: Path | None = None) -> list[Executed]:
    """Executed notebooks in the order of the study, those of the benchmark last."""
    root = root or paths.ROOT
    found = sorted((root / "notebooks" / "executed").glob("*.ipynb"), key=lambda path: path.stem)
    return [read(path) for path in [*found, *executed_notebooks(BENCH, root)]]


def read(path: Path) -> Executed:
    """Title and question are those of the notebook's first Markdown cell."""
    cells = nbformat.read(path, as_version=4).cells
    text = next((cell.source for cell in cells if cell.cell_type == "markdown"), "")
    title = re.search(r"^# (.+)$", text, re.MULTILINE)
    question = re.search(r"\*\*Question\.\*\* (.+?)$", text, re.MULTILINE)
    stage = path.stem.partition("-")[0].split("_", 1)[-1]
    return Executed(path, stage, model_of(path), title[1] if title else path.stem, question[1] if question else "")


def body(executed: Executed) -> str:
    """The notebook's cells and outputs as HTML."""
    return rendering.notebook_body(nbformat.read(executed.path, as_version=4), executed.name)


def neighbours(executed: Executed, every: Sequence[Executed]) -> list[tuple[str, Executed]]:
    """The notebooks before and after, with what to call the link to each."""
    place = list(every).index(executed)
    before = [("Previous", every[place - 1])] if place else []
    return before + ([("Next", every[place + 1])] if place + 1 < len(every) else [])
