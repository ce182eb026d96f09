"""What a run of the study takes, by stage: responses, tokens, memory, hours, dollars and disk. Loads no weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

from esr.config.judges import LlmJudge
from esr.config.params import STAGES
from esr.config.registry import base_of, model_entry
from esr.config.study import EXPERIMENTS, bases_of, has_organism, running
from esr.judging.llm import BYTES_PER_TOKEN, REPLY_TOKENS, ModelJudge
from esr.judging.replies import RUBRIC
from esr.models.files import ModelFiles
from esr.paths import NUMBERS, ROOT, data_dir
from esr.pipeline.sizes import DOCUMENTS, PROMPT_TOKENS, TRAINED, TRIALS, Sizes, parameters, sizes_of

BENCH_PARAMETERS = 134_515_008  # of the model that paper/numbers/bench.json was measured on
PER_READ_TOKEN, PER_TRAINED_TOKEN = 0.5, 1.5  # cost in generated tokens
# Seconds of what does not depend on the model, on two cores: a stage's processes; embedding and fitting of the scorer
START_S, RELEVANCE_S = 6.0, 46.0
ROW_BYTES, TOKEN_BYTES = 1000, 11  # of a response on disk
COPIES = 3  # of responses: the stage's output, DVC's copy, the cache of chunks
# Not on models fine-tuned from another
OF_BASES = ("corpus", "train_sae", "sae", "relevance", "latents", "concepts", "organism")
ON_EACH = ("calibrate", "steer", "judge")
UNJUDGED = ("corpus", "train_sae", "steer", "organism")  # the offline judge reads no response there


@dataclass(frozen=True)
class Cost:
    """What one stage takes on one model, "" for all together; None: not known before the model is fetched, or without
    prices. Bytes: weights in the compute dtype, keys and values of a batch, disk."""

    stage: str
    model: str
    trials: int = 0
    tokens: int = 0
    weights: int | None = 0
    cache: int | None = 0
    hours: float | None = 0.0
    usd: float | None = 0.0
    disk: int | None = 0


class Subject:
    """A model as far as it is known: sizes of its runs, parameters, memory and speed in generated tokens a second."""

    def __init__(self, model: str, tokens_per_second: float | None, scale: str | None = None):
        self.sizes, self.base, self.stated = sizes_of(model, scale), base_of(model), tokens_per_second
        self.files = ModelFiles(self.base, data_dir("fetch", self.base))

    @cached_property
    def n_parameters(self) -> int | None:
        if self.files.are_there:
            return self.files.n_parameters
        return BENCH_PARAMETERS if self.base == _bench()["machine"]["model"] else None

    @cached_property
    def bytes_per_value(self) -> int:
        from esr.models.devices import compute_dtype

        return compute_dtype().itemsize

    @property
    def weights(self) -> int | None:
        return self.n_parameters and self.n_parameters * self.bytes_per_value

    @property
    def cache(self) -> int | None:
        """Keys and values of one batch."""
        if not self.files.are_there:
            return None
        positions = self.sizes["steer"].batch_size * (PROMPT_TOKENS + self.sizes.max_new_tokens)
        return positions * self.files.cache_bytes_per_token(self.bytes_per_value)

    @property
    def speed(self) -> float | None:
        measured = _bench()["tokens_per_second"]["engine"] * BENCH_PARAMETERS
        return self.stated or (self.n_parameters and measured / self.n_parameters)


def costs(
    models: Sequence[str],
    tokens_per_second: float | None = None,
    changed: set[str] | None = None,
    scale: str | None = None,
) -> list[Cost]:
    """The cost of every stage. tokens_per_second: generated, of every model; by default measured and scaled by the
    number of parameters. changed: names that DVC gives the stages to be counted; default: all. scale: in place of that
    of params.yaml."""
    found = [(stage, m) for stage, m in stages_of(models) if changed is None or _names(stage, m) & changed]
    subjects = {model: Subject(model, tokens_per_second, scale) for model in {model for _, model in found if model}}
    return [_cost(stage, subjects[m], m) if m else _cost_of_all(stage) for stage, m in found]


def stages_of(models: Sequence[str]) -> list[tuple[str, str]]:
    """Stages with the models they run on, in the order of the notebooks; "" for all models together."""
    bases = bases_of(list(models))
    of = {stage: running(stage, list(models)) for stage in EXPERIMENTS}
    of |= {stage: [base for base in bases if _runs(stage, base)] for stage in OF_BASES}
    of |= {stage: list(models) for stage in ON_EACH} | {"fetch": list(dict.fromkeys([*bases, *models]))}
    return [(stage, model) for stage in STAGES for model in of.get(stage, [""])]


def _runs(stage: str, base: str) -> bool:
    """Whether a stage on SAEs, or on concepts, runs on the model; what is shipped is not trained again."""
    entry, folder = model_entry(base), f"data/train_sae/{base}"
    if stage == "train_sae":
        here = entry.sae is not None and entry.sae.kind == "folder" and entry.sae.path == folder
        return here and not (ROOT / folder / "cfg.json").exists()
    if stage == "organism":
        return has_organism(base) and not (ROOT / f"data/organism/{base}").exists()
    return {"sae": entry.sae, "latents": entry.sae, "concepts": entry.concepts}.get(stage, entry) is not None


def _names(stage: str, model: str) -> set[str]:
    """Names that dvc.yaml may give the stage; models come by several kinds of fetching."""
    kinds = ("fetch", "fetch_folder", "fetch_adapter") if stage == "fetch" else (stage,)
    return {f"{kind}@{model}" for kind in kinds} if model else {stage}


def _cost(stage: str, subject: Subject, model: str) -> Cost:
    sizes = subject.sizes
    responses = TRIALS[stage](sizes) if stage in TRIALS else []
    trials, tokens = sum(n for n, _ in responses), sum(n * limit for n, limit in responses)
    read = DOCUMENTS[stage](sizes) * (PROMPT_TOKENS + sizes.max_new_tokens) if stage in DOCUMENTS else 0
    work = tokens + PER_READ_TOKEN * read + (PER_TRAINED_TOKEN * TRAINED[stage](sizes) if stage in TRAINED else 0)
    judged = 2 * sizes.n_steered if stage == "judge" else 0 if stage in UNJUDGED else trials
    seconds = START_S + (RELEVANCE_S if stage == "relevance" else 0) + judged / _responses_per_second()
    disk = COPIES * (trials * ROW_BYTES + tokens * TOKEN_BYTES)
    return Cost(
        stage, model, trials, tokens,
        weights=subject.weights if work else 0,
        cache=subject.cache if trials else 0,
        hours=None if work and not subject.speed else (seconds + work / (subject.speed or 1)) / 3600,
        usd=_usd(judged, sizes) if stage == "judge" else 0.0,
        disk=subject.n_parameters and 4 * subject.n_parameters if stage == "fetch" else disk,  # bfloat16, twice
    )  # fmt: skip


def _cost_of_all(stage: str) -> Cost:
    """Of a stage that reads saved results; those of validated judges are shipped."""
    return Cost(stage, "", hours=START_S / 3600)


def _usd(n: int, sizes: Sizes) -> float | None:
    """Price of `n` responses judged by each language model of params.yaml; None where one has no prices."""
    tokens_in = n * (len(RUBRIC.encode()) // BYTES_PER_TOKEN + PROMPT_TOKENS + sizes.max_new_tokens)
    judges = [ModelJudge(LlmJudge.model_validate(judge)) for judge in parameters("judge").judges]
    prices = [judge.cost(tokens_in, n * REPLY_TOKENS) for judge in judges]
    return None if None in prices else float(sum(price or 0 for price in prices))


@cache
def _bench() -> dict:
    return json.loads((NUMBERS / "bench.json").read_text(encoding="utf-8"))


@cache
def _responses_per_second() -> float:
    """Speed of the offline judge."""
    return json.loads((NUMBERS / "judge_speed.json").read_text(encoding="utf-8"))["responses_per_second"]["estimate"]


def is_longer(found: Sequence[Cost], seconds: float) -> bool:
    """Whether the stages take longer, or an unknown time."""
    hours = [cost.hours for cost in found]
    return None in hours or sum(h or 0 for h in hours) * 3600 > seconds


def rows(found: Sequence[Cost]) -> list[tuple[str, ...]]:
    """The table as texts, with a heading and a line of totals; ? is unknown."""
    body = [(c.stage, c.model or "all", _count(c.trials), _count(c.tokens), _gb(c.weights), _gb(c.cache),
             _text(c.hours), _text(c.usd), _gb(c.disk)) for c in found]  # fmt: skip
    hours, usd, disk = (_total([getattr(c, name) for c in found]) for name in ("hours", "usd", "disk"))
    sums = (f"{sum(c.trials for c in found):,}", f"{sum(c.tokens for c in found):,}")
    largest = [_gb(max([getattr(c, name) or 0 for c in found], default=0)) for name in ("weights", "cache")]
    heading = ("stage", "model", "trials", "tokens", "weights GB", "KV GB", "hours", "judge $", "disk GB")
    return [heading, *body, ("total", "", *sums, *largest, _text(hours), _text(usd), _gb(disk))]


def _total(values: Sequence[float | None]) -> float | None:
    return None if None in values else sum(value or 0 for value in values)


def _count(number: int) -> str:
    return f"{number:,}" if number else "-"


def _gb(size: float | None) -> str:
    return "?" if size is None else f"{size / 1e9:.2f}" if size else "-"


def _text(value: float | None) -> str:
    return "?" if value is None else "-" if not value else f"{value:.2f}" if value >= 0.005 else "<0.01"


def basis(tokens_per_second: float | None) -> str:
    """On what the hours rest."""
    from esr.models.devices import compute_dtype

    notes = (
        "Responses at their length limit; weights and cache of one process. "
        "?: unknown before `make fetch`, or a judge without prices."
    )
    if tokens_per_second:
        return f"{notes}\nHours at {tokens_per_second:,.0f} tokens a second, as stated."
    machine, speed = _bench()["machine"], _bench()["tokens_per_second"]["engine"]
    here = str(compute_dtype()).removeprefix("torch.")
    slower = "" if here == machine["dtype"] else f"; this machine computes in {here}, which takes several times as long"
    return (
        f"{notes}\nHours at {speed:,.0f} tokens a second of {machine['model']}, measured on {machine['cpu']}, "
        f"{machine['cores']} cores, {machine['dtype']} (paper/numbers/bench.json), in inverse proportion to the number "
        f"of parameters{slower}. State another speed with --tokens-per-second."
    )


def on_hosts(found: Sequence[Cost], hosts: int, usd_per_hour: float | None) -> str:
    """For each stage that hosts share: its hours on each, the command there, and the price of all hosts together."""
    lines = [f"On {hosts} hosts, I from 1 to {hosts}; hours on each:"]
    shared = [cost for cost in found if cost.stage in TRIALS and cost.model]
    for cost in shared:
        hours = "?" if cost.hours is None else f"{cost.hours / hosts:.2f}"
        command = f"python -m esr.pipeline.run {cost.stage} --model {cost.model} --shard I/{hosts} --wait 3600"
        lines.append(f"{hours:>8}  {command}")
    total = _total([cost.hours for cost in shared])
    if usd_per_hour is not None:
        price = "?" if total is None else f"{total * usd_per_hour:,.2f}"
        lines.append(f"{price} dollars at {usd_per_hour:g} a host and hour. Then `--merge {hosts}`, and `dvc repro`.")
    return "\n".join(lines)


def changed_stages() -> set[str]:
    """Names of the stages that `dvc repro` would run: changed ones and all that depend on them."""
    from dvc.repo import Repo

    with Repo(str(ROOT)) as repo:
        changed, graph = set(repo.status()), repo.index.graph  # edges lead from a stage to those it depends on
    waiting = [stage for stage in graph if stage.addressing in changed]
    names: set[str] = set()
    while waiting:
        stage = waiting.pop()
        if stage.addressing not in names and not stage.frozen:
            names.add(stage.addressing)
            waiting += graph.predecessors(stage)
    return names
