"""Label responses by hand: draw a random sample, annotate it blind, keep every annotation at once.

    esr label draw --model smollm2-135m-selfcorrect --per-condition 60
    esr label annotate --annotator NAME

An annotator sees the prompt and the response, never the condition, the concept or a judge's output
(data/judge/RUBRIC.md). Each annotation is appended with one write, so a session can end at any time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from esr.paths import DATA
from esr.storage.digests import seeded
from esr.storage.files import read_rows
from esr.storage.records import Annotation, SampledResponse, Trial

SAMPLE = DATA / "judge" / "sample.jsonl"
ANNOTATIONS = DATA / "judge" / "annotations.jsonl"
ID_LENGTH = 12  # characters of a trial's id at the end of its sampled response's
LOWEST, HIGHEST = 0.0, 100.0
Input = Callable[[str], str]
Part = Literal["develop", "report"]


def draw(trials: Sequence[Trial], per_condition: int, seed: int, origin: str, part: Part) -> list[SampledResponse]:
    """A simple random sample of `per_condition` responses of each model and condition, in random order.

    Each row has the probability with which it was drawn: rates of the condition follow by weighting with its inverse.
    """
    rng = seeded("sample", origin, per_condition, seed)
    groups: dict[tuple[str, str], list[Trial]] = {}
    for trial in trials:
        if trial.text.strip():
            groups.setdefault((trial.model, trial.condition), []).append(trial)
    drawn = [
        SampledResponse(
            id=f"{origin}-{trial.id[:ID_LENGTH]}", part=part, origin=origin, model=trial.model,
            condition=trial.condition, boost=trial.boost, latent=trial.latent, label=trial.label,
            prompt_id=trial.prompt_id, prompt=trial.prompt, text=trial.text,
            probability=min(1.0, per_condition / len(group)),
        )
        for _, group in sorted(groups.items()) for trial in rng.sample(group, min(per_condition, len(group)))
    ]  # fmt: skip
    rng.shuffle(drawn)
    return drawn


def annotate(
    sample: Sequence[SampledResponse],
    annotator: str,
    file: Path,
    read_line: Input = input,
    show: Callable[[str], object] = print,
) -> int:
    """Input for an annotation of every response that `annotator` has not annotated in `file`; how many were added.

    An empty line at the question for the first score ends the session.
    """
    done = {row.id for row in read_rows(file, Annotation) if row.annotator == annotator} if file.exists() else set()
    left = [row for row in sample if row.id not in done]
    for number, row in enumerate(left, start=1):
        show(f"\n--- {number} of {len(left)} ---\nPROMPT: {row.prompt}\n\n{row.text}\n")
        starts = _read_starts(row.text, read_line, show)
        scores = list(_read_scores(len(starts) + 1, read_line, show))
        if not scores:
            return number - 1
        recovered = _read_yes("Off topic first, on topic at the end? [y/n] ", read_line, show)
        append(file, Annotation(id=row.id, annotator=annotator, starts=starts, scores=scores, recovered=recovered))
    return len(left)


def append(file: Path, row: Annotation) -> None:
    """Append one row with a single write, and have it on disk."""
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, (row.model_dump_json() + "\n").encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def place(text: str, words: str, after: int = 0) -> int:
    """The character at which the restart that begins with `words` starts.

    Raises ValueError unless they occur exactly once after the previous restart.
    """
    found = text.find(words, after)
    if not words.strip() or found < 0:
        raise ValueError(f"{words!r} is not in the response after character {after}: copy the restart's first words.")
    if text.find(words, found + 1) >= 0:
        raise ValueError(f"{words!r} occurs more than once: copy more words of the restart.")
    return found


def _read_starts(text: str, read_line: Input, show: Callable[[str], object]) -> list[int]:
    starts: list[int] = []
    while words := read_line("First words of the next restart (Enter: no more): ").strip():
        try:
            starts.append(place(text, words, starts[-1] + 1 if starts else 0))
        except ValueError as error:
            show(str(error))
    return starts


def _read_scores(n: int, read_line: Input, show: Callable[[str], object]) -> Iterator[float]:
    """`n` scores, or none when the annotator ends the session at the first."""
    for number in range(1, n + 1):
        while True:
            given = read_line(
                f"Score of attempt {number}, 0-100{' (Enter: stop here)' if number == 1 else ''}: "
            ).strip()
            if not given and number == 1:
                return
            try:
                score = float(given)
            except ValueError:
                score = -1.0
            if LOWEST <= score <= HIGHEST:
                yield score
                break
            show(f"{given!r} is no number from 0 to 100.")


def _read_yes(question: str, read_line: Input, show: Callable[[str], object]) -> bool:
    while (given := read_line(question).strip().lower()) not in ("y", "n"):
        show("Answer y or n.")
    return given == "y"
