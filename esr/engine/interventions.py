"""Edits of the residual stream, applied by hooks and always removed.

An intervention names the layer whose output it reads (`model.model.layers[layer]`, SAELens' `hook_resid_post`) and
returns the edited residual stream. The unsteered baseline is the empty list: every condition runs the same code.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
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
    response: Bool[Tensor, "rows seq"]


class Intervention(Protocol):
    layer: int

    def edit(self, hidden: Float[Tensor, "rows seq d_model"], step: Step) -> Float[Tensor, "rows seq d_model"]:
        """The edited residual stream, as a new tensor (or `hidden` itself, untouched)."""
        ...

    def prompt_key(self, trial: int) -> Hashable | None:
        """Trials with equal keys have equal prompts edited equally, so that one can stand for all; None: never."""
        ...


@dataclass
class AddVector:
    """Steering: `h <- h + vectors[trial]` at every token, or at answer tokens alone (paper section 3: every token).

    vectors: one row per trial, already multiplied by its boost, in the units of the residual stream.
    """

    layer: int
    vectors: Float[Tensor, "trials d_model"]
    response_only: bool = False

    def edit(self, hidden, step):
        where = step.response if self.response_only else step.real
        vectors = self.vectors[step.trials].to(hidden.dtype)
        return hidden + vectors[:, None, :] * where[:, :, None].to(hidden.dtype)

    def prompt_key(self, trial):
        return () if self.response_only else tuple(self.vectors[trial].tolist())


@dataclass(frozen=True)
class LatentSubset:
    """A few latents of an SAE, read without computing the others: `relu(a)` where `a > threshold`, else 0, with
    `a = (h - center) @ encoder + bias` (ReLU and JumpReLU SAEs; thresholds may be negative). Everything in float32.
    """

    latents: tuple[int, ...]
    encoder: Float[Tensor, "d_model latents"]
    bias: Float[Tensor, " latents"]
    threshold: Float[Tensor, " latents"]
    center: Float[Tensor, " d_model"]
    decoder: Float[Tensor, "latents d_model"]

    def activations(self, hidden: Float[Tensor, "*tokens d_model"]) -> Float[Tensor, "*tokens latents"]:
        values = (hidden.float() - self.center) @ self.encoder + self.bias
        return values.relu() * (values > self.threshold)

    def rows(self, sets: Sequence[Sequence[int]]) -> Bool[Tensor, "trials latents"]:
        """For each trial, which of `latents` are in its set. Raises ValueError when one is not among `latents`."""
        for latent in sorted({x for chosen in sets for x in chosen} - set(self.latents)):
            raise ValueError(f"Latent {latent} is not among the {len(self.latents)} this readout was made for.")
        chosen = [[latent in set(own) for latent in self.latents] for own in sets]
        return torch.tensor(chosen, dtype=torch.bool, device=self.bias.device).view(len(sets), len(self.latents))


@dataclass
class ZeroAblate:
    """Zero-ablation: `h <- h - f_j(h) W_dec[j]` for each latent j of a trial's set, all read at once (paper section 3).

    What the SAE does not explain stays. Read after whatever was attached to the layer before: after steering.
    chosen: which of the readout's latents each trial loses.
    """

    layer: int
    subset: LatentSubset
    chosen: Bool[Tensor, "trials latents"]

    def edit(self, hidden, step):
        where = self.chosen[step.trials][:, None, :] & step.real[:, :, None]
        lost = (self.subset.activations(hidden) * where) @ self.subset.decoder
        return (hidden.float() - lost).to(hidden.dtype)

    def prompt_key(self, trial):
        return tuple(self.chosen[trial].tolist())


class Captured(Exception):
    """Raised by a `Capture` with `leave`: nothing above its layer needs to be computed."""


class Capture:
    """Keep the residual stream of real tokens, trial by trial, in the order they were computed.

    keep: what is kept of a trial's residuals, such as the activations of a LatentSubset; the residuals where None.
    leave: raise Captured once they are kept.
    """

    def __init__(
        self,
        layer: int,
        keep: Callable[[Float[Tensor, "tokens d_model"]], Float[Tensor, "tokens kept"]] | None = None,
        leave: bool = False,
    ):
        self.layer, self.keep, self.leave = layer, keep or Tensor.clone, leave
        self.pieces: dict[int, list[Tensor]] = defaultdict(list)

    def edit(self, hidden, step):
        for row, trial in enumerate(step.trials.tolist()):
            if bool(step.real[row].any()):
                self.pieces[trial].append(self.keep(hidden[row, step.real[row]]))
        if self.leave:
            raise Captured
        return hidden

    def prompt_key(self, trial):
        return None  # every trial's residuals are wanted

    def residuals(self, trial: int) -> Float[Tensor, "tokens kept"]:
        return torch.cat(self.pieces[trial])


def shared_prompt(interventions: Sequence[Intervention], trial: int) -> Hashable | None:
    """What must be equal, besides the prompt, for trials to share a prompt's keys and values; None: nothing will do."""
    keys = tuple(intervention.prompt_key(trial) for intervention in interventions)
    return None if None in keys else keys


def check_layers(model: torch.nn.Module, interventions: Iterable[Intervention]) -> None:
    """Raises ValueError when an intervention names a layer that does not exist."""
    n = len(model.model.layers)
    for intervention in interventions:
        if not 0 <= intervention.layer < n:
            raise ValueError(
                f"{type(intervention).__name__}.layer is {intervention.layer}; the model has layers 0 to {n - 1}."
            )


@contextmanager
def apply(model: torch.nn.Module, interventions: Iterable[Intervention], step: Step) -> Iterator[None]:
    """Attach `interventions` to `model` in the given order; remove every hook on the way out, also after an error.

    Raises ValueError when a layer does not exist.
    """
    layers = model.model.layers
    interventions = list(interventions)
    check_layers(model, interventions)
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
