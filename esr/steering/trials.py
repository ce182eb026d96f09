"""From planned trials to responses: one path for every condition.

A condition is data: a boost of 0 is the unsteered baseline. Conditions share (latent, prompt, seed) and are compared in
pairs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from esr.config.registry import model_entry, required
from esr.engine.backend import backend_of
from esr.engine.edits import LayerEdit
from esr.engine.finite import NonFiniteError
from esr.engine.rows import Response, Row
from esr.engine.workers import Report, Workers, split
from esr.models.chat import chat_tokens
from esr.models.loading import resident_model, stop_tokens
from esr.sae.loading import load_latent_subset
from esr.steering.directions import check_directions, load_directions
from esr.steering.provenance import check_steering, engine_provenance
from esr.steering.strength import residual_norm, sae_norm
from esr.storage.digests import digest, seeded, trial_seed
from esr.storage.records import Prompt, Trial


@dataclass(frozen=True)
class Plan:
    """One response to generate: all that determines it but the run's sampling settings.

    boost: in units of the median residual norm; 0 does not steer.
    layer: where the steering vector is added; None for the registry's steer_layer.
    ablate: latents zero-ablated at the registry's sae_layer, after steering.
    instruction: follows the prompt in the user's turn; the judge never sees it.
    prefill: token ids of a prefilled opening; not part of the response's tokens and text.
    """

    condition: str
    latent: int
    label: str
    prompt_id: str
    prompt: str
    seed: int
    boost: float
    layer: int | None = None
    ablate: tuple[int, ...] = ()
    instruction: str = ""
    prefill: tuple[int, ...] = ()


@dataclass(frozen=True)
class Settings:
    """Sampling settings, shared by the responses of a run.

    response_only: steer response tokens alone; the paper steers the prompt as well.
    adapter: LoRA weights merged into the model, a folder below the repository's root.
    """

    model: str
    temperature: float
    batch_size: int
    max_new_tokens: int
    response_only: bool = False
    adapter: str = ""


@dataclass(frozen=True)
class Steering:
    """Constants that turn a model's boosts and latents into edits of its residual stream.

    residual_norm: the unit of boosts. sae_layer: where latents are ablated; None without an SAE. sae_norm: the median
    residual norm there, by which attention sinks are known.
    """

    model: str
    sae_layer: int | None
    residual_norm: float
    sae_norm: float | None
    response_only: bool = False

    @classmethod
    def of(cls, model_id: str, response_only: bool = False) -> Steering:
        """From the registry and the measurements of the stage `corpus`."""
        norms = residual_norm(model_id), sae_norm(model_id)
        return cls(model_id, model_entry(model_id).sae_layer, *norms, response_only)


@dataclass(frozen=True)
class Chunk:
    """Plans that one worker runs together, and all else that determines their responses."""

    settings: Settings
    steering: Steering
    repetition_penalty: float
    provenance: dict[str, Any]
    plans: tuple[Plan, ...]

    @classmethod
    def read(cls, content: dict) -> Chunk:
        """The chunk from its `asdict`, also after a round trip through JSON."""
        plans = (Plan(**p | {name: tuple(p[name]) for name in ("ablate", "prefill")}) for p in content["plans"])
        fields = {"settings": Settings(**content["settings"]), "steering": Steering(**content["steering"])}
        return cls(**content | fields | {"plans": tuple(plans)})


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
    """Plans of every latent of `boosts` with `n_prompts` prompts drawn for it, each `n_seeds` times.

    The draw depends on seed and latent alone: all conditions share (latent, prompt, seed). Raises ValueError when there
    are too few prompts.
    """
    if n_prompts > len(prompts):
        raise ValueError(f"n_prompts is {n_prompts}, but there are {len(prompts)} prompts: ask for that many or fewer.")
    plans = []
    for latent, boost in boosts.items():
        # A shuffle of all: smaller draws are prefixes of larger ones, and conditions of different size share trials.
        drawn = seeded(seed, latent).sample(list(prompts), len(prompts))
        for prompt in drawn[:n_prompts]:
            for repeat in range(n_seeds):
                row_seed = trial_seed(seed, latent, prompt.id, repeat)
                plans.append(Plan(condition, latent, labels[latent], prompt.id, prompt.text, row_seed, boost))
    return plans


def generate_responses(plans: Sequence[Plan], settings: Settings, workers: Workers, what: str) -> list[Trial]:
    """Trials with their responses, in the order of `plans`.

    Worker processes run chunks of at most `batch_size` responses; finished chunks survive a kill. Raises ConfigError
    before any model loads when a latent does not exist.
    """
    check_directions(settings.model, sorted({x for plan in plans for x in (plan.latent, *plan.ablate)}))
    entry = model_entry(settings.model)
    penalty = entry.sampling.repetition_penalty
    steering = Steering.of(settings.model, settings.response_only)
    provenance = engine_provenance(settings.model, settings.adapter)
    layer = required(entry.steer_layer, settings.model, "steer_layer")
    plans = [p if p.layer is not None else replace(p, layer=layer) for p in plans]
    parts = chunk_indices(plans, settings.batch_size)
    chunks = [Chunk(settings, steering, penalty, provenance, tuple(plans[i] for i in part)) for part in parts]
    files = workers.map(
        generate_chunk, [asdict(chunk) for chunk in chunks], what=what, items=[len(part) for part in parts],
        item="responses", units_per_item=settings.max_new_tokens, alone=entry.backend == "vllm",
    )  # fmt: skip
    trials: dict[int, Trial] = {}
    for part, chunk, file in zip(parts, chunks, files, strict=True):
        trials |= dict(zip(part, _read_chunk(file, chunk), strict=True))
    return [trials[i] for i in range(len(plans))]


def _read_chunk(file: Path, chunk: Chunk) -> list[Trial]:
    """A chunk's rows. Raises ValueError unless they are those of its plans, one each: it may come from another host."""
    try:
        rows = [Trial.model_validate(row) for row in json.loads(file.read_bytes())]
    except ValueError:
        raise ValueError(
            f"{file} is damaged, or written by another version: delete it and run the stage again."
        ) from None
    if [row.id for row in rows] != [trial_id(chunk, plan) for plan in chunk.plans]:
        raise ValueError(f"{file} holds rows of other trials than planned: delete it and run the stage again.")
    return rows


def chunk_indices(plans: Sequence[Plan], batch_size: int) -> list[Sequence[int]]:
    """Indices of the plans of each chunk; the number of chunks is even, which lets two cores finish together.

    The number of cores does not change the chunks. Rows with equal (latent, prompt, seed) are adjacent across
    conditions: batches are full, and each prompt is prefilled once for the rows of a chunk.
    """
    if not plans:
        return []
    order = sorted(range(len(plans)), key=lambda i: (plans[i].latent, plans[i].prompt_id, plans[i].seed))
    pairs = -(-len(plans) // (2 * batch_size))
    return split(order, -(-len(plans) // (2 * pairs)))


def generate_chunk(content: dict, report: Report) -> bytes:
    """Responses of one chunk as JSON rows of `Trial`. Runs in a worker, which keeps its model between chunks."""
    chunk = Chunk.read(content)
    settings, plans = chunk.settings, chunk.plans
    check_steering(settings.model, chunk.provenance)
    model, tokenizer = resident_model(settings.model, settings.adapter)
    rows = [Row(chat_tokens(tokenizer, user_message(p), p.prefill), p.seed, settings.max_new_tokens) for p in plans]
    backend = backend_of(model)
    edits = build_edits(chunk.steering, plans, backend.device)
    with _naming_trials(plans):
        responses = backend.generate(
            rows,
            edits,
            batch_size=settings.batch_size,
            temperature=settings.temperature,
            repetition_penalty=chunk.repetition_penalty,
            stop_tokens=stop_tokens(model, tokenizer),
            on_progress=lambda written, finished: report(finished, written),
        )
    trials = [trial_of(chunk, plan, response, tokenizer) for plan, response in zip(plans, responses, strict=True)]
    return json.dumps([t.model_dump() for t in trials], ensure_ascii=False).encode()


@contextmanager
def _naming_trials(plans: Sequence[Plan]) -> Iterator[None]:
    """Within the block a NonFiniteError also says which of `plans` overflowed."""
    try:
        yield
    except NonFiniteError as error:
        plan = plans[error.row]
        trial = f"Condition {plan.condition}, latent {plan.latent}, prompt {plan.prompt_id}"
        raise NonFiniteError(f"{trial}: {error}", error.row) from error


def trial_of(chunk: Chunk, plan: Plan, response: Response, tokenizer) -> Trial:
    """The row of a response that was generated by a plan of the chunk."""
    return Trial(
        id=trial_id(chunk, plan),
        tokens=response.tokens,
        text=tokenizer.decode(response.tokens, skip_special_tokens=True),
        finish_reason=response.finish_reason,
        **_fields(chunk, plan),
    )


def trial_id(chunk: Chunk, plan: Plan) -> str:
    """Digest of all that determines the trial."""
    return digest(_fields(chunk, plan), chunk.steering.residual_norm, chunk.steering.sae_norm, chunk.provenance)


def _fields(chunk: Chunk, plan: Plan) -> dict[str, Any]:
    settings = chunk.settings
    return asdict(plan) | {
        "model": settings.model,
        "ablate": list(plan.ablate),
        "prefill": list(plan.prefill),
        "adapter": settings.adapter,
        "max_new_tokens": settings.max_new_tokens,
        "temperature": settings.temperature,
        "repetition_penalty": chunk.repetition_penalty,
        "response_only": settings.response_only,
    }


def user_message(plan: Plan | Trial) -> str:
    """The user's turn: the prompt, then the instruction as a separate paragraph."""
    return f"{plan.prompt}\n\n{plan.instruction}" if plan.instruction else plan.prompt


def build_edits(steering: Steering, plans: Sequence[Plan | Trial], device) -> list[LayerEdit]:
    """Edits of these plans: at each edited layer the steering vectors, then the ablation, off sinks."""
    ablated = [p.ablate for p in plans]
    layers = {_steered_layer(p) for p in plans if p.boost}
    if any(ablated):
        layers.add(required(steering.sae_layer, steering.model, "sae"))
    edits: list[LayerEdit] = []
    for layer in sorted(layers):
        vectors = subset = chosen = None
        if layer == steering.sae_layer and any(ablated):
            subset = load_latent_subset(steering.model, sorted({x for latents in ablated for x in latents}))
            chosen = subset.rows(ablated)
        boosts = torch.tensor([p.boost if p.layer == layer else 0.0 for p in plans])
        if boosts.any():
            directions = load_directions(steering.model, [p.latent for p in plans])
            vectors = (boosts[:, None] * steering.residual_norm * directions).to(device)
        norm = steering.sae_norm or math.inf
        edits.append(LayerEdit(layer, vectors, steering.response_only, subset, chosen, norm))
    return edits


def _steered_layer(plan: Plan | Trial) -> int:
    if plan.layer is None:
        raise ValueError("A plan has a boost and no layer: generate_responses fills in the registry's.")
    return plan.layer
