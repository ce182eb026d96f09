"""Tiny random models (real architectures, real code paths, milliseconds), latents of theirs, and judgements by hand."""

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from esr.engine.interventions import LatentSubset
from esr.paths import PIPELINE
from esr.storage.records import Attempt, Judgement

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
