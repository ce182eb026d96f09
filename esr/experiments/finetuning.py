"""LoRA fine-tuning of a self-correcting model organism (paper, experiment 4), in minutes on one core.

Adapters sit above the steered layer and the SAE's layer. The residual stream there equals the base model's, bit for
bit: SAE, latents, labels and detectors hold for the fine-tuned model.

Equal examples, recipe, machine and library versions give equal adapters at one thread, as in a worker; with more
threads sums may round differently.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from esr.config.registry import model_entry, required
from esr.engine.activations import Document
from esr.engine.backend import backend_of
from esr.engine.workers import Report, Workers
from esr.experiments.damage import cross_entropy
from esr.experiments.lora import Recipe, TrainingStep, lora_config, train
from esr.experiments.run import paired
from esr.experiments.self_corrections import Example
from esr.models.chat import chat_tokens
from esr.models.loading import resident_model
from esr.statistics.effects import paired_difference, ratio
from esr.statistics.estimates import Estimate
from esr.statistics.intervals import Values
from esr.statistics.metrics import multi_attempt
from esr.statistics.outcomes import above_placebo
from esr.steering.directions import load_directions
from esr.steering.provenance import check_steering, training_provenance
from esr.steering.strength import residual_norm
from esr.storage.files import replacing, write_bytes, write_rows
from esr.storage.records import SampledResponse


def train_all(
    model_id: str, examples: Mapping[str, Sequence[Example]], recipes: Mapping[str, Recipe], workers: Workers
) -> dict[str, tuple[dict[str, Tensor], list[TrainingStep]]]:
    """Adapter and learning curve of each named set of examples, trained in parallel workers; finished ones are kept.

    Raises ValueError unless adapters begin right above the steered layer: training adds steering vectors to the input
    of the first adapted layer.
    """
    steer_layer = required(model_entry(model_id).steer_layer, model_id, "steer_layer")
    for recipe in recipes.values():
        if recipe.first_layer != steer_layer + 1:
            raise ValueError(
                f"first_layer is {recipe.first_layer}; {model_id} is steered at layer {steer_layer}, "
                f"and adapters begin right above it: {steer_layer + 1}."
            )
    shared = {
        "model": model_id,
        "residual_norm": residual_norm(model_id),
        "provenance": training_provenance(model_id),
    }
    chunks = [
        shared | {"recipe": asdict(recipes[name]), "examples": [e.model_dump() for e in rows]}
        for name, rows in examples.items()
    ]
    sizes = [len(rows) * recipes[name].epochs for name, rows in examples.items()]
    files = workers.map(train_chunk, chunks, what="fine-tuning", items=sizes, item="examples")
    return {name: _read_training(file) for name, file in zip(examples, files, strict=True)}


def train_chunk(chunk: dict, report: Report) -> bytes:
    """One adapter as safetensors with the curve in its metadata. Runs in a worker."""
    check_steering(chunk["model"], chunk["provenance"])
    model, _ = resident_model(chunk["model"])
    examples = [Example(**example) for example in chunk["examples"]]
    directions = load_directions(chunk["model"], [e.latent for e in examples])
    lengths = [e.boost * chunk["residual_norm"] for e in examples]
    vectors = [length * d.to(model.device) if length else None for length, d in zip(lengths, directions, strict=True)]
    state, curve = train(model, examples, Recipe(**chunk["recipe"]), report, vectors)
    return save(state, {"curve": json.dumps([step.model_dump() for step in curve])})


def _read_training(file: Path) -> tuple[dict[str, Tensor], list[TrainingStep]]:
    with safe_open(file, framework="pt") as stored:
        curve = [TrainingStep(**step) for step in json.loads(stored.metadata()["curve"])]
        return {name: stored.get_tensor(name) for name in stored.keys()}, curve  # noqa: SIM118


def save_adapter(
    model_id: str, state: dict[str, Tensor], curve: Sequence[TrainingStep], recipe: Recipe, n_layers: int, folder: Path
) -> None:
    """Write a folder for `PeftModel.from_pretrained`, with the learning curve in `curve.jsonl`."""
    config = lora_config(recipe, n_layers, base=model_id)
    config.inference_mode = True
    config.target_modules = sorted(config.target_modules)  # PEFT keeps a set, whose order varies between processes
    with replacing(folder) as new:
        config.save_pretrained(new)
        write_bytes(new / "adapter_model.safetensors", save(state))
        write_rows(new / "curve.jsonl", curve)


def cross_entropy_of_responses(
    model_id: str, adapter: str, responses: Sequence[SampledResponse]
) -> tuple[Float[np.ndarray, " tokens"], list[str]]:
    """Cross-entropy (nats) of every token of responses that the model did not write, and the response each is of.

    adapter: LoRA weights, a folder below the repository's root; "" for none.
    """
    model, tokenizer = resident_model(model_id, adapter)
    documents = [
        Document(tuple(chat_tokens(tokenizer, x.prompt)), tuple(tokenizer(x.text, add_special_tokens=False).input_ids))
        for x in responses
    ]
    ids = [x.id for x, document in zip(responses, documents, strict=True) for _ in document.response]
    return cross_entropy(backend_of(model), documents, []), ids


def relative_increase(after: Values, before: Values, clusters: Values, **interval) -> Estimate:
    """mean(after) / mean(before) - 1 of paired values, clustered."""
    found = ratio(after, before, clusters, **interval)
    estimate, low, high = (None if x is None else x - 1 for x in (found.estimate, found.low, found.high))
    return Estimate.of(estimate, low, high, found.n)


def effects_of_training(
    frame: pd.DataFrame, cuts: pd.DataFrame, untrained: str, trained: str, **interval
) -> dict[str, Estimate]:
    """Multi-attempt rate and ESR rate above placebo of the trained model minus those of its base, on the same trials.

    frame, cuts: metrics.table and outcomes.cut_table of both; untrained, trained: their conditions. Of one training:
    the intervals are over trials clustered by latent, and another training may lie outside them.
    """
    base, tuned = paired(frame, untrained, trained)
    above = [above_placebo(rows, cuts) for rows in (base, tuned)]
    known = above[0].notna() & above[1].notna()
    latents = base.latent
    return {
        "multi_attempt_difference": paired_difference(multi_attempt(base), multi_attempt(tuned), latents, **interval),
        "esr_above_placebo_difference": paired_difference(above[0][known], above[1][known], latents[known], **interval),
    }
