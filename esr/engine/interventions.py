"""Edits of the residual stream, applied by hooks that are always removed.

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

from esr.engine.sinks import Sinks


@dataclass
class Step:
    """Contents of one forward pass; the engine updates it in place before each pass.

    trials: index of each row's trial in the list the interventions were built for (0 where `real` is all False).
    real: True where a token is neither padding nor in an idle row.
    positions: place of each token in its row's text, from 0.
    response: True on response tokens and on the last prompt token, which predicts the first of them.
    """

    trials: Int[Tensor, " rows"]
    real: Bool[Tensor, "rows seq"]
    response: Bool[Tensor, "rows seq"]
    positions: Int[Tensor, "rows seq"]


class Intervention(Protocol):
    layer: int

    def edit(self, hidden: Float[Tensor, "rows seq d_model"], step: Step) -> Float[Tensor, "rows seq d_model"]:
        """The edited residual stream as a new tensor, or `hidden` itself, unchanged."""
        ...

    def prompt_key(self, trial: int) -> Hashable | None:
        """Trials with equal keys edit equal prompts equally and can share one pass; None: never shared."""
        ...


@dataclass
class AddVector:
    """Steering: `h <- h + vectors[trial]` at every token (paper, section 3) or at response tokens alone.

    vectors: one row per trial, already multiplied by its boost, in residual-stream units.
    """

    layer: int
    vectors: Float[Tensor, "trials d_model"]
    response_only: bool = False

    def edit(self, hidden, step):
        mask = step.response if self.response_only else step.real
        vectors = self.vectors[step.trials].to(hidden.dtype)
        return hidden + vectors[:, None, :] * mask[:, :, None].to(hidden.dtype)

    def prompt_key(self, trial):
        return () if self.response_only else tuple(self.vectors[trial].tolist())


@dataclass(frozen=True)
class LatentSubset:
    """A few latents of an SAE, computed in float32 without the others.

    Activation: `relu(a)` where `a > threshold`, else 0, with `a = (h - center) @ encoder + bias` (ReLU and JumpReLU
    SAEs; thresholds may be negative).
    """

    latents: tuple[int, ...]
    encoder: Float[Tensor, "d_model latents"]
    bias: Float[Tensor, " latents"]
    threshold: Float[Tensor, " latents"]
    center: Float[Tensor, " d_model"]
    decoder: Float[Tensor, "latents d_model"]

    def only(self, mask: Bool[Tensor, " latents"]) -> LatentSubset:
        """The latents where `mask` is True."""
        kept = tuple(latent for latent, keep in zip(self.latents, mask.tolist(), strict=True) if keep)
        weights = self.encoder[:, mask], self.bias[mask], self.threshold[mask]
        return LatentSubset(kept, *weights, self.center, self.decoder[mask])

    def to(self, device: torch.device) -> LatentSubset:
        weights = (self.encoder, self.bias, self.threshold, self.center, self.decoder)
        return LatentSubset(self.latents, *(weight.to(device) for weight in weights))

    def activations(self, hidden: Float[Tensor, "*tokens d_model"]) -> Float[Tensor, "*tokens latents"]:
        values = self._preactivations(hidden)
        return values.relu() * (values > self.threshold)

    def margins(self, hidden: Float[Tensor, "*tokens d_model"]) -> Float[Tensor, "*tokens latents"]:
        """`a` minus the value above which a latent fires: positive where it does."""
        return self._preactivations(hidden) - self.threshold.clamp(min=0)

    def _preactivations(self, hidden: Float[Tensor, "*tokens d_model"]) -> Float[Tensor, "*tokens latents"]:
        return (hidden.float() - self.center) @ self.encoder + self.bias

    def rows(self, sets: Sequence[Sequence[int]]) -> Bool[Tensor, "trials latents"]:
        """Mask of each trial's set over `latents`. Raises ValueError when a set has a latent outside `latents`."""
        for latent in sorted({x for chosen in sets for x in chosen} - set(self.latents)):
            raise ValueError(f"Latent {latent} is not among the {len(self.latents)} of this latent subset.")
        chosen = [[latent in set(row) for latent in self.latents] for row in sets]
        return torch.tensor(chosen, dtype=torch.bool, device=self.bias.device).view(len(sets), len(self.latents))


@dataclass
class ZeroAblate:
    """Zero-ablation: `h <- h - f_j(h) W_dec[j]` for all latents j of a trial's set at once (paper, section 3).

    The SAE's reconstruction error stays. Activations are computed after the layer's earlier edits: after steering.
    chosen: the latents of `subset` that each trial ablates. sinks: at the same layer, earlier; its tokens are left as
    they are.
    """

    layer: int
    subset: LatentSubset
    chosen: Bool[Tensor, "trials latents"]
    sinks: Sinks

    def edit(self, hidden, step):
        mask = self.chosen[step.trials][:, None, :] & (step.real & ~self.sinks.mask)[:, :, None]
        ablated = (self.subset.activations(hidden) * mask) @ self.subset.decoder
        return (hidden.float() - ablated).to(hidden.dtype)

    def prompt_key(self, trial):
        return tuple(self.chosen[trial].tolist())


class Captured(Exception):
    """Raised by a `Capture` with `leave` to skip the layers above."""


class Capture:
    """Collects the residual stream of real tokens by trial, in order of computation.

    keep: maps a trial's residuals to what is kept, e.g. `LatentSubset.activations`; None keeps the residuals.
    leave: raise Captured after collecting.
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
        return None  # every trial's residuals are collected

    def residuals(self, trial: int) -> Float[Tensor, "tokens kept"]:
        return torch.cat(self.pieces[trial])


def shared_prompt(interventions: Sequence[Intervention], trial: int) -> Hashable | None:
    """What trials with equal prompts must share to use one prompt's keys and values; None: never shared."""
    keys = tuple(intervention.prompt_key(trial) for intervention in interventions)
    return None if None in keys else keys


def check_layers(model, interventions: Iterable[Intervention]) -> None:
    """Raises ValueError when an intervention names a layer that does not exist."""
    n = len(model.model.layers)
    for intervention in interventions:
        if not 0 <= intervention.layer < n:
            raise ValueError(
                f"{type(intervention).__name__}.layer is {intervention.layer}; the model has layers 0 to {n - 1}."
            )


@contextmanager
def apply(model, interventions: Iterable[Intervention], step: Step) -> Iterator[None]:
    """Attach `interventions` to `model` in order; remove every hook at the end, also after an error.

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
