"""Encode residuals in batches, find outlier tokens, and measure the median norm."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from esr.engine.sinks import sink_mask
from esr.models.devices import compute_dtype

BATCH = 4096  # tokens
ACTIVATIONS = 2**26  # at once: 256 MB in float32


def non_outlier(residuals: Float[Tensor, "n d_model"]) -> Bool[Tensor, " n"]:
    """Mask of residuals that are no attention sinks, by their own median norm.

    A `<|endoftext|>` inside a response has a residual as large as that of BOS (80 medians in SmolLM2-135M). One of them
    outweighs thousands of tokens in explained variance and is the strongest context of many latents.
    """
    median = median_norm(residuals)
    return torch.cat([~sink_mask(batch, median) for batch in residuals.split(BATCH)])


def encoded(sae, residuals: Tensor) -> Iterator[tuple[Float[Tensor, "batch d_model"], Float[Tensor, "batch d_sae"]]]:
    """Yield residuals and latent activations per batch; products in the compute dtype, sums in float32.

    A wide SAE takes smaller batches (131,072 latents: 512 tokens).
    """
    device, fast = sae.W_dec.device, compute_dtype() == torch.bfloat16
    with torch.inference_mode(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=fast):
        for batch in residuals.split(tokens_at_once(sae)):
            batch = batch.float().to(device)
            yield batch, sae.encode(batch)


def tokens_at_once(sae) -> int:
    """Number of tokens whose activations of all latents are held at once."""
    return min(BATCH, max(1, ACTIVATIONS // sae.W_dec.shape[0]))


def median_norm(residuals: Float[Tensor, "n d_model"]) -> float:
    """Median norm of residuals: the unit of boosts."""
    return float(torch.cat([batch.float().norm(dim=-1) for batch in residuals.split(BATCH)]).median())
