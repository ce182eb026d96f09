"""Encode residuals batch by batch, and the norm statistics that leave outlier tokens out."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from esr.models.devices import compute_dtype

BATCH = 4096  # tokens encoded at once


def non_outlier(residuals: Float[Tensor, "n d_model"]) -> Bool[Tensor, " n"]:
    """Where residuals are at most four times as long as the median.

    A model that writes `<|endoftext|>` into an answer gives it a residual as huge as BOS's (here 80 medians): one such
    token outweighs thousands in explained variance, and is the strongest context of many latents.
    """
    norms = torch.cat([batch.float().norm(dim=-1) for batch in residuals.split(BATCH)])
    return norms <= 4 * norms.median()


def encoded(sae, residuals: Tensor) -> Iterator[tuple[Float[Tensor, "batch d_model"], Float[Tensor, "batch d_sae"]]]:
    """Residuals and latents' activations, batch by batch; products in the compute dtype, sums in float32."""
    device, fast = sae.W_dec.device, compute_dtype() == torch.bfloat16
    with torch.inference_mode(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=fast):
        for batch in residuals.split(BATCH):
            batch = batch.float().to(device)
            yield batch, sae.encode(batch)


def median_norm(residuals: Float[Tensor, "n d_model"]) -> float:
    """Median length of a residual: the unit of boosts."""
    return float(torch.cat([batch.float().norm(dim=-1) for batch in residuals.split(BATCH)]).median())
