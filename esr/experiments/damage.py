"""What ablating latents costs the model, and on which tokens: the rise of cross-entropy on given responses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from esr.engine.activations import Document
from esr.engine.interventions import Intervention, LatentSubset, Step, ZeroAblate, apply
from esr.engine.sinks import Sinks

PARTS = ("every token", "sinks", "prompt without sinks", "response without sinks")


class Except(Sinks):
    """Has an ablation leave alone all tokens but one of `PARTS`, among them the sinks that it is meant to spare."""

    def __init__(self, layer: int, median_norm: float, part: str):
        super().__init__(layer, median_norm)
        self.part = part

    def edit(self, hidden, step):
        super().edit(hidden, step)
        parts: dict[str, Bool[Tensor, "rows seq"]] = {
            "every token": torch.ones_like(self.mask),
            "sinks": self.mask,
            "prompt without sinks": ~step.response & ~self.mask,
            "response without sinks": step.response & ~self.mask,
        }
        self.mask = ~parts[self.part]
        return hidden


@torch.inference_mode()
def cross_entropy_rise(
    model, documents: Sequence[Document], sets: dict[str, LatentSubset], layer: int, median_norm: float
) -> pd.DataFrame:
    """Rise of the mean cross-entropy of response tokens (nats) when each set's latents are ablated at each of `PARTS`.

    median_norm: at `layer`, where latents are ablated. Rows are sets, columns `PARTS`.
    """
    clean = cross_entropy(model, documents, [])
    rows: dict[str, dict[str, float]] = {}
    for name, subset in sets.items():
        chosen = torch.ones(1, len(subset.latents), dtype=torch.bool, device=model.device)
        rows[name] = {}
        for part in PARTS:
            spared = Except(layer, median_norm, part)
            edits: list[Intervention] = [spared, ZeroAblate(layer, subset, chosen, spared)]
            rows[name][part] = float(np.mean(cross_entropy(model, documents, edits) - clean))
    return pd.DataFrame(rows).T


@torch.inference_mode()
def cross_entropy(
    model, documents: Sequence[Document], edits: Sequence[Intervention]
) -> Float[np.ndarray, " response_tokens"]:
    """Cross-entropy of every response token, one document at a time."""
    losses = []
    for document in documents:
        ids = torch.tensor([[*document.prompt, *document.response]], device=model.device)
        begin, real = len(document.prompt), torch.ones_like(ids, dtype=torch.bool)
        positions = torch.arange(ids.shape[1], device=ids.device)[None]
        step = Step(torch.zeros(1, dtype=torch.long, device=ids.device), real, positions >= begin - 1, positions)
        with apply(model, edits, step):
            logits = model(input_ids=ids).logits[0, begin - 1 : -1].float()
        losses.append(torch.nn.functional.cross_entropy(logits, ids[0, begin:], reduction="none").cpu().numpy())
    return np.concatenate(losses)
