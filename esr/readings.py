"""Answers read again: the model runs over text that is there, under the edits it was written under.

Everything streams, batch by batch, so that memory does not grow with the number of documents; nothing above the layer
that is read is computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from esr.config import model_entry
from esr.detectors import Activity
from esr.interventions import Intervention, Readout, Step, apply
from esr.models import chat_tokens
from esr.progress import Progress
from esr.records import Trial
from esr.steering import build_edits, said
from esr.workers import split

BATCH = 16  # documents run side by side


@dataclass(frozen=True)
class Document:
    """Token ids of a prompt (chat template and any prefill included) and of an answer to it, or to another prompt."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


def documents_of(trials: Sequence[Trial], tokenizer) -> list[Document]:
    """What the model had before it and wrote in each trial."""
    return [Document(chat_tokens(tokenizer, said(t), t.prefill), tuple(t.tokens)) for t in trials]


def edits_of(trials: Sequence[Trial], residual_norm: float, device) -> list[Intervention]:
    """The edits under which trials of one model were written, indexed like `trials`: steering, then ablation.

    residual_norm: the unit of boosts (esr.steering.residual_norm). Raises ValueError for trials of several models.
    """
    kinds = sorted({(t.model, t.answer_only) for t in trials})
    if len(kinds) > 1:
        raise ValueError(f"Trials of several models or kinds of steering ({kinds}): read those of one at a time.")
    if not kinds:
        return []
    model, answer_only = kinds[0]
    shared = {"model": model, "sae_layer": model_entry(model).sae_layer}
    shared |= {"residual_norm": residual_norm, "answer_only": answer_only}
    return build_edits(shared, trials, device)[1]


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
    progress, done, tokens = Progress(what, len(order), "answers"), 0, 0
    for part in split(order, batch_size):
        reading = _Reading(layer)
        ids, step = _padded(model, documents, part)
        with suppress(_Enough), apply(model, [*edits, reading], step):
            model.model(input_ids=ids, use_cache=False)
        for row, i in enumerate(part):
            first = len(documents[i].prompt)
            yield i, reading.hidden[row, first : len(documents[i])]
        done, tokens = done + len(part), tokens + int(step.real.sum())
        progress.update(done, tokens)


@torch.no_grad()
def max_activations(
    model, sae, documents: Sequence[Document], layer: int, edits: Sequence[Intervention] = (), **reading
) -> Float[np.ndarray, "documents d_sae"]:
    """Every latent's largest activation over the answer's tokens; 0 for an empty answer. `reading` as in `residuals`.

    The whole SAE is applied, to one document at a time.
    """
    maxima = np.zeros((len(documents), sae.W_dec.shape[0]), dtype=np.float32)
    for i, hidden in residuals(model, documents, layer, edits, **reading):
        if len(hidden):
            maxima[i] = sae.encode(hidden.float()).amax(0).cpu().numpy()
    return maxima


@torch.no_grad()
def latent_activity(
    model, sae, documents: Sequence[Document], layer: int, edits: Sequence[Intervention] = (), **reading
) -> Activity:
    """How often and how strongly every latent fires on answers' tokens; a running sum. `reading` as in `residuals`."""
    fired, summed, tokens = 0.0, 0.0, 0
    for _, hidden in residuals(model, documents, layer, edits, **reading):
        activations = sae.encode(hidden.float())
        fired = fired + (activations > 0).sum(0).double()
        summed = summed + activations.sum(0, dtype=torch.float64)
        tokens += len(hidden)
    if not tokens:
        raise ValueError("There is no answer with a token to read: steer first, or take other answers.")
    return Activity((fired / tokens).cpu().numpy(), (summed / tokens).cpu().numpy(), tokens)


@torch.no_grad()
def token_activations(
    model, readout: Readout, documents: Sequence[Document], layer: int, edits: Sequence[Intervention] = (), **reading
) -> Iterator[tuple[int, Float[np.ndarray, "answer_tokens latents"]]]:
    """Index of each document and the activations of the readout's latents, token by token, as in `residuals`."""
    for i, hidden in residuals(model, documents, layer, edits, **reading):
        yield i, readout.activations(hidden).cpu().numpy()


class _Enough(Exception):
    """The layer that is read is computed: raised to leave the forward pass there."""


class _Reading:
    """The last intervention of a layer: keeps what the others left."""

    def __init__(self, layer: int):
        self.layer = layer

    def edit(self, hidden, step):
        self.hidden = hidden
        raise _Enough

    def prompt_key(self, trial):
        return None


def _padded(model, documents: Sequence[Document], part: Sequence[int]) -> tuple[Tensor, Step]:
    """Token ids of some documents, padded behind (unseen by a causal model), and the pass that holds them."""
    width = max(len(documents[i]) for i in part)
    ids = torch.zeros(len(part), width, dtype=torch.long, device=model.device)
    real, answer = torch.zeros_like(ids, dtype=torch.bool), torch.zeros_like(ids, dtype=torch.bool)
    for row, i in enumerate(part):
        document = documents[i]
        ids[row, : len(document)] = torch.tensor([*document.prompt, *document.answer])
        real[row, : len(document)] = True
        answer[row, len(document.prompt) - 1 : len(document)] = True  # the last prompt token chooses the first one
    return ids, Step(torch.tensor(part, device=model.device), real, answer)
