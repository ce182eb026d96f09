"""Results of a benchmark run: typed timings, their medians and ratios, paper/numbers/bench.json, a table."""

from __future__ import annotations

from statistics import median

import pandas as pd
from pydantic import Field

from esr.storage.records import Record

METHODS = {
    "engine": "this project's engine, single-threaded workers",
    "vllm_lens": "vLLM with vllm-lens, one dynamic batch",
    "generate_batch": "`transformers.generate` with a hook, one batch",
    "generate_one": "`transformers.generate` with a hook, one at a time",
}


class Timing(Record):
    """One timed run: finished trials, total new tokens, wall-clock seconds."""

    trials: int = Field(gt=0)
    tokens: int = Field(gt=0)
    seconds: float = Field(gt=0)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds


class MatmulTiming(Record):
    """The model's matrix products alone, all processes together. prompt_cost: of a prompt token, in new tokens."""

    processes: int
    prompt_cost: float
    tokens_per_second: float = Field(gt=0)
    gflops_per_second: float = Field(gt=0)


class Round(Record):
    """Every method once, in turn; a method that is not installed is None."""

    engine: Timing
    unsteered: Timing
    matmul: MatmulTiming
    generate_one: Timing
    generate_batch: Timing
    vllm_lens: Timing | None


class Scale(Record):
    """The full path at one number of trials. peak_memory_mb: resident, all processes together."""

    seconds: list[float] = Field(min_length=1)  # of every repeat
    seconds_per_trial: float = Field(gt=0)  # by the median of the repeats
    peak_memory_mb: float = Field(gt=0)


class Scaling(Record):
    n_few: int
    n_many: int
    few: Scale
    many: Scale


class Machine(Record):
    cpu: str
    cores: int
    workers: int
    threads: int  # of the methods with one process
    memory_gb: float
    python: str
    torch: str
    transformers: str
    vllm: str | None
    vllm_lens: str | None
    dtype: str
    model: str


def summarize(
    rounds: list[Round], sizes: dict[int, Timing], scaling: Scaling, settings: dict, machine: Machine
) -> dict:
    """Content of bench.json. Ratios are within rounds, then medians: a slow minute affects both sides.

    settings: include `tokens` and `prompt_tokens`, means per trial.
    """
    prompts = settings["prompt_tokens"] / settings["tokens"]
    speeds = {name: _median(_speed(getattr(r, name)) for r in rounds) for name in METHODS}
    ratios = {
        name: _median(_ratio(_speed(r.engine), _speed(getattr(r, name))) for r in rounds)
        for name in METHODS
        if name != "engine"
    }
    return {
        "tokens_per_second": speeds,
        "ratios": ratios,
        "gemm_fraction": _median(r.engine.tokens_per_second / r.matmul.tokens_per_second for r in rounds),
        "gemm_fraction_with_prompts": _median(
            r.engine.tokens_per_second * (1 + r.matmul.prompt_cost * prompts) / r.matmul.tokens_per_second
            for r in rounds
        ),
        "matmul": {
            "tokens_per_second": _median(r.matmul.tokens_per_second for r in rounds),
            "gflops_per_second": _median(r.matmul.gflops_per_second for r in rounds),
        },
        "steering_overhead": _median(r.unsteered.tokens_per_second / r.engine.tokens_per_second - 1 for r in rounds),
        "scaling": {
            str(scaling.n_few): _scale(scaling.few),
            str(scaling.n_many): _scale(scaling.many),
            "time_ratio": scaling.many.seconds_per_trial / scaling.few.seconds_per_trial,
            "memory_ratio": scaling.many.peak_memory_mb / scaling.few.peak_memory_mb,
        },
        "batch_sizes": {str(size): timing.tokens_per_second for size, timing in sizes.items()},
        "trials": {name: _trials(getattr(rounds[0], name)) for name in METHODS},
        "settings": settings,
        "machine": machine.model_dump(),
        "rounds": {
            "methods": [r.model_dump() for r in rounds],
            "batch_sizes": {str(size): timing.model_dump() for size, timing in sizes.items()},
            "scaling": scaling.model_dump(),
        },
    }


def _scale(scale: Scale) -> dict:
    return {"seconds_per_trial": scale.seconds_per_trial, "peak_memory_mb": scale.peak_memory_mb}


def _speed(timing: Timing | MatmulTiming | None) -> float | None:
    return timing.tokens_per_second if timing else None


def _trials(timing: Timing | None) -> int | None:
    return timing.trials if timing else None


def _ratio(value: float, other: float | None) -> float | None:
    return value / other if other else None


def _median(values) -> float | None:
    """Median without None; None where the method was not run."""
    values = [value for value in values if value is not None]
    return median(values) if values else None


def table(numbers: dict) -> str:
    """bench.json as Markdown: methods, then other measurements; `–` for a method that was not installed."""
    few, many = (key for key in numbers["scaling"] if key.isdigit())
    scaling, machine = numbers["scaling"], numbers["machine"]
    lines = [["method", "tokens/s", "engine is faster", "trials"], ["---", "--:", "--:", "--:"]]
    for name, text in METHODS.items():
        speed, ratio, trials = (numbers[key].get(name) for key in ("tokens_per_second", "ratios", "trials"))
        lines.append([text, _show(speed, ".0f"), _show(ratio, ".1f", " x"), _show(trials, "d")])
    rows = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return (
        f"{rows}\n\n"
        f"Medians of {len(numbers['rounds']['methods'])} rounds, {numbers['settings']['tokens']} new tokens a trial, "
        f"{machine['model']} in {machine['dtype']} on {machine['cores']} cores ({machine['cpu']}). "
        f"The engine reaches {numbers['gemm_fraction']:.0%} of what the model's matrix products alone would allow, "
        f"{numbers['gemm_fraction_with_prompts']:.0%} when the prompts it reads count as work too "
        f"({numbers['matmul']['tokens_per_second']:.0f} tokens/s, "
        f"{numbers['matmul']['gflops_per_second']:.0f} GFLOP/s). "
        f"Steering costs {numbers['steering_overhead']:.1%}. "
        f"From {int(few):,} to {int(many):,} trials the time per trial changes by a factor of "
        f"{scaling['time_ratio']:.2f}, peak memory by {scaling['memory_ratio']:.2f} "
        f"({scaling[few]['peak_memory_mb']:.0f} to {scaling[many]['peak_memory_mb']:.0f} MB)."
    )


def rounds_table(numbers: dict) -> pd.DataFrame:
    """New tokens per second of every method, one row per round."""
    rounds = [Round.model_validate(entry) for entry in numbers["rounds"]["methods"]]
    columns = {name: [_speed(getattr(r, name)) for r in rounds] for name in Round.model_fields}
    return pd.DataFrame(columns, index=pd.RangeIndex(1, len(rounds) + 1, name="round")).round(1)


def _show(value: float | None, form: str, unit: str = "") -> str:
    return "–" if value is None else f"{value:{form}}{unit}"
