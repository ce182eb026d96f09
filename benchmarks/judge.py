"""Responses per second of the offline judge on all cores: `python -m benchmarks.judge`.

Writes paper/numbers/judge_speed.json: median, minimum and maximum of five rounds over the annotated responses.
"""

from __future__ import annotations

import statistics
import time

from joblib import cpu_count

from benchmarks.trials import default_model
from esr.judging.annotations import as_trials
from esr.judging.offline import load_judge
from esr.paths import DATA
from esr.reporting.numbers import write_numbers
from esr.statistics.estimates import Estimate
from esr.storage.files import read_rows
from esr.storage.records import AnnotatedResponse

ROUNDS = 5


def main() -> None:
    model = default_model()
    trials = as_trials(read_rows(DATA / "judge" / "annotated.jsonl", AnnotatedResponse))
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
