"""Baseline steering: `transformers.generate` with a forward hook that adds the vector, on all threads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


@contextmanager
def steered(model, layer: int, vectors: Float[Tensor, "rows d_model"]) -> Iterator[None]:
    """Add row r's vector to every token of row r after `layer`, padding included: nothing attends to padding."""
    added = vectors.to(model.device, model.dtype)[:, None]
    handle = model.model.layers[layer].register_forward_hook(lambda _module, _inputs, output: output + added)
    try:
        yield
    finally:
        handle.remove()


def ignore_stop_tokens(model) -> None:
    """Make `generate` continue to the length limit, as every method here does."""
    model.generation_config.eos_token_id = None


def sampling(temperature: float, repetition_penalty: float) -> dict[str, Any]:
    """Arguments of `generate` for the experiments' sampling: whole vocabulary, no top-k, no top-p."""
    chosen = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}
    return {"do_sample": False, "repetition_penalty": repetition_penalty} | chosen


@torch.inference_mode()
def generate_batch(
    model, prompts: Sequence[Sequence[int]], vectors: Float[Tensor, "rows d_model"], layer: int, tokens: int, **settings
) -> list[list[int]]:
    """`tokens` new tokens per prompt, all prompts in one left-padded batch. settings: of `sampling`."""
    width = max(map(len, prompts))
    ids = torch.zeros(len(prompts), width, dtype=torch.long, device=model.device)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    with steered(model, layer, vectors):
        written = model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=tokens,
            pad_token_id=0,
            **settings,
        )
    return written[:, width:].tolist()


def generate_one(
    model, prompts: Sequence[Sequence[int]], vectors: Float[Tensor, "rows d_model"], layer: int, tokens: int, **settings
) -> list[list[int]]:
    """`generate_batch`, one prompt at a time."""
    return [
        generate_batch(model, [prompt], vectors[row : row + 1], layer, tokens, **settings)[0]
        for row, prompt in enumerate(prompts)
    ]
