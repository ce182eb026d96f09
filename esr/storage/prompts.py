"""The prompts in data/prompts."""

from __future__ import annotations

from esr.paths import PROMPTS
from esr.storage.files import read_lines
from esr.storage.records import Prompt


def read_prompts(split: str) -> list[Prompt]:
    """Prompts of `data/prompts/<split>.txt`, one per line; `split` is "evaluation", "held_out" or "finetune".

    Empty lines are skipped. Raises FileNotFoundError, or ValueError that names the file and the line when there is no
    prompt, a duplicate, a line of spaces alone or text that is not UTF-8.
    """
    path = PROMPTS / f"{split}.txt"
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: a split needs a file of prompts, one per line.")
    lines: dict[str, int] = {}
    for number, line in enumerate(read_lines(path), start=1):
        text = line.strip()
        if line and not text:
            raise ValueError(f"{path}, line {number} holds spaces alone: write a prompt there or empty the line.")
        if text in lines:
            raise ValueError(f"{path}, line {number} holds a prompt twice: {text!r}. Remove it, or line {lines[text]}.")
        if text:
            lines[text] = number
    if not lines:
        raise ValueError(f"{path} holds no prompt: write one per line.")
    return [Prompt(id=f"{split}-{number:02d}", text=text) for number, text in enumerate(lines, start=1)]
