"""The labelled sample as the output of stages: responses, and annotations in place of a judge's scores."""

import re
from pathlib import Path

from esr.paths import DATA
from esr.storage.digests import digest, trial_seed
from esr.storage.files import read_rows, write_rows
from esr.storage.records import Annotation, Attempt, Judgement, Latent, SampledResponse, Trial

MODEL = "smollm2-135m-selfcorrect"
SENTENCE = re.compile(r"[^.!?\n]*[.!?]?")


def trial_of(row: SampledResponse, **changes) -> Trial:
    fields = {
        "id": digest(row.id), "model": MODEL, "condition": row.condition, "latent": row.latent, "label": row.label,
        "prompt_id": row.prompt_id, "prompt": row.prompt, "seed": trial_seed(0, row.latent, row.prompt_id, 0),
        "boost": row.boost, "layer": 17, "max_new_tokens": 192, "temperature": 0.6, "repetition_penalty": 1.0,
        "tokens": list(range(len(row.text.split()))), "text": row.text, "finish_reason": "stop",
    }  # fmt: skip
    return Trial(**fields | changes)


def judgement_of(trial: Trial, starts=(), scores=(50.0,)) -> Judgement:
    """A judgement whose restarts are the sentences that begin at `starts`."""
    ends = [*starts, len(trial.text)]
    attempts = [
        Attempt(start=s, end=e, restart=SENTENCE.match(trial.text, s)[0] if n else "", score=score)
        for n, (s, e, score) in enumerate(zip([0, *starts], ends, scores, strict=True))
    ]
    shared = {name: getattr(trial, name) for name in ("model", "condition", "latent", "prompt_id", "seed")}
    return Judgement(
        trial_id=trial.id, judge="annotator-A", outcome="scored" if attempts else "empty", attempts=attempts,
        degraded=False, thirds=[10.0, 20.0, 30.0], **shared,
    )  # fmt: skip


def sampled(n: int) -> list[tuple[Trial, Judgement]]:
    """`n` responses of the sample; the sample is repeated, under other ids, where it is shorter."""
    annotated = {row.id: row for row in read_rows(DATA / "judge" / "annotations.jsonl", Annotation)}
    rows = [row for row in read_rows(DATA / "judge" / "sample.jsonl", SampledResponse) if row.condition != "corpus"]
    rows = [row for row in rows if row.text.strip() and row.id in annotated]
    pairs = []
    for place in range(n):
        row = rows[place % len(rows)]
        trial = trial_of(row, id=digest(row.id, place))
        pairs.append((trial, judgement_of(trial, annotated[row.id].starts, annotated[row.id].scores)))
    return pairs


def write_stage(data: Path, pairs: list[tuple[Trial, Judgement]], stage: str = "steer", model: str = MODEL) -> None:
    """Files of a stage as the pipeline writes them."""
    trials, judgements = zip(*pairs, strict=True)
    write_rows(data / stage / model / "responses.jsonl", trials)
    write_rows(data / ("judge" if stage == "steer" else stage) / model / "judgements.jsonl", judgements)


def write_latents(data: Path, latents: dict[int, str], base: str = "smollm2-135m") -> None:
    fields = {"words": [], "concreteness": 1.0, "density": 0.01, "prompt_activation": 0.0, "kept": True, "reason": ""}
    rows = [
        Latent(index=index, label=label, contexts=[f"before «{label}» after", f"more «{label}»"], **fields)
        for index, label in latents.items()
    ]
    write_rows(data / "latents" / base / "latents.jsonl", rows)
