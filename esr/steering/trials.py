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

from esr.config.registry import check_latents, model_entry
from esr.engine.generation import Row, generate
from esr.engine.guard import Guard, watched
from esr.engine.interventions import AddVector, Intervention, ZeroAblate
from esr.engine.workers import Report, Workers, split
from esr.models.chat import chat_tokens
from esr.models.loading import resident_model, stop_tokens
from esr.models.provenance import engine_provenance
from esr.sae.loading import load_directions, load_readout
from esr.storage.digests import digest, trial_seed
from esr.storage.records import Prompt, Trial


@dataclass(frozen=True)
class Plan:
    """One answer to be written: all that determines it but the sampling settings shared by a run.

    boost: in units of the median residual norm; 0 leaves the residual stream alone.
    layer: where it is added; None for the registry's steer_layer.
    ablate: latents zero-ablated at the registry's sae_layer, read after steering.
    instruction: said to the model after the prompt, in the same turn; the judge never sees it.
    prefill: token ids put in as the beginning of the answer; not part of the answer's tokens and text.
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
    """Sampling settings and the scale of the steering, shared by the answers of a run.

    residual_norm: median norm of the residual stream at the steered layer, without BOS.
    answer_only: steer the tokens of the answer alone; the paper steers the prompt as well.
    adapter: LoRA weights merged into the model, a folder relative to the repository's root.
    """

    model: str
    temperature: float
    batch_size: int
    max_new_tokens: int
    residual_norm: float
    answer_only: bool = False
    adapter: str = ""


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
        # A shuffle of all: fewer prompts are the first of more, so that conditions of different size share trials.
        drawn = random.Random(digest(seed, latent)).sample(list(prompts), len(prompts))
        for prompt in drawn[:n_prompts]:
            for repeat in range(n_seeds):
                own = trial_seed(seed, latent, prompt.id, repeat)
                plans.append(Plan(condition, latent, labels[latent], prompt.id, prompt.text, own, boost))
    return plans


def write_answers(plans: Sequence[Plan], settings: Settings, workers: Workers, what: str) -> list[Trial]:
    """Write the answer of every plan; trials come back in the order of `plans`.

    Chunks of at most `batch_size` answers run in worker processes and survive a kill; the answers to one (latent,
    prompt, seed) under all conditions stand together. Raises ConfigError before any model loads when a latent does not
    exist.
    """
    check_latents(settings.model, sorted({x for plan in plans for x in (plan.latent, *plan.ablate)}))
    entry = model_entry(settings.model)
    shared = asdict(settings) | {
        "repetition_penalty": entry.repetition_penalty,
        "sae_layer": entry.sae_layer,
        "provenance": engine_provenance(settings.model, settings.adapter),
    }
    # Pairs side by side, whatever their conditions: full batches are fast, and a prompt is read once for all its rows.
    order = sorted(range(len(plans)), key=lambda i: (plans[i].latent, plans[i].prompt_id, plans[i].seed))
    # An even number of chunks, so that two cores finish together; it does not depend on how many there are.
    pairs = -(-len(plans) // (2 * settings.batch_size))
    places = split(order, -(-len(plans) // (2 * pairs))) if plans else []
    chunks = []
    for part in places:
        own = [plans[i] for i in part]
        own = [asdict(p) | {"layer": entry.steer_layer if p.layer is None else p.layer} for p in own]
        chunks.append(shared | {"plans": own})
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
    model, tokenizer = resident_model(chunk["model"], chunk["adapter"])
    plans = [Plan(**plan | {name: tuple(plan[name]) for name in ("ablate", "prefill")}) for plan in chunk["plans"]]
    rows = [Row(chat_tokens(tokenizer, said(p), p.prefill), p.seed, chunk["max_new_tokens"]) for p in plans]
    guards, edits = build_edits(chunk, plans, model.device)
    with watched(model, guards):
        answers = generate(
            model,
            rows,
            [*guards, *edits],
            batch_size=chunk["batch_size"],
            temperature=chunk["temperature"],
            repetition_penalty=chunk["repetition_penalty"],
            stop_tokens=stop_tokens(model),
            on_progress=lambda written, finished: report(finished, written),
        )
    shared = ("adapter", "max_new_tokens", "temperature", "repetition_penalty", "answer_only")
    settings = {name: chunk[name] for name in shared}
    trials = []
    for plan, answer in zip(plans, answers, strict=True):
        fields = {"model": chunk["model"]} | asdict(plan) | settings
        fields |= {"ablate": list(plan.ablate), "prefill": list(plan.prefill)}
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


def said(plan: Plan) -> str:
    """The user's turn: the prompt, and the instruction in a paragraph of its own."""
    return f"{plan.prompt}\n\n{plan.instruction}" if plan.instruction else plan.prompt


def build_edits(chunk: dict, plans: Sequence[Plan], device) -> tuple[list[Guard], list[Intervention]]:
    """What edits the residual stream for these plans, and the guards that watch it: per layer, the vectors of the rows
    steered there, then the ablation, which reads after them. Layers that no plan edits get neither.
    """
    layers = sorted(
        {p.layer for p in plans if p.boost} | ({chunk["sae_layer"]} if any(p.ablate for p in plans) else set())
    )
    guards, edits = [], []
    for layer in layers:
        boosts = torch.tensor([p.boost if p.layer == layer else 0.0 for p in plans])
        parts: dict = {}
        if boosts.any():
            directions = load_directions(chunk["model"], [p.latent for p in plans])
            vectors = (boosts[:, None] * chunk["residual_norm"] * directions).to(device)
            parts |= {"vectors": vectors, "answer_only": chunk["answer_only"]}
            edits.append(AddVector(layer, vectors, chunk["answer_only"]))
        if layer == chunk["sae_layer"] and any(p.ablate for p in plans):
            readout = load_readout(chunk["model"], sorted({x for p in plans for x in p.ablate}))
            parts |= {"readout": readout, "chosen": readout.rows([p.ablate for p in plans])}
            edits.append(ZeroAblate(layer, readout, parts["chosen"]))
        guards.append(Guard(layer, **parts))
    return guards, edits
