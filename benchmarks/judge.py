"""Responses per second of the offline judge on all cores: `python -m benchmarks.judge`.

Writes paper/numbers/judge_speed.json: median, minimum and maximum of five rounds over texts of 512 tokens, the
longest responses of the published study. They are labelled responses one after another, cut to that length.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

from joblib import cpu_count

from benchmarks.trials import default_model
from esr.judging.labels import read_labelled
from esr.judging.offline import load_judge
from esr.judging.validation import as_trials
from esr.reporting.numbers import write_numbers
from esr.statistics.estimates import Estimate
from esr.storage.records import Trial

ROUNDS = 5
CHARACTERS = 2250  # of 512 tokens: 4.4 characters a token in these responses


def long_trials(trials: Sequence[Trial]) -> list[Trial]:
    """Trials with texts of `CHARACTERS`, each of the texts of several."""
    text = "\n\n".join(trial.text for trial in trials)
    texts = [text[at : at + CHARACTERS] for at in range(0, len(text) - CHARACTERS, CHARACTERS)]
    return [trial.model_copy(update={"text": text}) for trial, text in zip(trials, texts, strict=False)]


def main() -> None:
    model = default_model()
    trials = long_trials(as_trials(read_labelled("develop")))
    speeds = []
    for _ in range(ROUNDS):
        judge = load_judge(model)  # a new one: it caches prompts and labels
        begin = time.perf_counter()
        judge.judge(trials)
        speeds.append(len(trials) / (time.perf_counter() - begin))
    median, n = statistics.median(speeds), len(trials)
    result = Estimate(median, min(speeds), max(speeds), n)
    write_numbers("judge_speed", {"responses_per_second": result, "rounds": ROUNDS, "cores": cpu_count()})
    print(f"{median:.0f} responses per second ({min(speeds):.0f} to {max(speeds):.0f}), {n} responses, {ROUNDS} rounds")


if __name__ == "__main__":
    main()
