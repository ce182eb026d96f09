"""Does the full path cost more per trial, or more memory, when there are a hundred times more trials?

    python -m benchmarks.scaling RESULT.json FEW MANY

The path is esr.steering.trials.generate_responses with all it does: plans, chunks, guards, worker processes, files,
records. Two things are made small so that many trials take minutes: answers of a few tokens, and prompts without chat
template. Both sizes hold the same (prompt, latent) pairs, each equally often, in chunks of equal size. A process of
its own, so that nothing else's memory is counted.
"""

from __future__ import annotations

import argparse
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import psutil

from benchmarks.engine import generate_responses, load_workers, worker_count, write_bare
from benchmarks.results import Scale, Scaling
from benchmarks.trials import TEMPERATURE, default_model, plan_trials, residual_norm
from esr.engine.workers import Workers
from esr.progress import say
from esr.steering.trials import Settings
from esr.storage.files import write_text

TOKENS = 4  # of an answer
CHUNK = 50  # answers: at `few` trials two workers have one chunk each, at `many` they have as many as the other
REPEATS = 5  # of `few`, which takes a second
EVERY = 0.2  # seconds between looks at the memory


@contextmanager
def peak_memory() -> Iterator[list[float]]:
    """Resident memory of this process and its workers in MB, looked at while the block runs: a list to take max of.

    Pages that processes share are counted in each.
    """
    seen, done = [resident_mb()], threading.Event()

    def look() -> None:
        while not done.wait(EVERY):
            seen.append(resident_mb())

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()
        seen.append(resident_mb())


def resident_mb() -> float:
    total = 0
    for process in (me := psutil.Process(), *me.children(recursive=True)):
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total / 1e6


def write(model: str, n: int, pairs: int, pool: Workers) -> float:
    """Seconds that `n` answers take."""
    plans = plan_trials(model, n, pairs)
    settings = Settings(model, TEMPERATURE, CHUNK, TOKENS, residual_norm(model))
    responses, seconds = generate_responses(plans, settings, pool, write_bare, f"scaling, {n} trials")
    if len(responses) != n:
        raise RuntimeError(f"generate_responses returned {len(responses)} answers for {n} trials.")
    return seconds


def measure(few: int, many: int) -> Scaling:
    """Raises ValueError when `many` is no multiple of `few`: the pairs would not be used equally often."""
    if many % few:
        raise ValueError(f"{many} trials are no multiple of {few}: choose numbers that are.")
    model, scales = default_model(), {}
    with Workers(worker_count()) as pool:
        load_workers(pool, model)
        write(model, few, few, pool)  # the first run of a process is slower
        for n, repeats in ((few, REPEATS), (many, 1)):
            with peak_memory() as megabytes:
                seconds = [write(model, n, few, pool) for _ in range(repeats)]
            per_trial = median(seconds) / n
            scales[n] = Scale(seconds=seconds, seconds_per_trial=per_trial, peak_memory_mb=max(megabytes))
            say(f"scaling: {n} trials, {1000 * per_trial:.1f} ms a trial, {max(megabytes):.0f} MB")
    return Scaling(n_few=few, n_many=many, few=scales[few], many=scales[many])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description="Time and memory by trials.")
    parser.add_argument("result", type=Path)
    parser.add_argument("few", type=int)
    parser.add_argument("many", type=int)
    options = parser.parse_args()
    write_text(options.result, measure(options.few, options.many).model_dump_json())


if __name__ == "__main__":
    main()
