"""Time per trial and peak memory of the full path at few trials and at a hundred times more.

    python -m benchmarks.scaling RESULT.json FEW MANY

The path is esr.steering.trials.generate_responses: plans, chunks, guards, worker processes, files, records. Responses
of a few tokens and prompts without chat template keep many trials to minutes. Both sizes use the same (prompt, latent)
pairs equally often, in chunks of equal size. A separate process excludes other memory.
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
from benchmarks.trials import TEMPERATURE, default_model, plan_trials
from esr.engine.workers import Workers
from esr.progress import say
from esr.steering.trials import Settings
from esr.storage.files import write_text

TOKENS = 4  # of a response
CHUNK = 50  # responses: two workers get one chunk each at `few` trials, equally many at `many`
REPEATS = 5  # of `few`, which takes a second
EVERY = 0.2  # seconds between samples of the memory


@contextmanager
def peak_memory() -> Iterator[list[float]]:
    """Samples of the resident memory of this process and its workers during the block, in MB.

    Counts pages shared by processes in each of them.
    """
    seen, done = [resident_mb()], threading.Event()

    def sample() -> None:
        while not done.wait(EVERY):
            seen.append(resident_mb())

    thread = threading.Thread(target=sample, daemon=True)
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
    """Seconds for `n` responses."""
    plans = plan_trials(model, n, pairs)
    settings = Settings(model, TEMPERATURE, CHUNK, TOKENS)
    responses, seconds = generate_responses(plans, settings, pool, write_bare, f"scaling, {n} trials")
    if len(responses) != n:
        raise RuntimeError(f"generate_responses returned {len(responses)} responses for {n} trials.")
    return seconds


def measure(few: int, many: int) -> Scaling:
    """Time and memory at both sizes. Raises ValueError unless `many` is a multiple of `few`."""
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
