"""Results of each room on tiny models in float32: tokens, and activations to one part in ten thousand.

They hold on every processor: no token is chosen so narrowly that rounding could decide (`far_apart`).
"""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from esr.engine import generation
from esr.engine.activations import Document, residuals
from esr.engine.generation import Row, generate
from esr.engine.interventions import AddVector, LatentSubset, ZeroAblate
from esr.engine.sampling import penalize
from esr.engine.sinks import Sinks
from esr.engine.workers import one_thread
from esr.models.chat import chat_tokens
from esr.models.provenance import NUMERICS
from esr.steering import trials
from esr.steering.trials import Plan, Settings, Steering, plan_condition
from esr.storage.records import Prompt
from tests.golden.repository import ADAPTER, LAYER, draw, sae_weights, tiny_model

FOLDER = Path(__file__).parent
MAKE = "python -m tests.golden.make"
MARGIN = 1e-3  # logits between the two likeliest tokens
SHARE_MARGIN = 1e-4  # probability between a random number and the next token's share
TOLERANCE = 1e-4  # of floats, relative to the largest of their list
Report = Callable[[int, int], None]


def results(room: str) -> dict[str, Any]:
    """Name of each case of a room and its result, as JSON. Call within a `repository.use`d repository."""
    with one_thread(), in_float32():
        return json.loads(json.dumps(ROOMS[room]()))


def versions(room: str) -> dict[str, int]:
    """Numerics versions of a room and of those it builds on, whose changes change its results."""
    return {name: NUMERICS[name] for name in (*BELOW[room], room)}


def complaint(room: str, stored: dict[str, Any], found: dict[str, Any]) -> str | None:
    """What is wrong with a room's stored results, in one sentence; None if they are those `found`."""
    for name, version in versions(room).items():
        if stored["versions"].get(name) != version:
            before = stored["versions"].get(name)
            return f"NUMERICS[{name!r}] is {version}, the results in {room}.json are of {before}: run `{MAKE}`"
    if stored["results"].keys() != found.keys():
        return f"cases of `{room}` were added or removed: run `{MAKE}`"
    if differ := sorted(name for name in found if not equal(stored["results"][name], found[name])):
        return (
            f"results of `{room}` changed ({', '.join(differ)}): raise NUMERICS[{room!r}] and regenerate with `{MAKE}`"
        )
    return None


def stored(room: str) -> dict[str, Any] | None:
    path = FOLDER / f"{room}.json"
    return json.loads(path.read_text()) if path.exists() else None


def equal(expected: Any, found: Any) -> bool:
    """Whether results are equal; lists of floats to their tolerance."""
    if isinstance(expected, dict) and "floats" in expected:
        one, other = np.array(expected["floats"]), np.array(found["floats"])
        return one.shape == other.shape and bool(np.abs(one - other).max() <= expected["tolerance"] * np.abs(one).max())
    return expected == found


def floats(values: torch.Tensor, tolerance: float = TOLERANCE) -> dict[str, Any]:
    """Norm, first, middle and last value of each row: every value counts, and the file stays small."""
    rows = values.detach().double().reshape(-1, values.shape[-1])
    chosen = torch.cat([rows.norm(dim=1, keepdim=True), rows[:, [0, rows.shape[1] // 2, -1]]], dim=1)
    return {"floats": [[float(f"{x:.7g}") for x in row] for row in chosen.tolist()], "tolerance": tolerance}


@contextmanager
def in_float32() -> Iterator[None]:
    with (
        patch("esr.models.devices.compute_dtype", lambda: torch.float32),
        patch("esr.models.loading.compute_dtype", lambda: torch.float32),
        patch("esr.sae.training.compute_dtype", lambda: torch.float32),
    ):
        yield


@contextmanager
def far_apart() -> Iterator[None]:
    """Raise AssertionError within the block where rounding could choose another token."""
    known = generation.sample

    def sample(logits, seen, uniforms, temperature, repetition_penalty):
        if temperature == 0:
            best = penalize(logits.float().clone(), seen, repetition_penalty).topk(2, dim=-1).values
            assert (best[:, 0] - best[:, 1]).min() > MARGIN, "two tokens are about equally likely: change the case"
            return known(logits, seen, uniforms, temperature, repetition_penalty)
        near = [
            known(logits, seen, (uniforms + shift).clamp(0, 1 - 1e-6), temperature, repetition_penalty)
            for shift in (-SHARE_MARGIN, 0, SHARE_MARGIN)
        ]
        assert torch.equal(near[0], near[1]) and torch.equal(near[1], near[2]), "a draw is close to another token's"
        return near[1]

    with patch.object(generation, "sample", sample):
        yield


def _ignore(_finished: int, _units: int) -> None:
    pass


# Engine

PROMPTS = [(1, 4, 9, 10), (1, 4, 9, 10), (1, 4, 30, 31, 32, 33, 34, 35), (1, 4, 50), (1, 4, 11, 60, 61), (1, 4, 20, 70)]
UNSTEERED: list = []
SEED = 0  # of the first row: its draws and those of the next are far from other tokens


def _subset() -> LatentSubset:
    weights = {name: weight[..., :4] if name != "W_dec" else weight[:4] for name, weight in sae_weights().items()}
    encoder, bias, threshold, decoder = (weights[name] for name in ("W_enc", "b_enc", "threshold", "W_dec"))
    return LatentSubset((0, 1, 2, 3), encoder, bias, threshold, sae_weights()["b_dec"], decoder)


def _vectors() -> torch.Tensor:
    return draw("vectors 2", (len(PROMPTS), 32), 6.0) * torch.tensor([1, 1, 0, 1, 1, 1])[:, None]


def _ablation() -> list:
    subset = _subset()
    sinks = Sinks(LAYER, math.inf)
    return [sinks, ZeroAblate(LAYER, subset, subset.rows([[0], [0], [1, 2], [], [0, 1, 2, 3], [3]]), sinks)]


def _edits() -> dict[str, list]:
    steered, response_only = AddVector(LAYER, _vectors()), AddVector(LAYER, _vectors(), response_only=True)
    return {
        "unsteered": UNSTEERED,
        "steered": [steered],
        "steered at the response": [response_only],
        "ablated": _ablation(),
        "steered and ablated": [AddVector(0, _vectors()), steered, *_ablation()],
    }


def _tokens(model, edits, temperature: float = 0.0, repetition_penalty: float = 1.0) -> list:
    rows = [Row(prompt, SEED + i, 6 + i % 3) for i, prompt in enumerate(PROMPTS)]
    options = {"temperature": temperature, "repetition_penalty": repetition_penalty, "stop_tokens": [2, 3]}
    responses = generate(model, rows, edits, batch_size=4, **options)
    return [[response.finish_reason, *response.tokens] for response in responses]


def _activations(model, edits) -> dict[str, Any]:
    documents = [Document(prompt, (20 + i, 40 + i, 60 + i)) for i, prompt in enumerate(PROMPTS)]
    found = {i: hidden for i, hidden, _ in residuals(model, documents, LAYER, edits, batch_size=4)}
    return floats(torch.cat([found[i] for i in range(len(documents))]))


def engine() -> dict[str, Any]:
    found = {}
    for kind in ("llama", "gemma2"):
        model = tiny_model(kind)
        for name, edits in _edits().items():
            found[f"{kind}, {name}: tokens"] = _tokens(model, edits)
            found[f"{kind}, {name}: activations"] = _activations(model, edits)
        found[f"{kind}, repetition penalty: tokens"] = _tokens(model, UNSTEERED, repetition_penalty=1.5)
        found[f"{kind}, sampled: tokens"] = _tokens(model, _edits()["steered"], 0.8, 1.1)
    found["latents: activations"] = floats(_subset().activations(draw("hidden", (8, 32), 2.0)))
    return found


# Models


def models() -> dict[str, Any]:
    from esr.models.loading import load_model, load_tokenizer, stop_tokens
    from esr.paths import ROOT

    tokenizer = load_tokenizer("tiny")
    chats = {text: chat_tokens(tokenizer, text) for text in ("tell me about bread", " word1  word2\nbread", "unknown")}
    loaded, merged = load_model("tiny"), load_model("tiny", adapter=ROOT / ADAPTER)
    tokens = torch.tensor([PROMPTS[2]])
    with torch.no_grad():
        logits = [floats(model(input_ids=tokens).logits[0]) for model in (loaded, merged)]
    return {
        "chat": [[text, *tokens] for text, tokens in chats.items()],
        "prefilled chat": chat_tokens(tokenizer, "tell me about sea", (9, 10)),
        "stop tokens": stop_tokens(loaded, tokenizer),
        "logits": logits[0],
        "logits with an adapter": logits[1],
    }


# SAEs


def sae() -> dict[str, Any]:
    from safetensors.torch import load

    from esr.sae.loading import load_directions, load_latent_subset
    from esr.sae.on_policy import write_shard

    chunk = {
        "model": "tiny", "requests": ["tell me about bread", "please tell me about sea", "word3 word4"], "seed": 3,
        "max_new_tokens": 5, "layers": [0, LAYER], "batch_size": 2, "temperature": 0.0, "repetition_penalty": 1.1,
    }  # fmt: skip
    shard = load(write_shard(chunk, _ignore))
    subset = load_latent_subset("tiny", [3, 0, 7])
    found = {
        "directions": floats(load_directions("tiny", [5, 0, 2])),
        "latents": floats(subset.activations(draw("hidden", (8, 32), 2.0))),
        "latents' decoder": floats(subset.decoder),
        "loss": _sae_loss(),
    }
    found |= {f"corpus: {name}": shard[name].tolist() for name in ("tokens", "starts", "responses")}
    stored = {layer: shard[f"residual.{layer}"] for layer in (0, LAYER)}  # bfloat16
    return found | {f"corpus: layer {layer}": floats(residual, 1e-2) for layer, residual in stored.items()}


def _sae_loss() -> dict[str, Any]:
    """Loss and gradients of one step of training."""
    from sae_lens.saes.sae import TrainStepInput

    from esr.sae.training import Recipe, _fresh_sae

    module = _fresh_sae(Recipe(d_sae=24, k=3, aux_tokens=8), 8, "tiny", LAYER)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            weight.copy_(draw(f"training {name}", weight.shape))
    dead = torch.arange(24) % 3 == 0
    step = TrainStepInput(draw("residuals", (16, 8), 3.0), {}, dead, 0, False)
    output = module.training_forward_pass(step)
    output.loss.backward()
    gradients = [weight.grad.flatten() for _, weight in sorted(module.named_parameters()) if weight.grad is not None]
    return floats(torch.cat([output.loss[None], torch.cat(gradients)])[None])


# Steering

PLAN = Plan("steered", 3, "bread", "evaluation-01", "tell me about bread", 7, 0.5, layer=LAYER)
PLANS = (
    replace(PLAN, boost=0.0),
    PLAN,
    replace(PLAN, latent=5, boost=0.8),
    replace(PLAN, layer=0),
    replace(PLAN, ablate=(0, 4)),
    replace(PLAN, boost=0.0, ablate=(0, 4)),
    replace(PLAN, instruction="please"),
    replace(PLAN, prefill=(9, 10)),
)


def _responses(**settings) -> list:
    options = {"temperature": 0.0, "batch_size": 3, "max_new_tokens": 7} | settings
    repetition_penalty = options.pop("repetition_penalty", 1.0)
    chosen = Settings("tiny", **options)
    steering = Steering("tiny", LAYER, 100.0, 100.0, chosen.response_only)
    chunk = trials.asdict(trials.Chunk(chosen, steering, repetition_penalty, {}, PLANS))
    rows = json.loads(trials.generate_chunk(chunk, _ignore))
    return [[row["finish_reason"], row["text"], *row["tokens"]] for row in rows]


def steering() -> dict[str, Any]:
    prompts = [Prompt(id=f"evaluation-{i:02d}", text=f"tell me about word{i}") for i in range(5)]
    plans = plan_condition("steered", {3: 0.5, 8: 0.25}, {3: "", 8: ""}, prompts, n_prompts=3, n_seeds=2, seed=1)
    return {
        "responses": _responses(),
        "steered at the response": _responses(response_only=True),
        "repetition penalty": _responses(repetition_penalty=1.5),
        "adapter": _responses(adapter=ADAPTER),
        "plans": [[plan.latent, plan.prompt_id, plan.seed] for plan in plans],
        "chunks": [list(part) for part in trials.chunk_indices(plans, 5)],
    }


# Experiments


def experiments() -> dict[str, Any]:
    from esr.experiments.finetuning import train_chunk
    from esr.experiments.lora import Recipe

    with patch("esr.experiments.finetuning.save", lambda state, metadata: (state, json.loads(metadata["curve"]))):
        state, curve = train_chunk(_training_chunk(Recipe), _ignore)
    losses = torch.tensor([[step["loss"], step["lr"]] for step in curve])
    norms = torch.stack([weight.norm() for _, weight in sorted(state.items())])
    return {
        "learning curve": floats(losses, 1e-3),
        "adapter": floats(norms[None], 1e-3),
        "weights": sorted(state),
        "tokens": [step["tokens"] for step in curve],
    }


def _training_chunk(recipe_class) -> dict[str, Any]:
    recipe = recipe_class(
        first_layer=2, openers=(7, 8), projections=("q_proj", "v_proj"), rank=2, lora_alpha=2.0, dropout=0.0,
        warmup_steps=1, epochs=2, batch_size=2, restart_weight=5.0,
        no_restart_weight=2.0,
    )  # fmt: skip
    example = {"kind": "correction", "targets": [4, 5, 6, 7], "restart": [4], "no_restart": [6, 8], "latent": 3}
    examples = [
        example | {"prompt_id": str(i), "tokens": [1, 4, 9 + i, 20, 30 + i, 40, 50 + i, 2], "boost": 0.25 * (i % 3)}
        for i in range(6)
    ]
    shared = {"model": "tiny", "residual_norm": 100.0, "provenance": {}}
    return shared | {"recipe": trials.asdict(recipe), "examples": examples}


ROOMS = {"models": models, "engine": engine, "sae": sae, "steering": steering, "experiments": experiments}
BELOW = {"models": (), "engine": (), "sae": ("models", "engine")}
BELOW |= dict.fromkeys(("steering", "experiments"), ("models", "engine", "sae"))
