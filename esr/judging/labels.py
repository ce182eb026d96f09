"""The labelled responses of data/judge: two annotators' readings of random samples, and what they agree on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
from jaxtyping import Float

from esr.judging.labelling import ANNOTATIONS, ID_LENGTH, SAMPLE, Part
from esr.storage.files import read_rows
from esr.storage.records import Annotation, SampledResponse

DEFAULT = "smollm2-135m"  # whose responses, and its fine-tuned model's, are the first labelled
NEAR = 10  # characters between two starts of the same attempt, data/judge/RUBRIC.md section 3


@dataclass(frozen=True)
class Labelled:
    """A sampled response and its annotations, one per annotator, in the order of their names."""

    response: SampledResponse
    annotations: tuple[Annotation, ...]

    @property
    def shared_starts(self) -> list[int]:
        """Starts of attempts that every annotator found, by the first annotator's characters."""
        first, *others = self.annotations
        return [s for s in first.starts if all(is_near(s, other.starts) for other in others)]

    @property
    def disputed_starts(self) -> list[int]:
        """Starts that some annotators found and others did not."""
        return [start for start in self.every_start if not is_near(start, self.shared_starts)]

    @property
    def every_start(self) -> list[int]:
        """Starts that some annotator found."""
        return [start for annotation in self.annotations for start in annotation.starts]

    @property
    def agrees(self) -> bool:
        """Whether all annotators found the same attempts."""
        shared = len(self.shared_starts)
        return all(len(annotation.starts) == shared for annotation in self.annotations)

    def attempts(self) -> list[tuple[str, float]]:
        """Text and mean score of each attempt; of the first alone where the annotators found others after it; none
        where they did not agree on its end. The restart's own words are part of the text."""
        starts = [0, *self.annotations[0].starts, len(self.response.text)]
        texts = [self.response.text[a:b] for a, b in zip(starts, starts[1:], strict=False)]
        if self.agrees:
            scores = np.mean([annotation.scores for annotation in self.annotations], axis=0)
            return list(zip(texts, scores.tolist(), strict=True))
        firsts = [annotation.starts[:1] for annotation in self.annotations]
        if all(firsts) and all(is_near(firsts[0][0], other) for other in firsts):
            return [(texts[0], float(np.mean([annotation.scores[0] for annotation in self.annotations])))]
        return []


def restart_shares(trial_ids: Sequence[str]) -> Float[np.ndarray, " trials"]:
    """Share of annotators that find a restart in each trial's response; NaN where they did not read it.

    Of the part `report` alone: a judge is better than usual on responses that it was made with.
    """
    shares = {
        row.response.id[-ID_LENGTH:]: float(np.mean([bool(by.starts) for by in row.annotations]))
        for row in read_labelled("report")
    }
    return np.array([shares.get(trial_id[:ID_LENGTH], np.nan) for trial_id in trial_ids])


def plain_responses(origin: str, min_score: float) -> list[SampledResponse]:
    """Unsteered, unprefilled responses of a run that no annotator finds to restart or scores below `min_score`."""
    rows = [row for part in get_args(Part) for row in read_labelled(part)]
    return [
        row.response for row in rows
        if row.response.origin == origin and row.response.boost == 0 and "prefilled" not in row.response.condition
        and all(not by.starts and by.scores[0] >= min_score for by in row.annotations)
    ]  # fmt: skip


def is_near(start: int, others: Sequence[int]) -> bool:
    """Whether one of `others` is a start of the same attempt."""
    return any(abs(start - other) <= NEAR for other in others)


def read_labelled(part: Part) -> list[Labelled]:
    """The labelled responses of a part, in the order of the sample.

    Raises FileNotFoundError, or ValueError for an annotation of a response that is not in the sample or has another
    number of scores than attempts.
    """
    sample = {row.id: row for row in read_rows(SAMPLE, SampledResponse)}
    found: dict[str, dict[str, Annotation]] = defaultdict(dict)
    for row in read_rows(ANNOTATIONS, Annotation):
        if row.id not in sample:
            raise ValueError(f"{ANNOTATIONS}: {row.id} is not in {SAMPLE.name}: remove the annotation.")
        if len(row.scores) != len(row.starts) + 1:
            raise ValueError(f"{ANNOTATIONS}: {row.id}, {row.annotator}: {len(row.scores)} scores of another number of "
                             f"attempts, {len(row.starts) + 1}: correct the annotation.")  # fmt: skip
        found[row.id][row.annotator] = row
    return [
        Labelled(row, tuple(by for _, by in sorted(found[row.id].items())))
        for row in sample.values() if row.part == part and len(found[row.id]) > 1
    ]  # fmt: skip
