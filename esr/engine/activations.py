"""Collect the residual stream of existing texts, under the edits they were generated under.

Streams batch by batch and computes nothing above the collected layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from esr.engine.architecture import check_architecture, max_positions
from esr.engine.finite import non_finite, sums
from esr.engine.interventions import Capture, Captured, Intervention, Step, apply
from esr.engine.sinks import Sinks
from esr.engine.workers import split
from esr.progress import Progress

BATCH = 16  # documents a batch


@dataclass(frozen=True)
class Document:
    """Token ids of a prompt (chat template and any prefill included) and of a response to it or to another prompt."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.response)


@torch.no_grad()
def residuals(
    model,
    documents: Sequence[Document],
    layer: int,
    edits: Sequence[Intervention] = (),
    *,
    median_norm: float = math.inf,
    batch_size: int = BATCH,
    what: str = "activations",
) -> Iterator[tuple[int, Float[Tensor, "response_tokens d_model"], Bool[Tensor, " response_tokens"]]]:
    """Index of each document, the residual stream at `layer` on its response tokens, after the edits, and their sinks.

    edits: indexed like `documents`. median_norm: at `layer`, for the mask of sinks. Yields in order of length. Equals
    what generation computed, up to rounding in bfloat16; generation never ran the last token. Raises ValueError, before
    any work, for a model or document that cannot run, and NonFiniteError for a document whose residual stream
    overflows.
    """
    check_architecture(model)
    check_lengths(model.config, documents)
    order = sorted(range(len(documents)), key=lambda i: len(documents[i]))
    progress, done, tokens = Progress(what, len(order), "responses"), 0, 0
    for batch in split(order, batch_size):
        sinks, capture = Sinks(layer, median_norm), Capture(layer, leave=True)  # read before and after the edits
        ids, step = _padded(model, documents, batch)
        with suppress(Captured), apply(model, [sinks, *edits, capture], step):
            model.model(input_ids=ids, use_cache=False)
        for row, i in enumerate(batch):
            hidden = capture.residuals(i)
            if not bool(sums(hidden).isfinite().all()):
                raise non_finite("Document", i, "in its prompt or response", layer, hidden.dtype)
            begin, end = len(documents[i].prompt), len(documents[i])
            yield i, hidden[begin:], sinks.mask[row, begin:end]
        done, tokens = done + len(batch), tokens + int(step.real.sum())
        progress.update(done, tokens)


def check_lengths(config, documents: Sequence[Document]) -> None:
    """Raise ValueError for a document longer than the model's positions."""
    limit = max_positions(config)
    for i, document in enumerate(documents):
        if len(document) > limit:
            raise ValueError(f"Document {i} has {len(document)} tokens, and the model {limit} positions: shorten it.")


def _padded(model, documents: Sequence[Document], batch: Sequence[int]) -> tuple[Tensor, Step]:
    """Right-padded token ids of some documents, and the pass that holds them; causal attention ignores the padding."""
    width = max(len(documents[i]) for i in batch)
    ids = torch.zeros(len(batch), width, dtype=torch.long, device=model.device)
    real, response = torch.zeros_like(ids, dtype=torch.bool), torch.zeros_like(ids, dtype=torch.bool)
    for row, i in enumerate(batch):
        document = documents[i]
        ids[row, : len(document)] = torch.tensor([*document.prompt, *document.response])
        real[row, : len(document)] = True
        response[row, len(document.prompt) - 1 : len(document)] = True  # the last prompt token predicts the first
    positions = torch.arange(width, device=model.device).expand_as(ids)
    return ids, Step(torch.tensor(batch, device=model.device), real, response, positions)
