"""Trials of every method: the evaluation prompts, steered by latents of the SAE at one boost.

A trial is one response of a fixed number of tokens. Stop tokens are ignored: no method gains from early stops, and
tokens per second compare equal work.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from esr.config.registry import model_entry
from esr.config.schema import ConfigError, load_yaml
from esr.config.stages import PARAMS, stage_parameters
from esr.models.chat import chat_tokens
from esr.paths import data_dir
from esr.sae.contexts import read_contexts
from esr.steering.directions import load_directions
from esr.steering.trials import Plan
from esr.storage.digests import trial_seed
from esr.storage.prompts import read_prompts

BOOST = 0.38  # median residual norms, as calibration finds
LATENTS = 24  # enough to steer neighbours in a batch in different directions
TEMPERATURE = 0.6  # paper, section 3
SEED = 2602


@dataclass(frozen=True)
class Workload:
    """Trials as input of methods other than the engine, in the engine's order.

    prompts: token ids, chat template included; vectors: steering vectors added at every token after `layer`, in
    residual-stream units; repetition_penalty: the model's.
    """

    model: str
    layer: int
    repetition_penalty: float
    prompts: list[tuple[int, ...]]
    vectors: Float[Tensor, "trials d_model"]

    def first(self, n: int) -> Workload:
        return replace(self, prompts=self.prompts[:n], vectors=self.vectors[:n])


def residual_norm(model_id: str) -> float:
    """Median norm of the residual stream, measured in the shipped SAE's training; needs only the stage `fetch`."""
    return read_contexts(data_dir("train_sae", model_id) / "contexts.safetensors").median_norm


def draw_latents(model_id: str, n: int = LATENTS) -> list[int]:
    """`n` latents with density within the bounds of the stage `latents`. Raises ConfigError when there are fewer."""
    bounds = stage_parameters("latents", model_id)
    density = read_contexts(data_dir("train_sae", model_id) / "contexts.safetensors").density
    within = ((density >= bounds["min_density"]) & (density <= bounds["max_density"])).nonzero().flatten().tolist()
    if len(within) < n:
        raise ConfigError(f"{model_id}: {len(within)} latents are within the bounds of density, {n} are needed.")
    return sorted(random.Random(SEED).sample(within, n))


def plan_trials(model_id: str, n: int, pairs: int | None = None) -> list[Plan]:
    """`n` steered trials over the evaluation prompts and the drawn latents.

    pairs: number of (prompt, latent) pairs, used equally often; default one per trial.
    """
    prompts, latents = read_prompts("evaluation"), draw_latents(model_id)
    plans = []
    for trial in range(n):
        repeat, pair = divmod(trial, pairs or n)
        cycle, place = divmod(pair, len(prompts))
        prompt, latent = prompts[place], latents[(cycle + place) % len(latents)]
        seed = trial_seed(SEED, latent, prompt.id, repeat)
        plans.append(Plan("steered", latent, "", prompt.id, prompt.text, seed, BOOST))
    return plans


def load_workload(plans: Sequence[Plan], model_id: str, tokenizer) -> Workload:
    """Workload of `plans`, computed before timing."""
    entry = model_entry(model_id)
    boosts = torch.tensor([plan.boost for plan in plans])
    directions = load_directions(model_id, [plan.latent for plan in plans])
    return Workload(
        model_id,
        entry.steer_layer,
        entry.sampling.repetition_penalty,
        [chat_tokens(tokenizer, plan.prompt) for plan in plans],
        boosts[:, None] * residual_norm(model_id) * directions,
    )


def default_model() -> str:
    """The first model of params.yaml."""
    return load_yaml(PARAMS)["models"][0]
