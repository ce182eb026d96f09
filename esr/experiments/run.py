"""The path of every experiment: planned trials to responses, judgements and a table, each kept on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from esr.engine.workers import Workers
from esr.judging.offline import load_judge
from esr.statistics import metrics
from esr.steering.trials import Plan, Settings, generate_responses
from esr.storage.files import read_rows, write_rows
from esr.storage.records import Judgement, Threshold, Trial


def generate(plans: Sequence[Plan], settings: Settings, folder: Path, what: str) -> list[Trial]:
    """The plans' responses, in order, also written to `folder/responses.jsonl`."""
    with Workers() as workers:
        trials = generate_responses(plans, settings, workers, what)
    write_rows(folder / "responses.jsonl", trials)
    return trials


def judge(trials: Sequence[Trial], folder: Path) -> list[Judgement]:
    """The offline judge's judgements of one model's trials, in order, also written to `folder/judgements.jsonl`."""
    judgements = load_judge(trials[0].model).judge(trials)
    write_rows(folder / "judgements.jsonl", judgements)
    return judgements


def read_pair(folder: Path) -> tuple[list[Trial], list[Judgement]]:
    """Responses and judgements of a folder, paired by row. Raises ValueError when their trials differ."""
    trials, judgements = read_rows(folder / "responses.jsonl", Trial), read_rows(folder / "judgements.jsonl", Judgement)
    if [t.id for t in trials] != [j.trial_id for j in judgements]:
        raise ValueError(f"{folder}: responses and judgements are not of the same trials; run their stages again.")
    return trials, judgements


def converged(thresholds: Sequence[Threshold]) -> list[Threshold]:
    """Converged thresholds. Raises ValueError when there is none."""
    usable = [t for t in thresholds if t.converged]
    if not usable:
        raise ValueError(
            "No latent converged: the notebook of `calibrate` says why; allow more queries or a larger max_sd_ratio."
        )
    return usable


def paired(frame: pd.DataFrame, one: str, other: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scored trials of two conditions that share model, latent, prompt and seed, in the same order.

    Trials unscored or missing in either condition are left out. Raises ValueError when none remain.
    """
    key = [name for name in metrics.KEY if name != "condition"]
    usable = frame[metrics.scored(frame)]
    first, second = (usable[usable.condition == name].set_index(key) for name in (one, other))
    shared = first.index.intersection(second.index)
    if shared.empty:
        raise ValueError(f"Conditions {one!r} and {other!r} share no scored trial of the same latent, prompt and seed.")
    return first.loc[shared].reset_index(), second.loc[shared].reset_index()
