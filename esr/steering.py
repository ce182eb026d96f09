"""From a list of planned trials to answers: the one path every condition takes.

A condition is data: a boost of 0 is the unsteered baseline, not other code. Conditions share (latent, prompt, seed), so
that they are compared in pairs.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

from esr.config import check_latents, model_entry
from esr.generation import Row, generate
from esr.interventions import AddVector, Capture
from esr.models import chat_tokens, load_directions, resident_model, stop_tokens
from esr.paths import data_dir
from esr.provenance import engine_provenance
from esr.records import Prompt, Trial, digest
from esr.workers import Report, Workers, split


@dataclass(frozen=True)
class Plan:
    """One answer to be written: all that determines it but the sampling settings shared by a run.

    boost: in units of the median residual norm; 0 leaves the residual stream alone.
    """

    condition: str
    latent: int
    label: str
    prompt_id: str
    prompt: str
    seed: int
    boost: float


@dataclass(frozen=True)
class Settings:
    """Sampling settings and the scale of the steering, shared by the answers of a run.

    residual_norm: median norm of the residual stream at the steered layer, without BOS.
    """

    model: str
    temperature: float
    batch_size: int
    max_new_tokens: int
    residual_norm: float


def trial_seed(seed: int, latent: int, prompt_id: str, repeat: int) -> int:
    """Seed of one (latent, prompt, repeat), the same in every condition."""
    return int(digest(seed, latent, prompt_id, repeat)[:8], 16)


def plan_condition(
    condition: str,
    boosts: dict[int, float],
    labels: dict[int, str],
    prompts: Sequence[Prompt],
    *,
    n_prompts: int,
    n_seeds: int,
    seed: int,
) -> list[Plan]:
    """Every latent of `boosts` with its own draw of `n_prompts` prompts, each `n_seeds` times.

    The draw depends on seed and latent alone, so that all conditions hold the same (latent, prompt, seed). Raises
    ValueError when there are too few prompts.
    """
    if n_prompts > len(prompts):
        raise ValueError(f"n_prompts is {n_prompts}, but there are {len(prompts)} prompts: ask for that many or fewer.")
    plans = []
    for latent, boost in boosts.items():
        drawn = random.Random(digest(seed, latent)).sample(list(prompts), n_prompts)
        for prompt in drawn:
            for repeat in range(n_seeds):
                own = trial_seed(seed, latent, prompt.id, repeat)
                plans.append(Plan(condition, latent, labels[latent], prompt.id, prompt.text, own, boost))
    return plans


def residual_norm(model_id: str) -> float:
    """Median norm of the residual stream at the steered layer, measured by the `sae` stage: the unit of boosts."""
    summary = data_dir("sae", model_id) / "summary.json"
    if not summary.exists():
        raise FileNotFoundError(f"{summary} does not exist: run `dvc repro sae` first.")
    return json.loads(summary.read_text())["median_residual_norm"]


def write_answers(plans: Sequence[Plan], settings: Settings, workers: Workers, what: str) -> list[Trial]:
    """Write the answer of every plan; trials come back in the order of `plans`.

    Chunks of at most `batch_size` answers of one condition run in worker processes and survive a kill. Raises
    ConfigError before any model loads when a latent does not exist.
    """
    check_latents(settings.model, sorted({plan.latent for plan in plans}))
    entry = model_entry(settings.model)
    shared = asdict(settings) | {
        "layer": entry.steer_layer,
        "repetition_penalty": entry.repetition_penalty,
        "provenance": engine_provenance(settings.model),
    }
    order = sorted(range(len(plans)), key=lambda i: plans[i].condition)  # stable: a chunk holds one condition
    chunks, places = [], []
    for condition in dict.fromkeys(plans[i].condition for i in order):
        members = [i for i in order if plans[i].condition == condition]
        for part in split(members, settings.batch_size):
            chunks.append(shared | {"plans": [asdict(plans[i]) for i in part]})
            places.append(part)
    sizes = [len(part) for part in places]
    limit = settings.max_new_tokens
    files = workers.map(write_chunk, chunks, what=what, items=sizes, item="answers", units_per_item=limit)
    trials: dict[int, Trial] = {}
    for part, file in zip(places, files, strict=True):
        rows = [Trial.model_validate(row) for row in json.loads(file.read_bytes())]
        trials |= dict(zip(part, rows, strict=True))
    return [trials[i] for i in range(len(plans))]


def write_chunk(chunk: dict, report: Report) -> bytes:
    """Answers of one chunk as JSON rows of `Trial`. Runs in a worker, which keeps its model between chunks."""
    model, tokenizer = resident_model(chunk["model"])
    plans = [Plan(**plan) for plan in chunk["plans"]]
    rows = [Row(chat_tokens(tokenizer, p.prompt), p.seed, chunk["max_new_tokens"]) for p in plans]
    boosts = torch.tensor([p.boost for p in plans])
    interventions = []
    if boosts.any():
        directions = load_directions(chunk["model"], [p.latent for p in plans])
        vectors = (boosts[:, None] * chunk["residual_norm"] * directions).to(model.device)
        check_edit(model, rows, chunk["layer"], vectors)
        interventions.append(AddVector(chunk["layer"], vectors))
    answers = generate(
        model,
        rows,
        interventions,
        batch_size=chunk["batch_size"],
        temperature=chunk["temperature"],
        repetition_penalty=chunk["repetition_penalty"],
        stop_tokens=stop_tokens(model),
        on_progress=lambda written, finished: report(finished, written),
    )
    settings = {name: chunk[name] for name in ("layer", "max_new_tokens", "temperature", "repetition_penalty")}
    trials = []
    for plan, answer in zip(plans, answers, strict=True):
        fields = {"model": chunk["model"]} | asdict(plan) | settings
        trials.append(
            Trial(
                id=digest(fields, chunk["residual_norm"], chunk["provenance"]),
                tokens=answer.tokens,
                text=tokenizer.decode(answer.tokens, skip_special_tokens=True),
                finish_reason=answer.finish_reason,
                **fields,
            )
        )
    return json.dumps([t.model_dump() for t in trials], ensure_ascii=False).encode()


class SteeringError(RuntimeError):
    """The residual stream does not show the intended edit: a run that went on would be unsteered or wrongly steered."""


def check_edit(model, rows: Sequence[Row], layer: int, vectors: torch.Tensor) -> None:
    """Canary, run before every steered chunk: with and without steering, the captured residual differs by the vector.

    Raises SteeringError when it does not, to the rounding of the model's dtype.
    """
    n = min(4, len(rows))
    probes = [Row(row.prompt, row.seed, 1) for row in rows[:n]]
    residuals = {}
    for steered in (False, True):
        capture = Capture(layer, n)
        edits = [AddVector(layer, vectors[:n])] if steered else []
        generate(
            model, probes, [*edits, capture], batch_size=n, temperature=0.0, repetition_penalty=1.0, stop_tokens=[]
        )
        residuals[steered] = [capture.residuals(i).float() for i in range(n)]
    for i in range(n):
        plain, edited, vector = residuals[False][i], residuals[True][i], vectors[i].float()
        # Each of plain + vector and vector itself is rounded once to the model's dtype.
        rounding = torch.finfo(model.dtype).eps * (plain.abs() + vector.abs())
        wrong = ((edited - plain) - vector).abs() > rounding
        if plain.shape != edited.shape or len(plain) != len(rows[i].prompt) or bool(wrong.any()):
            raise SteeringError(
                f"Steering check failed at layer {layer}: the residual stream of row {i} does not differ from the "
                "unsteered one by exactly the steering vector. Another hook or a model that is not Llama-like changes "
                "that layer's output; do not use its answers."
            )
