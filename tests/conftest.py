"""Tiny random models: real architectures, real code paths, milliseconds."""

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

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


def tiny_llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES)).eval()


def tiny_gemma2():
    torch.manual_seed(0)
    config = Gemma2Config(**SIZES, query_pre_attn_scalar=8, sliding_window=6, attn_implementation="eager")
    return Gemma2ForCausalLM(config).eval()


@pytest.fixture(params=[tiny_llama, tiny_gemma2], ids=["llama", "gemma2"])
def model(request):
    return request.param()
