"""Edits of the residual stream as data: what a backend is told to do, and to check, at one layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from esr.engine.guard import Guard
from esr.engine.interventions import AddVector, Intervention, LatentSubset, ZeroAblate
from esr.engine.sinks import Part, Sinks, Spared


@dataclass(frozen=True)
class LayerEdit:
    """Steering, then ablation, at the output of `layer`; one row a trial.

    vectors: added to every token, or to response tokens alone with `response_only`, in residual-stream units.
    chosen: the latents of `subset` that each trial zero-ablates, on the tokens of `part`.
    median_norm: of the residual stream at `layer`, by which sinks are known.
    """

    layer: int
    vectors: Float[Tensor, "trials d_model"] | None = None
    response_only: bool = False
    subset: LatentSubset | None = None
    chosen: Bool[Tensor, "trials latents"] | None = None
    median_norm: float = math.inf
    part: Part = "without sinks"

    def __post_init__(self):
        if (self.subset is None) != (self.chosen is None):
            raise ValueError("An ablation needs its latents (subset) and which of them each trial ablates (chosen).")

    def of_trial(self, trial: int) -> LayerEdit:
        """The edit of one trial, with the latents alone that it ablates."""
        vectors = None if self.vectors is None else self.vectors[trial : trial + 1]
        subset = chosen = None
        if self.subset is not None and self.chosen is not None and bool(self.chosen[trial].any()):
            subset = self.subset.only(self.chosen[trial])
            chosen = self.chosen[trial : trial + 1, self.chosen[trial]]
        return replace(self, vectors=vectors, subset=subset, chosen=chosen)

    def of_trials(self, trials: slice) -> LayerEdit:
        """The edits of some trials that follow each other."""
        vectors, chosen = (None if part is None else part[trials] for part in (self.vectors, self.chosen))
        return replace(self, vectors=vectors, chosen=chosen)

    def to(self, device: torch.device) -> LayerEdit:
        vectors, chosen = (None if part is None else part.to(device) for part in (self.vectors, self.chosen))
        return replace(self, vectors=vectors, chosen=chosen, subset=self.subset and self.subset.to(device))

    def guard(self) -> Guard:
        return Guard(
            self.layer, self.vectors, self.response_only, self.subset, self.chosen, self.median_norm, self.part
        )  # fmt: skip

    def interventions(self) -> list[Intervention]:
        """The hooks of the transformers engine, in order."""
        found: list[Intervention] = []
        if self.vectors is not None:
            found.append(AddVector(self.layer, self.vectors, self.response_only))
        if self.subset is not None and self.chosen is not None:
            plain = self.part == "without sinks"
            sinks = Sinks(self.layer, self.median_norm) if plain else Spared(self.layer, self.median_norm, self.part)
            found = [sinks, *found, ZeroAblate(self.layer, self.subset, self.chosen, sinks)]
        return found


def interventions_of(edits: Sequence[LayerEdit]) -> list[Intervention]:
    return [intervention for edit in edits for intervention in edit.interventions()]


def guarded(edits: Sequence[LayerEdit]) -> tuple[list[Guard], list[Intervention]]:
    """The edits' guards, and all hooks in order, guards first: they read what no edit has touched."""
    guards = [edit.guard() for edit in edits]
    return guards, [*guards, *interventions_of(edits)]
