"""Run chunks in single-threaded worker processes and cache their results.

A chunk is the unit of work and of resumption. Its key is a hash of its function's name and of its content, which holds
the provenance of all that the function reads (esr.models.provenance). Its result is written once, atomically, under
`.cache/esr/`, where a later run finds it, and so do other hosts (esr.engine.shards). With one thread a process, results
do not depend on the number of cores or workers, and small models use cores better (SmolLM2-135M on two cores: 760
tokens/s in two processes, 540 in one).
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from esr.engine.processes import forking_python
from esr.engine.shards import Shard, check_merge, is_there, keep, wait_for_others
from esr.paths import CACHE
from esr.progress import Progress
from esr.storage.digests import digest

# (items finished, units done) -> None, called by a chunk's function as it goes
Report = Callable[[int, int], None]
ChunkFunction = Callable[[dict[str, Any], Report], bytes]
FEW = 32  # items: two workers start in about the time this process takes for as many responses
_counters: tuple[Any, ...] = ()  # in a worker: items and units done, shared with the parent


class Workers:
    """A pool of processes, alive until `close` or the end of its `with` block. Each loads its model once.

    count: processes; 0 runs chunks in this process, with one thread too. Default ESR_WORKERS, else one per core, or 0
    on a GPU. By default little work (FEW items) also runs in this process, which takes less time than starting workers,
    unless they can be forked (esr.pipeline.kernels).
    """

    def __init__(self, count: int | None = None):
        self.count = default_count() if count is None else count
        self.few = FEW if count is None and not forking_python() else 0
        self.pool: ProcessPoolExecutor | None = None
        self.counters: tuple = ()  # items and units done, shared with the processes

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_error) -> None:
        self.close()

    def close(self) -> None:
        """End the processes; work that has not begun is dropped. `map` would start new ones."""
        if self.pool:
            self.pool.shutdown(wait=True, cancel_futures=True)
            self.pool = None

    def map(
        self,
        function: ChunkFunction,
        chunks: Sequence[dict[str, Any]],
        *,
        what: str,
        items: Sequence[int],
        item: str,
        units_per_item: int | None = None,
        alone: bool = False,
    ) -> list[Path]:
        """Files with the results of `function` over JSON-like `chunks`, in their order; finished chunks are not rerun.

        items: items (responses) of each chunk; units_per_item: tokens an item takes at most; both are for progress.
        alone: run one chunk at a time, in one process, since the function uses all cores or GPUs by itself. An
        error in a chunk ends the run; chunks that finished before stay finished. A shard runs its own chunks, and
        raises ShardEnd where others are missing; a merging run raises ValueError where any is missing.
        """
        paths = [chunk_path(function, chunk) for chunk in chunks]
        missing = [i for i, path in enumerate(paths) if not is_there(path, CACHE)]
        check_merge(what, missing, len(paths))
        shard = Shard.current()
        if shard:
            missing = [i for i in missing if shard.has(i)]
        to_do = sum(items[i] for i in missing)
        progress = Progress(what, sum(items), item, max_units=to_do * units_per_item if units_per_item else None)
        progress.reuse(sum(items) - to_do)
        work = [(chunks[i], paths[i]) for i in missing]
        few = not alone and self.pool is None and to_do <= self.few
        if missing and (self.count == 0 or few):
            with one_thread():
                self._run_here(function, work, progress)
        elif missing:
            self._run(function, work, progress, 1 if alone else self.count)
        if shard:
            wait_for_others(what, shard, paths, CACHE)
        return paths

    def _run_here(self, function, work, progress) -> None:
        done = [0, 0]

        def report(finished: int, units: int) -> None:
            done[:] = done[0] + finished, done[1] + units
            progress.update(*done)

        for chunk, path in work:
            keep(path, function(chunk, report), CACHE)
        progress.update(*done, force=True)

    def _run(self, function, work, progress, count: int) -> None:
        if self.pool is None:
            context = multiprocessing.get_context("spawn")
            self.counters = (context.Value("q", 0), context.Value("q", 0))
            context.set_executable(forking_python() or sys.executable)
            self.pool = ProcessPoolExecutor(count, mp_context=context, initializer=_begin, initargs=(self.counters,))
        for counter in self.counters:
            counter.value = 0
        futures: set[Future] = {self.pool.submit(_work, function, chunk, path, CACHE) for chunk, path in work}
        while futures:
            done, futures = wait(futures, timeout=1.0, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()  # raises what the chunk raised
            progress.update(*(counter.value for counter in self.counters), force=not futures)


@contextmanager
def one_thread() -> Iterator[None]:
    """Within the block torch computes with one thread, as in a worker, for equal bits."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def default_count() -> int:
    """ESR_WORKERS, else 0 on a GPU, else the cores this process may use: affinity and cgroup quota count."""
    if "ESR_WORKERS" in os.environ:
        return int(os.environ["ESR_WORKERS"])
    from joblib import cpu_count

    from esr.models.devices import device

    return 0 if device().type == "cuda" else cpu_count()


def chunk_path(function: ChunkFunction, chunk: dict[str, Any]) -> Path:
    """File of a chunk's result. The function's module does not count: it may move."""
    name = function.__qualname__
    return CACHE / "chunks" / name / digest(name, chunk)


def split(items: Sequence, size: int) -> list[Sequence]:
    """`items` in the fewest runs of at most `size`, as even as possible, in order."""
    count = -(-len(items) // size)
    bounds = [round(i * len(items) / count) for i in range(count + 1)] if count else [0]
    return [items[a:b] for a, b in zip(bounds, bounds[1:], strict=False)]


def _begin(counters) -> None:
    global _counters
    _counters = counters
    import torch

    torch.set_num_threads(1)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    """End when the parent does: a killed parent cannot end its workers."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # this is a worker
    parent.join()
    os._exit(1)


def _work(function, chunk, path, cache) -> None:
    def report(finished: int, units: int) -> None:
        for counter, amount in zip(_counters, (finished, units), strict=True):
            with counter.get_lock():
                counter.value += amount

    keep(path, function(chunk, report), cache)
