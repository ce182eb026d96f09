"""The offline judge: splits a response into attempts and scores each 0-100 (paper section 3)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from esr.config.registry import base_of
from esr.judging.embedding import RememberingEmbedder, load_embedder
from esr.judging.parts import both_sides, placebo_cuts, thirds
from esr.judging.relevance import Scorer
from esr.judging.restarts import Detector, Restart
from esr.paths import data_dir
from esr.storage.digests import digest
from esr.storage.records import Attempt, Cut, Judgement, Trial

SAME_WORD = re.compile(r"\b(\w+)(?:\W+\1\b){4}", re.IGNORECASE)


def is_degraded(text: str) -> bool:
    """Whether a word occurs five times in a row, ignoring case and punctuation (paper section 3)."""
    return SAME_WORD.search(text) is not None


def load_judge(model_id: str) -> OfflineJudge:
    """The offline judge with the scorer that the stage `relevance` fitted on responses of the model's base.

    Raises FileNotFoundError naming the missing file and the stage that writes it.
    """
    embedder = RememberingEmbedder(load_embedder())  # restarts and relevance need many of the same sentences
    scorer = Scorer.load(data_dir("relevance", base_of(model_id)) / "scorer.json", embedder)
    return OfflineJudge(scorer, Detector.load(embedder))


class OfflineJudge:
    """Splits responses at restarts and scores each attempt. `name` identifies detector and scorer."""

    def __init__(self, scorer: Scorer, detector: Detector):
        self.scorer, self.detector = scorer, detector
        self.name = f"offline-{digest(detector.fingerprint, scorer.fingerprint)}"

    def judge(self, trials: Sequence[Trial]) -> list[Judgement]:
        """One judgement per trial, in order; a response of white space has the outcome "empty"."""
        restarts = self.detector.find([trial.prompt for trial in trials], [trial.text for trial in trials])
        spans = [split_attempts(trial.text, found) for trial, found in zip(trials, restarts, strict=True)]
        cuts = [placebo_cuts(t.text) if len(attempts) == 1 else [] for t, attempts in zip(trials, spans, strict=True)]
        bodies = [
            (trial.prompt, text, trial.label)
            for trial, attempts, places in zip(trials, spans, cuts, strict=True)
            for text in (
                *(body for *_, body in attempts),
                *sum(both_sides(trial.text, places), ()),
                *thirds(trial.text),
            )
        ]
        prompts, texts, labels = zip(*bodies, strict=True) if bodies else ((), (), ())
        scores = (round(float(score), 4) for score in self.scorer.score(prompts, texts, labels))
        return [self._record(*parts, scores) for parts in zip(trials, spans, cuts, strict=True)]

    def _record(self, trial: Trial, spans, places: Sequence[int], scores: Iterator[float]) -> Judgement:
        """`scores`: of the attempts, of both sides of each cut, and of the thirds, in this order."""
        attempts = [
            Attempt(start=start, end=end, restart=phrase, score=next(scores)) for start, end, phrase, _ in spans
        ]
        cuts = [Cut(at=place, before=next(scores), after=next(scores)) for place in places]
        shared = {name: getattr(trial, name) for name in ("model", "condition", "latent", "prompt_id", "seed")}
        return Judgement(
            trial_id=trial.id,
            judge=self.name,
            outcome="scored" if attempts else "empty",
            attempts=attempts,
            degraded=is_degraded(trial.text),
            cuts=cuts,
            thirds=[next(scores) for _ in thirds(trial.text)],
            **shared,
        )


def split_attempts(text: str, restarts: Sequence[Restart]) -> list[tuple[int, int, str, str]]:
    """(start, end, restart phrase, body) of each attempt; empty for white space.

    Spans cover `text`. A body leaves out the restart phrase, which says nothing about the prompt.
    """
    if not text.strip():
        return []
    starts = [0, *(restart.start for restart in restarts)]
    phrases = ["", *(restart.phrase for restart in restarts)]
    ends = [*starts[1:], len(text)]
    return [
        (start, end, phrase, text[start + len(phrase) : end])
        for start, end, phrase in zip(starts, ends, phrases, strict=True)
    ]
