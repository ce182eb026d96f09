"""Edits of a cached residual stream through a few latents of an SAE: ablations, an addition, a random edit.

Zero-ablation equals `esr.engine.interventions.ZeroAblate`. Every kind leaves the SAE's error and attention sinks as
they are, and edits prompt and response.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from esr.engine.interventions import LatentSubset
from esr.storage.digests import digest

# zero: activity becomes 0 (paper, section 3). mean: that of on-topic text. resample: that of another text's tokens.
# add: mean activity of off-topic text comes on top. random: as zero, each token in a random direction of equal norm.
Kind = Literal["zero", "mean", "resample", "add", "random"]


@dataclass(frozen=True)
class Edit:
    """What a condition does to the latents of a set; no latents: nothing. scale: multiplies the change."""

    condition: str
    latents: tuple[int, ...]
    kind: Kind = "zero"
    scale: float = 1.0


@dataclass(frozen=True)
class Reference:
    """Activity that takes the place of a text's own, of the latents of a subset, in its order.

    on_topic, off_topic: means over response tokens. donor: on the tokens of another text, repeated where it is shorter.
    """

    on_topic: Float[Tensor, " latents"]
    off_topic: Float[Tensor, " latents"]
    donor: Float[Tensor, "tokens latents"]


def removed(
    edit: Edit,
    hidden: Float[Tensor, "tokens d_model"],
    sinks: Bool[Tensor, " tokens"],
    subset: LatentSubset,
    reference: Reference | None = None,
) -> Float[Tensor, "tokens d_model"]:
    """What the edit takes from the residual stream, float32; 0 on sinks.

    reference: for the kinds mean, resample and add. Raises ValueError for a latent that `subset` does not have.
    """
    chosen = _mask(subset, edit.latents)
    few = subset.only(chosen)
    activity = few.activations(hidden)
    if edit.kind in ("mean", "resample", "add"):
        if reference is None:
            raise ValueError(f"An edit of the kind {edit.kind} needs the activity of other texts (reference).")
        activity = _change(edit.kind, activity, reference, chosen)
    taken = edit.scale * (activity * ~sinks[:, None]) @ few.decoder
    return _turned(taken, edit) if edit.kind == "random" else taken


def _mask(subset: LatentSubset, latents: Sequence[int]) -> Bool[Tensor, " latents"]:
    """`LatentSubset.rows` of one set, quick for a subset of thousands."""
    places = {latent: place for place, latent in enumerate(subset.latents)}
    if missing := sorted({*latents} - {*places}):
        raise ValueError(f"Latent {missing[0]} is not among the {len(places)} of this latent subset.")
    mask = torch.zeros(len(places), dtype=torch.bool, device=subset.bias.device)
    mask[[places[latent] for latent in latents]] = True
    return mask


def _change(kind: str, activity: Tensor, reference: Reference, chosen: Bool[Tensor, " latents"]) -> Tensor:
    if kind == "add":
        return -reference.off_topic[chosen].expand_as(activity)
    if kind == "mean":
        return activity - reference.on_topic[chosen]
    places = torch.arange(len(activity), device=activity.device) % len(reference.donor)
    return activity - reference.donor[places][:, chosen]


def _turned(taken: Float[Tensor, "tokens d_model"], edit: Edit) -> Float[Tensor, "tokens d_model"]:
    """Vectors of the same norms in directions drawn for the condition and its latents."""
    draw = torch.Generator().manual_seed(int(digest("turned", edit.condition, list(edit.latents))[:12], 16))
    directions = torch.randn(taken.shape, generator=draw).to(taken.device)
    return directions / directions.norm(dim=-1, keepdim=True) * taken.norm(dim=-1, keepdim=True)


def edited(
    edits: Sequence[Edit],
    hidden: Float[Tensor, "tokens d_model"],
    sinks: Bool[Tensor, " tokens"],
    subset: LatentSubset,
    reference: Reference | None = None,
) -> Float[Tensor, "edits tokens d_model"]:
    """The residual stream under each edit, in the dtype of `hidden`."""
    rows = [(hidden.float() - removed(edit, hidden, sinks, subset, reference)).to(hidden.dtype) for edit in edits]
    return torch.stack(rows)


def share_of_vector(
    taken: Float[Tensor, "tokens d_model"], sinks: Bool[Tensor, " tokens"], vector: Float[Tensor, " d_model"]
) -> float:
    """Share of a steering vector that an edit takes away: mean over tokens but sinks of the removed part's component
    along the vector, over the vector's norm. Negative where an edit adds to it; 0 without steering."""
    if not bool(vector.any()) or bool(sinks.all()):
        return 0.0
    return float((taken[~sinks] @ vector).mean() / vector.dot(vector))
