"""What ablating latents costs the model, and on which tokens: the rise of cross-entropy on given responses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from esr.engine.activations import Document
from esr.engine.backend import Backend
from esr.engine.edits import LayerEdit
from esr.engine.interventions import LatentSubset
from esr.engine.sinks import Part

PARTS: tuple[Part, ...] = get_args(Part)[1:]  # the first is the union of the last two


def cross_entropy_rise(
    backend: Backend, documents: Sequence[Document], sets: dict[str, LatentSubset], layer: int, median_norm: float
) -> pd.DataFrame:
    """Rise of the mean cross-entropy of response tokens (nats) when each set's latents are ablated at each of `PARTS`.

    median_norm: at `layer`, where latents are ablated. Rows are sets, columns `PARTS`.
    """
    clean = cross_entropy(backend, documents, [])
    rows: dict[str, dict[str, float]] = {}
    for name, subset in sets.items():
        chosen = torch.ones(len(documents), len(subset.latents), dtype=torch.bool, device=subset.bias.device)
        rows[name] = {}
        for part in PARTS:
            edit = LayerEdit(layer, subset=subset, chosen=chosen, median_norm=median_norm, part=part)
            rows[name][part] = float(np.mean(cross_entropy(backend, documents, [edit]) - clean))
    return pd.DataFrame(rows).T


def cross_entropy(
    backend: Backend, documents: Sequence[Document], edits: Sequence[LayerEdit]
) -> Float[np.ndarray, " response_tokens"]:
    """Cross-entropy of every response token."""
    return -np.concatenate([scores.cpu().numpy() for scores in backend.score(documents, edits)])
