"""Attention over a ragged cache: one query per row against keys stored row by row, the main cost of a decoding step.

PyTorch's CPU kernel for scaled dot products targets long queries. For a single query, one batched matrix product
`keys @ query` over all heads that share a key head is two to three times faster (SmolLM2-135M, 96 rows, 236 keys, one
core: 1.2 ms a layer instead of 2.7).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

RAGGED = "esr_ragged"


def ragged_attention(
    module,
    query: Float[Tensor, "rows heads queries head_dim"],
    key: Float[Tensor, "rows key_heads keys head_dim"],
    value: Float[Tensor, "rows key_heads keys head_dim"],
    attention_mask: Float[Tensor, "rows 1 queries keys"],
    scaling: float,
    softcap: float | None = None,
    **kwargs,
) -> tuple[Float[Tensor, "rows queries heads head_dim"], None]:
    """Attention output as transformers' layers expect it. Takes an additive float32 mask and Gemma 2's soft cap.

    Scores are products in the model's dtype, normalized in float32, as in transformers' eager attention.
    """
    if query.shape[2] > 1 and softcap is None:
        mask = attention_mask.to(query.dtype)
        return sdpa_attention_forward(module, query, key, value, mask, scaling=scaling, is_causal=False)
    rows, heads, queries, head_dim = query.shape
    key_heads, keys = key.shape[1:3]
    group = heads // key_heads  # query heads that share a key head
    grouped = query.reshape(rows * key_heads, group * queries, head_dim)
    scores = torch.bmm(key.flatten(0, 1), grouped.transpose(1, 2))  # keys first: read in storage order
    scores = scores.transpose(1, 2).to(torch.float32, memory_format=torch.contiguous_format, copy=True).mul_(scaling)
    if softcap is not None:
        scores.div_(softcap).tanh_().mul_(softcap)
    scores.view(rows, key_heads, group, queries, keys).add_(attention_mask[:, :, None])
    mixed = torch.bmm(scores.softmax(dim=-1).to(value.dtype), value.flatten(0, 1))
    return mixed.view(rows, heads, queries, head_dim).transpose(1, 2).contiguous(), None


AttentionInterface.register(RAGGED, ragged_attention)


def masks(
    seen: Bool[Tensor, "rows 1 queries keys"],
    positions: Int[Tensor, "rows queries"],
    windows: dict[str, int | None],
) -> Tensor | dict[str, Tensor]:
    """Additive masks by layer type, as a model takes them; a single one where all layers are of one type.

    seen: the keys at and before each query. windows: as of `attention_windows`.
    """
    keys = torch.arange(seen.shape[-1], device=seen.device)
    by_type = {}
    for layer_type, window in windows.items():
        near = seen if window is None else seen & (keys > positions[:, None, :, None] - window)
        by_type[layer_type] = _additive(near)
    return by_type if len(by_type) > 1 else next(iter(by_type.values()))


def _additive(seen: Tensor) -> Tensor:
    """Mask to add to scores: 0 where a key is seen, the float32 minimum elsewhere."""
    mask = torch.zeros(seen.shape, device=seen.device)
    return mask.masked_fill_(~seen, torch.finfo(torch.float32).min)


@contextmanager
def attention_by(model, name: str) -> Iterator[None]:
    """Within the block `model` uses the attention transformers registers as `name`, such as "eager" or RAGGED."""
    before = model.config._attn_implementation
    model.config._attn_implementation = name
    try:
        yield
    finally:
        model.config._attn_implementation = before
