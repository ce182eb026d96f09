"""Tiny random models (real architectures, real code paths, milliseconds), latents of theirs, and judgements by hand."""

import math

import pytest
import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from esr.engine.interventions import LatentSubset, ZeroAblate
from esr.engine.sinks import Sinks
from esr.judging.restarts import Restart
from esr.paths import PIPELINE
from esr.storage.records import Attempt, Judgement

RESTARTS = (
    "Wait, that's not right. Let me start over.",
    "Oops, I made a mistake. Let me try again.",
    "Oops, I made a mistake.",
    "Wait, let me start over.",
)


class ListedRestarts:
    """Stands in for the restart detector: finds `RESTARTS` verbatim between other text."""

    fingerprint = "listed"

    def find(self, prompts, texts):
        return [[r for r in self._in(text) if text[: r.start].strip() and text[r.end :].strip()] for text in texts]

    def _in(self, text):
        found, place = [], 0
        while matches := [(text.index(phrase, place), -len(phrase)) for phrase in RESTARTS if phrase in text[place:]]:
            start, length = min(matches)
            place = start - length
            found.append(Restart(start, text[start:place]))
        return found


SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.5,  # logits far enough apart that sampling has something to choose
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3_ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LONG_ROPE = {"rope_type": "longrope", "short_factor": [1.0, 1.2, 1.4, 1.6], "long_factor": [2.0, 4.0, 6.0, 8.0]}
# Model types and what makes each special, in the form config.json has on the hub; windows are short, caps are tight
ARCHITECTURES = {
    "gemma": ("gemma", {}),
    "gemma2": (
        "gemma2",
        {
            "query_pre_attn_scalar": 16, "sliding_window": 6, "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "gemma3": (
        "gemma3_text",
        {
            "query_pre_attn_scalar": 16, "sliding_window": 6, "sliding_window_pattern": 3,
            "rope_theta": 1e6, "rope_local_base_freq": 10.0,
        },
    ),
    "gemma3-all-sliding": ("gemma3_text", {"sliding_window": 6, "sliding_window_pattern": 9}),
    "llama2": ("llama", {"num_key_value_heads": 4}),
    "llama3": (
        "llama",
        {"rope_theta": 100.0, "rope_scaling": LLAMA3_ROPE | {"original_max_position_embeddings": 32}},
    ),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral-sliding": ("mistral", {"sliding_window": 6}),
    "olmo2": ("olmo2", {}),
    "phi3": (
        "phi3",
        {"sliding_window": 6, "original_max_position_embeddings": 128, "rope_scaling": LONG_ROPE},
    ),
    "qwen2": ("qwen2", {"use_sliding_window": False, "sliding_window": 6, "max_window_layers": 1}),
    "qwen2-sliding": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1, "tie_word_embeddings": True},
    ),
    "qwen2-layer-types": (
        "qwen2",
        {
            "use_sliding_window": True, "sliding_window": 6,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "qwen3": ("qwen3", {}),
    "smollm2": ("llama", {"tie_word_embeddings": True}),
    "smollm3": (
        "smollm3",
        {"use_sliding_window": True, "sliding_window": 6, "no_rope_layers": [1, 0, 1]},
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def in_pipeline(monkeypatch):
    """Outputs go where the pipeline puts them, not to the scratch folder of notebooks run by hand."""
    monkeypatch.setenv(PIPELINE, "1")
    monkeypatch.setenv("ESR_BY_HAND", "")  # unset again after a test that sets it


def tiny_llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES)).eval()


def tiny_gemma2():
    torch.manual_seed(0)
    config = Gemma2Config(**SIZES, query_pre_attn_scalar=8, sliding_window=6, attn_implementation="eager")
    return Gemma2ForCausalLM(config).eval()


def tiny_config(name, **changes):
    model_type, fields = ARCHITECTURES[name]
    return CONFIG_MAPPING[model_type](**SIZES | {"initializer_range": 0.3} | fields | changes)


def tiny_model(name, **changes):
    """A model of `ARCHITECTURES` with random weights, norms and biases included. changes: fields of its config."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(name, **changes)).eval()
    with torch.no_grad():
        for weights in model.parameters():
            if weights.ndim == 1:  # initialized to constants
                weights.add_(0.3 * torch.randn_like(weights))
    return model


def ablation(layer, subset, sets, median_norm=math.inf):
    """The sinks of a layer, the first token alone by default, and the ablation of each trial's set elsewhere."""
    sinks = Sinks(layer, median_norm)
    return [sinks, ZeroAblate(layer, subset, subset.rows(sets), sinks)]


def latent_subset(n=4, bias=0.0, seed=5):
    """Latents whose decoder is their encoder's direction, orthogonal to each other, as in a well-trained SAE."""
    draw = torch.Generator().manual_seed(seed)
    directions = torch.linalg.qr(torch.randn(32, n, generator=draw)).Q
    center = 0.1 * torch.randn(32, generator=draw)
    return LatentSubset(
        tuple(range(10, 10 + n)), directions, torch.full((n,), bias), torch.full((n,), 0.3), center, directions.T
    )


def judgement(
    latent=1, seed=0, scores=(80.0,), outcome="scored", condition="steered", degraded=False, model="tiny", unverified=0
):
    attempts = [Attempt(start=i, end=i + 1, restart="wait" if i else "", score=s) for i, s in enumerate(scores)]
    return Judgement(
        trial_id=f"{model}-{condition}-{latent}-{seed}",
        model=model,
        condition=condition,
        latent=latent,
        prompt_id="evaluation-01",
        seed=seed,
        judge="offline",
        outcome=outcome,
        attempts=attempts,
        degraded=degraded,
        unverified=unverified,
    )


@pytest.fixture(params=[tiny_llama, tiny_gemma2], ids=["llama", "gemma2"])
def model(request):
    return request.param()
