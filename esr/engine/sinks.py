"""Attention sinks: tokens on which the residual stream is huge, the first one and in some models a few later ones.

SAEs are not trained on them and misfire there, and a change there reaches every later token through attention. So no
latent is read, counted or ablated on a sink. Steering edits every token, as in the paper.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

SINK_NORM = 4.0  # times the median norm; the sinks of the models tried have 21 to 134
# Tokens that an ablation may reach
Part = Literal["without sinks", "every token", "sinks", "prompt without sinks", "response without sinks"]


def sink_mask(
    hidden: Float[Tensor, "*tokens d_model"], median_norm: float, positions: Int[Tensor, "*tokens"] | None = None
) -> Bool[Tensor, "*tokens"]:
    """True where the norm is above `SINK_NORM` medians, and at position 0 if positions are given.

    Token ids do not tell: the first token of a chat may come again in every turn. median_norm: of ordinary tokens at
    the layer that `hidden` is the output of, before it is edited.
    """
    mask = hidden.float().norm(dim=-1) > SINK_NORM * median_norm
    return mask if positions is None else mask | (positions == 0)


def part_mask(part: Part, sinks: Bool[Tensor, "*tokens"], response: Bool[Tensor, "*tokens"]) -> Bool[Tensor, "*tokens"]:
    """True on the tokens of `part`. response: the mask of `esr.engine.interventions.Step`."""
    masks: dict[str, Bool[Tensor, "*tokens"]] = {
        "without sinks": ~sinks,
        "every token": torch.ones_like(sinks),
        "sinks": sinks,
        "prompt without sinks": ~response & ~sinks,
        "response without sinks": response & ~sinks,
    }
    return masks[part]


class Sinks:
    """Finds the sinks of each pass at a layer, before it is edited: an intervention that edits nothing, placed first.

    mask: of the present pass.
    """

    def __init__(self, layer: int, median_norm: float):
        self.layer, self.median_norm = layer, median_norm
        self.mask: Bool[Tensor, "rows seq"] = torch.zeros(0, 0, dtype=torch.bool)

    def edit(self, hidden, step):
        self.mask = sink_mask(hidden, self.median_norm, step.positions)
        return hidden

    def prompt_key(self, trial):
        return ()


class Spared(Sinks):
    """Has an ablation leave alone all tokens but those of `part`, among them the sinks that it is meant to spare."""

    def __init__(self, layer: int, median_norm: float, part: Part):
        super().__init__(layer, median_norm)
        self.part = part

    def edit(self, hidden, step):
        super().edit(hidden, step)
        self.mask = ~part_mask(self.part, self.mask, step.response)
        return hidden
