"""Run the benchmark and write paper/numbers/bench.json: `make bench`, or

    python -m benchmarks.run            about ten minutes on two cores
    python -m benchmarks.run --quick    every method twice, very short; prints the numbers only
    python -m benchmarks.run table      the table of the last run in Markdown

Methods take turns in rounds, in reverse order every second round: a machine that slows down affects all of them.
Loading is not timed.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import torch
import transformers
from joblib import cpu_count

from benchmarks import baselines, vllm_client
from benchmarks.engine import (
    load_workers,
    time_engine,
    time_matmul,
    worker_count,
    write_bare_to_the_limit,
    write_unsteered,
)
from benchmarks.results import Machine, MatmulTiming, Round, Scaling, Timing, summarize, table
from benchmarks.schedule import Schedule
from benchmarks.trials import BOOST, TEMPERATURE, Workload, default_model, load_workload, plan_trials
from esr.config.schema import ConfigError
from esr.engine.workers import Workers
from esr.models.loading import load_model, load_tokenizer
from esr.models.provenance import environment
from esr.paths import ROOT
from esr.pipeline.run import execute
from esr.progress import say
from esr.reporting.numbers import read_numbers, write_numbers

NOTEBOOK = ROOT / "benchmarks" / "bench.ipynb"
TURNS = ("matmul", "engine", "unsteered", "generate_one", "generate_batch", "vllm_lens")


@dataclass(frozen=True)
class Sizes:
    """Size of a run: a timing takes ten seconds or more, all of them ten minutes or less.

    rounds: runs of every method; tokens: of a response; rows: batch size of an engine worker, as in the experiments;
    one, batch, vllm: trials of the other methods, the first of the engine's; matmul: seconds; batch_sizes: rows per
    worker, at batch_trials or slightly more trials each, with responses of batch_tokens to prompts without chat
    template, which leaves mostly token steps; few, many: trials of the scaling.
    """

    rounds: int
    tokens: int
    rows: int
    one: int
    batch: int
    vllm: int
    matmul: float
    batch_sizes: tuple[int, ...]
    batch_tokens: int
    batch_trials: int
    few: int
    many: int

    def batch_of(self, rows: int) -> int:
        """Trials of a worker at batch size `rows`: whole batches."""
        return -(-self.batch_trials // rows) * rows


FULL = Sizes(3, 96, 192, 4, 96, 96, 5.0, (32, 64, 96, 128, 192), 24, 96, 100, 10_000)
QUICK = Sizes(2, 8, 8, 1, 4, 4, 0.5, (2, 4), 4, 4, 10, 40)
# Estimated seconds of each step of FULL on two cores, until measured
GUESSES = {"loading": 40, "matmul": 5, "engine": 26, "unsteered": 26, "generate_one": 10, "generate_batch": 20}
GUESSES |= {"vllm_lens": 20, "batch sizes": 45, "scaling": 120}


def measure(sizes: Sizes, folder: Path) -> dict:
    """Content of bench.json. folder: for logs and results of subprocesses."""
    model_id, with_vllm = default_model(), vllm_client.available()
    turns = [turn for turn in TURNS if turn != "vllm_lens" or with_vllm]
    if not with_vllm:
        say("vLLM is not installed (make setup-vllm): its numbers will be null")
    orders = [turns[:: 1 if n % 2 == 0 else -1] for n in range(sizes.rounds)]
    steps = ["loading", *(turn for order in orders for turn in order), "batch sizes", "scaling"]
    schedule = Schedule(steps, GUESSES if sizes is FULL else dict.fromkeys(GUESSES, 10.0))
    versions: dict[str, str] = {}
    with ExitStack() as stack:
        pool = stack.enter_context(Workers(worker_count()))
        plans = plan_trials(model_id, pool.count * max(sizes.rows, *map(sizes.batch_of, sizes.batch_sizes)))
        with schedule.step("loading"):
            work = load_workload(plans, model_id, load_tokenizer(model_id))
            vllm = None
            if with_vllm:
                vllm = stack.enter_context(vllm_client.Vllm(work.first(sizes.vllm), sizes.tokens, folder / "vllm.log"))
            methods = load_methods(sizes, plans, work, pool)
            if vllm:
                versions = vllm.wait()
                methods["vllm_lens"] = vllm.write
        rounds = [run_round(methods, order, schedule) for order in orders]
        batch_sizes = time_batch_sizes(sizes, plans, model_id, pool, schedule)
    with schedule.step("scaling"):
        scaling = run_scaling(sizes, folder / "scaling.json")
    settings = asdict(sizes) | {"boost": BOOST, "temperature": TEMPERATURE, "stop_tokens": "ignored"}
    engine_prompts = work.first(worker_count() * sizes.rows).prompts
    settings |= {"prompt_tokens": sum(map(len, engine_prompts)) / len(engine_prompts)}
    settings |= {"repetition_penalty": work.repetition_penalty, "layer": work.layer}
    return summarize(rounds, batch_sizes, scaling, settings, describe_machine(model_id, versions))


def load_methods(sizes: Sizes, plans: Sequence, work: Workload, pool: Workers) -> dict[str, Callable]:
    """Each method as a function that runs it once and returns its timing; all are loaded and warm."""
    load_workers(pool, work.model)
    model = load_model(work.model)
    baselines.ignore_stop_tokens(model)
    torch.set_num_threads(cpu_count())
    plans = plans[: pool.count * sizes.rows]
    methods = {
        "matmul": lambda: time_matmul(work.model, sizes.rows, sizes.matmul, pool),
        "engine": lambda: time_engine(plans, work.model, sizes.rows, sizes.tokens, pool, "engine"),
        "unsteered": lambda: time_engine(
            plans, work.model, sizes.rows, sizes.tokens, pool, "unsteered", write_unsteered
        ),
        "generate_one": lambda: time_baseline(baselines.generate_one, model, work.first(sizes.one), sizes.tokens),
        "generate_batch": lambda: time_baseline(baselines.generate_batch, model, work.first(sizes.batch), sizes.tokens),
    }
    time_engine(plans[: 4 * pool.count], work.model, 4, 4, pool, "warm-up")
    for generate in (baselines.generate_one, baselines.generate_batch):
        time_baseline(generate, model, work.first(2), 4)
    return methods


def time_baseline(generate: Callable, model, work: Workload, tokens: int) -> Timing:
    settings = baselines.sampling(TEMPERATURE, work.repetition_penalty)
    torch.manual_seed(0)
    start = time.perf_counter()
    responses = generate(model, work.prompts, work.vectors, work.layer, tokens, **settings)
    seconds = time.perf_counter() - start
    return Timing(trials=len(responses), tokens=sum(map(len, responses)), seconds=seconds)


def run_round(methods: dict[str, Callable], turns: Sequence[str], schedule: Schedule) -> Round:
    timings: dict[str, Timing | MatmulTiming | None] = {"vllm_lens": None}
    for turn in turns:
        with schedule.step(turn):
            timings[turn] = methods[turn]()
        say(f"    {turn}: {timings[turn].tokens_per_second:.1f} tokens/s")
    return Round(**timings)


def time_batch_sizes(sizes: Sizes, plans: Sequence, model: str, pool: Workers, schedule: Schedule) -> dict[int, Timing]:
    """Timing of the engine at each number of rows per worker."""
    timings = {}
    with schedule.step("batch sizes"):
        for rows in sizes.batch_sizes:
            subset = plans[: pool.count * sizes.batch_of(rows)]
            timings[rows] = time_engine(
                subset, model, rows, sizes.batch_tokens, pool, f"{rows} rows", write_bare_to_the_limit
            )
            say(f"    {rows} rows: {timings[rows].tokens_per_second:.1f} tokens/s")
    return timings


def run_scaling(sizes: Sizes, result: Path) -> Scaling:
    command = [sys.executable, "-m", "benchmarks.scaling", str(result), str(sizes.few), str(sizes.many)]
    subprocess.run(command, check=True, cwd=ROOT)
    return Scaling.model_validate_json(result.read_text(encoding="utf-8"))


def describe_machine(model: str, versions: dict[str, str]) -> Machine:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return Machine(
        cpu=names[0] if names else platform.machine(),
        cores=cpu_count(),
        workers=worker_count(),
        threads=cpu_count(),
        memory_gb=psutil.virtual_memory().total / 1e9,
        python=platform.python_version(),
        torch=torch.__version__,
        transformers=transformers.__version__,
        vllm=versions.get("vllm"),
        vllm_lens=versions.get("vllm-lens"),
        dtype=environment()["dtype"],
        model=model,
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description="Measure tokens per second.")
    parser.add_argument("what", nargs="?", choices=("measure", "table"), default="measure")
    parser.add_argument("--quick", action="store_true", help="every method twice, very short; nothing is written")
    options = parser.parse_args(arguments)
    os.environ.setdefault("ESR_DEVICE", "cpu")  # all methods run on the CPU
    try:
        if options.what == "table":
            print(table(read_numbers("bench")))
            return
        with tempfile.TemporaryDirectory() as folder:
            numbers = measure(QUICK if options.quick else FULL, Path(folder))
        if not options.quick:
            write_numbers("bench", numbers)
            execute(NOTEBOOK, {"name": "bench"}, NOTEBOOK.parent / "executed" / NOTEBOOK.name)
    except (ConfigError, FileNotFoundError, RuntimeError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None
    print(table(numbers))


if __name__ == "__main__":
    main()
