"""Edits of the residual stream, applied by hooks and always removed.

An intervention names the layer whose output it reads (`model.model.layers[layer]`, SAELens' `hook_resid_post`) and
returns the edited residual stream. The unsteered baseline is the empty list: every condition runs the same code.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass
class Step:
    """What one forward pass holds; the engine updates it in place before each pass.

    trials: index of each row's trial in the list the interventions were built for (0 where `real` is all False).
    real: True where a token is neither padding nor an idle row.
    answer: True where the token belongs to the answer, or is the last prompt token (its output chooses the first one).
    """

    trials: Int[Tensor, " rows"]
    real: Bool[Tensor, "rows seq"]
    answer: Bool[Tensor, "rows seq"]


class Intervention(Protocol):
    layer: int

    def edit(self, hidden: Float[Tensor, "rows seq d_model"], step: Step) -> Float[Tensor, "rows seq d_model"]:
        """The edited residual stream, as a new tensor (or `hidden` itself, untouched)."""
        ...


@dataclass
class AddVector:
    """Steering: `h <- h + vectors[trial]` at every token, or at answer tokens alone (paper section 3: every token).

    vectors: one row per trial, already multiplied by its boost, in the units of the residual stream.
    """

    layer: int
    vectors: Float[Tensor, "trials d_model"]
    answer_only: bool = False

    def edit(self, hidden, step):
        where = step.answer if self.answer_only else step.real
        vectors = self.vectors[step.trials].to(hidden.dtype)
        return hidden + vectors[:, None, :] * where[:, :, None].to(hidden.dtype)


class Capture:
    """Keep the residual stream of real tokens, row by row, in the order they were computed."""

    def __init__(self, layer: int, n_trials: int):
        self.layer = layer
        self.pieces: list[list[Tensor]] = [[] for _ in range(n_trials)]

    def edit(self, hidden, step):
        for row, trial in enumerate(step.trials.tolist()):
            if bool(step.real[row].any()):
                self.pieces[trial].append(hidden[row, step.real[row]].clone())
        return hidden

    def residuals(self, trial: int) -> Float[Tensor, "tokens d_model"]:
        return torch.cat(self.pieces[trial])


@contextmanager
def apply(model: torch.nn.Module, interventions: Iterable[Intervention], step: Step) -> Iterator[None]:
    """Attach `interventions` to `model` in the given order; remove every hook on the way out, also after an error.

    Raises ValueError when a layer does not exist.
    """
    layers = model.model.layers
    interventions = list(interventions)
    for intervention in interventions:
        if not 0 <= intervention.layer < len(layers):
            raise ValueError(
                f"{type(intervention).__name__}.layer is {intervention.layer}; "
                f"the model has layers 0 to {len(layers) - 1}."
            )
    handles = [layers[i.layer].register_forward_hook(_hook(i, step)) for i in interventions]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(intervention: Intervention, step: Step):
    def hook(_module, _inputs, output):
        if isinstance(output, tuple):  # transformers 4; a plain tensor since 5
            return (intervention.edit(output[0], step), *output[1:])
        return intervention.edit(output, step)

    return hook
