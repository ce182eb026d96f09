"""Activations of latents on steered and unsteered texts: by token, maxima, and firing rates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from esr.engine.activations import Document
from esr.engine.backend import Backend
from esr.engine.edits import LayerEdit
from esr.engine.interventions import LatentSubset
from esr.models.chat import chat_tokens
from esr.sae.encoding import tokens_at_once
from esr.steering.trials import Steering, build_edits, user_message
from esr.storage.records import Trial


def documents_of(trials: Sequence[Trial], tokenizer) -> list[Document]:
    """Prompt and response of each trial as token ids."""
    return [Document(chat_tokens(tokenizer, user_message(t), t.prefill), tuple(t.tokens)) for t in trials]


def edits_of(trials: Sequence[Trial], device) -> list[LayerEdit]:
    """Edits under which the trials of one model were generated, indexed like `trials`: steering, then ablation.

    Raises ValueError for trials of several models.
    """
    kinds = sorted({(t.model, t.response_only) for t in trials})
    if len(kinds) > 1:
        raise ValueError(f"Trials of several models or kinds of steering ({kinds}): pass those of one at a time.")
    return build_edits(Steering.of(*kinds[0]), trials, device) if kinds else []


@torch.no_grad()
def max_activations(
    backend: Backend, sae, documents: Sequence[Document], layer: int, edits: Sequence[LayerEdit] = (), **options
) -> Float[np.ndarray, "documents d_sae"]:
    """Every latent's largest activation over the response's tokens but sinks; 0 where there are none.

    Applies the whole SAE to one document at a time, in batches of tokens. options: as in
    `Backend.collect`, the median norm of the SAE's layer among them.
    """
    maxima = np.zeros((len(documents), sae.W_dec.shape[0]), dtype=np.float32)
    for i, hidden, sinks in backend.collect(documents, layer, edits, **options):
        if not sinks.all():
            pieces = [sae.encode(piece.float()).amax(0) for piece in hidden[~sinks].split(tokens_at_once(sae))]
            maxima[i] = torch.stack(pieces).amax(0).cpu().numpy()
    return maxima


@torch.no_grad()
def latent_activity(
    backend: Backend, sae, documents: Sequence[Document], layer: int, edits: Sequence[LayerEdit] = (), **options
) -> Activity:
    """How often and how strongly every latent fires on response tokens but sinks. options: as in `max_activations`."""
    fired = summed = torch.zeros((), dtype=torch.float64)
    tokens = 0
    for _, hidden, sinks in backend.collect(documents, layer, edits, **options):
        hidden = hidden[~sinks]
        for piece in hidden.split(tokens_at_once(sae)):
            activations = sae.encode(piece.float())
            fired = fired + (activations > 0).sum(0).double()
            summed = summed + activations.sum(0, dtype=torch.float64)
        tokens += len(hidden)
    if not tokens:
        raise ValueError("There is no response with a token: steer first, or pass other responses.")
    return Activity((fired / tokens).cpu().numpy(), (summed / tokens).cpu().numpy(), tokens)


@torch.no_grad()
def latent_margins(
    backend: Backend,
    subset: LatentSubset,
    documents: Sequence[Document],
    layer: int,
    edits: Sequence[LayerEdit] = (),
    **options,
) -> Float[np.ndarray, " latents"]:
    """How near each latent comes to firing on a token of prompts and responses but sinks; below 0: it never fires.

    The largest of `LatentSubset.margins`. options: as in `max_activations`.
    """
    whole = [Document(d.prompt[:1], (*d.prompt[1:], *d.response)) for d in documents]  # all tokens but the first
    highest = torch.full((len(subset.latents),), -torch.inf, device=subset.bias.device)
    for _, hidden, sinks in backend.collect(whole, layer, edits, **options):
        if not sinks.all():
            highest = torch.maximum(highest, subset.margins(hidden[~sinks]).amax(0))
    return highest.cpu().numpy()


@torch.no_grad()
def token_activations(
    backend: Backend,
    subset: LatentSubset,
    documents: Sequence[Document],
    layer: int,
    edits: Sequence[LayerEdit] = (),
    **options,
) -> Iterator[tuple[int, Float[np.ndarray, "response_tokens latents"]]]:
    """Index of each document and the subset's activations on its response tokens, 0 on sinks.

    options: as in `max_activations`.
    """
    for i, hidden, sinks in backend.collect(documents, layer, edits, **options):
        yield i, (subset.activations(hidden) * ~sinks[:, None]).cpu().numpy()


@dataclass(frozen=True)
class Activity:
    """Firing frequency and mean activation of every latent per response token; silent tokens count as 0."""

    frequency: Float[np.ndarray, " d_sae"]
    mean: Float[np.ndarray, " d_sae"]
    tokens: int

    def logs(self) -> Float[np.ndarray, "d_sae 2"]:
        """Log frequency and log mean. Zeros count as half a token and half the smallest mean."""
        halves = 0.5 / self.tokens, 0.5 * self.mean[self.mean > 0].min(initial=np.inf)
        floors = [half if np.isfinite(half) else 1.0 for half in halves]
        columns = zip((self.frequency, self.mean), floors, strict=True)
        return np.log(np.column_stack([np.maximum(values, floor) for values, floor in columns]))
