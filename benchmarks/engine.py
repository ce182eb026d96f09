"""The engine as the experiments use it: esr.steering.trials.generate_responses over single-threaded workers."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import esr.engine.workers
from benchmarks.matmul import time_matmuls
from benchmarks.results import MatmulTiming, Timing
from benchmarks.trials import TEMPERATURE, residual_norm
from esr.engine import backend
from esr.engine.workers import ChunkFunction, Report, Workers, default_count
from esr.models.loading import resident_model
from esr.steering import trials
from esr.steering.trials import Plan, Settings
from esr.storage.records import Trial

PATIENCE = 300.0  # seconds for all workers to load their model

study_chunk = trials.generate_chunk


def write_to_the_limit(chunk: dict, report: Report) -> bytes:
    """The experiments' chunk with stop tokens ignored. Runs in a worker."""
    with patch.object(trials, "stop_tokens", lambda _model, _tokenizer: []):
        return study_chunk(chunk, report)


class Untouched:
    """Intervention without an edit; like an edit, it keeps rows from sharing a prompt above its layer."""

    def __init__(self, layer: int):
        self.layer = layer

    def edit(self, hidden, step):
        return hidden

    def prompt_key(self, trial):
        return trial


def write_unsteered(chunk: dict, report: Report) -> bytes:
    """The steered chunk without edit and guard: the difference in time is the cost of steering."""
    with patch.object(backend, "guarded", lambda edits: ([], [Untouched(edits[0].layer)])):
        return write_to_the_limit(chunk, report)


def write_bare(chunk: dict, report: Report) -> bytes:
    """The experiments' chunk with prompts without the chat template, a fifth as long."""
    with patch.object(trials, "chat_tokens", _bare_tokens):
        return study_chunk(chunk, report)


def write_bare_to_the_limit(chunk: dict, report: Report) -> bytes:
    with patch.object(trials, "chat_tokens", _bare_tokens):
        return write_to_the_limit(chunk, report)


def _bare_tokens(tokenizer, prompt: str, _prefill=()) -> tuple[int, ...]:
    return tuple(tokenizer(prompt, add_special_tokens=True).input_ids)


def load_and_wait(chunk: dict, report: Report) -> bytes:
    """Load the model, then wait for the other workers: an early one would take a late one's share of the work.

    Raises TimeoutError after PATIENCE.
    """
    resident_model(chunk["model"])
    folder = Path(chunk["folder"])
    (folder / str(chunk["worker"])).touch()
    end = time.monotonic() + PATIENCE
    while len(list(folder.iterdir())) < chunk["workers"]:
        if time.monotonic() > end:
            raise TimeoutError(f"{chunk['workers']} workers did not load {chunk['model']} in {PATIENCE:.0f} s.")
        time.sleep(0.05)
    report(1, 0)
    return b""


def worker_count() -> int:
    """Worker processes on this machine's cores, at least one."""
    return max(1, default_count())


def everywhere(function: ChunkFunction, shared: dict, pool: Workers, what: str) -> list[bytes]:
    """Results of `function` in every worker at once; it must take long enough that no worker gets two calls."""
    chunks = [shared | {"worker": worker} for worker in range(pool.count)]
    with tempfile.TemporaryDirectory() as folder, patch.object(esr.engine.workers, "CACHE", Path(folder)):
        files = pool.map(function, chunks, what=what, items=[1] * len(chunks), item="workers")
        return [file.read_bytes() for file in files]


def load_workers(pool: Workers, model: str) -> None:
    """Start every worker and load its model: later timings are warm."""
    with tempfile.TemporaryDirectory() as meeting:
        everywhere(load_and_wait, {"model": model, "folder": meeting, "workers": pool.count}, pool, "loading")


def generate_responses(
    plans: Sequence[Plan], settings: Settings, pool: Workers, chunk: ChunkFunction, what: str
) -> tuple[list[Trial], float]:
    """esr.steering.trials.generate_responses with `chunk` in place of its chunk function, and the seconds it took.

    Finished chunks go to a temporary folder: nothing finished earlier is found.
    """
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        stack.enter_context(patch.object(esr.engine.workers, "CACHE", Path(folder)))
        stack.enter_context(patch.object(trials, "generate_chunk", chunk))
        stack.enter_context(patch.object(trials, "residual_norm", residual_norm))
        start = time.perf_counter()
        responses = trials.generate_responses(plans, settings, pool, what)
        return responses, time.perf_counter() - start


def time_engine(
    plans: Sequence[Plan], model: str, rows: int, tokens: int, pool: Workers, what: str, chunk=write_to_the_limit
) -> Timing:
    """Timing of the plans' responses of `tokens` tokens, `rows` per batch in each worker."""
    settings = Settings(model, TEMPERATURE, rows, tokens)
    responses, seconds = generate_responses(plans, settings, pool, chunk, what)
    return Timing(trials=len(responses), tokens=sum(len(response.tokens) for response in responses), seconds=seconds)


def time_matmul(model: str, rows: int, seconds: float, pool: Workers) -> MatmulTiming:
    """Rate of the model's matrix products alone, in all workers at once for `seconds`."""
    shared = {"model": model, "rows": rows, "seconds": seconds}
    steps = [json.loads(result) for result in everywhere(time_matmuls, shared, pool, "matmul")]
    return MatmulTiming(
        processes=len(steps),
        prompt_cost=steps[0]["prompt_cost"],
        tokens_per_second=sum(rows / step["seconds"] for step in steps),
        gflops_per_second=sum(step["flops"] / step["seconds"] for step in steps) / 1e9,
    )
