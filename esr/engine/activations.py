"""Collect the residual stream of texts that are there, under the edits they were written under.

Everything streams, batch by batch; nothing above the layer that is read is computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from esr.engine.interventions import Capture, Captured, Intervention, Step, apply
from esr.engine.workers import split
from esr.progress import Progress

BATCH = 16  # documents run side by side


@dataclass(frozen=True)
class Document:
    """Token ids of a prompt (chat template and any prefill included) and of an answer to it, or to another prompt."""

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
    batch_size: int = BATCH,
    what: str = "reading",
) -> Iterator[tuple[int, Float[Tensor, "answer_tokens d_model"]]]:
    """Index of each document and the residual stream at `layer` on its answer's tokens, read after the edits.

    edits: indexed like `documents`. Documents come in order of length. What generation saw, but for the last token,
    which it never ran; in bfloat16 up to rounding.
    """
    order = sorted(range(len(documents)), key=lambda i: len(documents[i]))
    progress, done, tokens = Progress(what, len(order), "responses"), 0, 0
    for part in split(order, batch_size):
        capture = Capture(layer, leave=True)  # last of the layer: after the edits
        ids, step = _padded(model, documents, part)
        with suppress(Captured), apply(model, [*edits, capture], step):
            model.model(input_ids=ids, use_cache=False)
        for i in part:
            yield i, capture.residuals(i)[len(documents[i].prompt) :]
        done, tokens = done + len(part), tokens + int(step.real.sum())
        progress.update(done, tokens)


def _padded(model, documents: Sequence[Document], part: Sequence[int]) -> tuple[Tensor, Step]:
    """Token ids of some documents, padded behind (unseen by a causal model), and the pass that holds them."""
    width = max(len(documents[i]) for i in part)
    ids = torch.zeros(len(part), width, dtype=torch.long, device=model.device)
    real, response = torch.zeros_like(ids, dtype=torch.bool), torch.zeros_like(ids, dtype=torch.bool)
    for row, i in enumerate(part):
        document = documents[i]
        ids[row, : len(document)] = torch.tensor([*document.prompt, *document.response])
        real[row, : len(document)] = True
        response[row, len(document.prompt) - 1 : len(document)] = True  # the last prompt token chooses the first one
    return ids, Step(torch.tensor(part, device=model.device), real, response)
