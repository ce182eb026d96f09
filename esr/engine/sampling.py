"""Next-token sampling: repetition penalty, temperature, inverse CDF at one uniform number per row.

One uniform per row and token, drawn from the row's seed, makes a row's choice independent of its batch. It costs a
fraction of `torch.multinomial`, whose full-vocabulary noise rivals a small model's forward pass on a CPU.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

BLOCK = 64  # the CDF search takes two steps: block sums, then one block
CACHED = 400_000  # logits a pass, to fit in a core's cache (192 rows of 49,152: 11 ms instead of 69)


def penalize(
    logits: Float[Tensor, "rows vocab"], seen: Int[Tensor, "rows tokens"], penalty: float
) -> Float[Tensor, "rows vocab"]:
    """Divide positive and multiply negative logits of `seen` tokens by `penalty` (Keskar et al. 2019), once each.

    Changes `logits` in place and returns it.
    """
    if penalty == 1.0:
        return logits
    scores = logits.gather(1, seen)
    scores = torch.where(scores > 0, scores / penalty, scores * penalty)
    return logits.scatter_(1, seen, scores)  # a repeated token writes the same value twice


def sample(
    logits: Float[Tensor, "rows vocab"],
    seen: Int[Tensor, "rows tokens"],
    uniforms: Float[Tensor, " rows"],
    temperature: float,
    repetition_penalty: float = 1.0,
) -> Int[Tensor, " rows"]:
    """One token per row from softmax(penalized logits / temperature) at CDF value `uniforms` in [0, 1).

    temperature 0 takes the largest logit. Computes in float32 for every dtype; leaves `logits` unchanged.
    """
    pass_rows = max(1, CACHED // logits.shape[1]) if logits.device.type == "cpu" else len(logits)
    parts = zip(logits.split(pass_rows), seen.split(pass_rows), uniforms.split(pass_rows), strict=True)
    return torch.cat([_draw(*part, temperature, repetition_penalty) for part in parts])


def _draw(logits, seen, uniforms, temperature: float, repetition_penalty: float) -> Int[Tensor, " rows"]:
    weights = penalize(logits.to(torch.float32, copy=True), seen, repetition_penalty)
    if temperature == 0:
        return weights.argmax(dim=-1)
    weights.sub_(weights.amax(dim=-1, keepdim=True)).div_(temperature).exp_()
    if overhang := weights.shape[-1] % BLOCK:
        weights = torch.nn.functional.pad(weights, (0, BLOCK - overhang))
    weights = weights.unflatten(-1, (-1, BLOCK))
    block_cdf = weights.sum(dim=-1).cumsum(dim=-1)
    target = uniforms[:, None] * block_cdf[:, -1:]
    block = torch.searchsorted(block_cdf, target, right=True).clamp(max=block_cdf.shape[1] - 1)
    below = torch.where(block > 0, block_cdf.gather(1, (block - 1).clamp(min=0)), 0.0)
    inner = weights.gather(1, block[:, :, None].expand(-1, -1, BLOCK))[:, 0]
    place = torch.searchsorted(inner.cumsum(dim=-1), target - below, right=True)
    # Rounding can put the target past the block's sum: take the block's last token with any weight.
    last = BLOCK - 1 - (inner.flip(-1) > 0).int().argmax(dim=-1, keepdim=True)
    return (block * BLOCK + torch.minimum(place, last))[:, 0]
