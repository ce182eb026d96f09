"""The prompts in data/prompts."""

from __future__ import annotations

from esr.paths import PROMPTS
from esr.storage.records import Prompt


def read_prompts(split: str) -> list[Prompt]:
    """Prompts of `data/prompts/<split>.txt`, one per line; `split` is "evaluation", "held_out" or "finetune".

    Raises FileNotFoundError, or ValueError when the file has no prompt or a duplicate.
    """
    path = PROMPTS / f"{split}.txt"
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: a split needs a file of prompts, one per line.")
    texts = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not texts:
        raise ValueError(f"{path} holds no prompt: write one per line.")
    repeated = {t for t in texts if texts.count(t) > 1}
    if repeated:
        raise ValueError(f"{path} holds a prompt twice: {sorted(repeated)[0]!r}. Remove one.")
    return [Prompt(id=f"{split}-{number:02d}", text=text) for number, text in enumerate(texts, start=1)]
