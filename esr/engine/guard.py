"""Guard of a steered run: at every forward pass the next layer receives the intended edit, or the run ends.

An unsteered response recorded as steered is the worst defect of a steering study. The guard does not trust the editing
hooks: it keeps a layer's raw output, computes the planned edit, and compares the result with the input of the next
module, for every row and token of prompt and response.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from esr.engine.finite import non_finite
from esr.engine.interventions import LatentSubset
from esr.engine.sinks import Part, part_mask, sink_mask


class SteeringError(RuntimeError):
    """The residual stream lacks the intended edit: the responses would be unsteered or wrongly steered."""


class Guard:
    """Watches one layer as its first intervention, which edits nothing.

    vectors: added to every token of each trial (to response tokens alone with `response_only`); None adds nothing.
    chosen: the latents of `subset` that each trial ablates, after the addition, on the tokens of `part`; sinks are
    those of `median_norm`.
    """

    def __init__(
        self,
        layer: int,
        vectors: Float[Tensor, "trials d_model"] | None = None,
        response_only: bool = False,
        subset: LatentSubset | None = None,
        chosen: Bool[Tensor, "trials latents"] | None = None,
        median_norm: float = math.inf,
        part: Part = "without sinks",
    ):
        self.part = part
        self.layer, self.vectors, self.response_only = layer, vectors, response_only
        self.subset, self.chosen, self.median_norm = subset, chosen, median_norm
        self.raw: Tensor | None = None
        self.passes = 0

    def edit(self, hidden, step):
        self.raw = hidden.clone()  # a hook that edits in place must not change the copy
        self.trials, self.real, self.response = step.trials.clone(), step.real, step.response
        self.positions = step.positions
        return hidden

    def prompt_key(self, trial):
        return ()

    def compare(self, received: Float[Tensor, "rows seq d_model"]) -> None:
        """Raises SteeringError unless `received` is the raw output with the intended edit.

        Added vectors must match exactly, ablations to one rounding of the dtype. Raises NonFiniteError for a row that
        overflows.
        """
        if self.raw is None or self.raw.shape != received.shape:
            raise SteeringError(
                f"Steering check failed: layer {self.layer} ran without its hooks; do not use the responses."
            )
        expected = self.raw
        if self.vectors is not None:
            mask = self.response if self.response_only else self.real
            added = self.vectors[self.trials].to(expected.dtype)[:, None, :] * mask[:, :, None].to(expected.dtype)
            expected = expected + added
        if self.subset is not None and self.chosen is not None:
            sinks = sink_mask(self.raw, self.median_norm, self.positions)
            chosen = self.chosen[self.trials][:, None] & part_mask(self.part, sinks, self.response)[:, :, None]
            ablated = (self.subset.activations(expected) * chosen) @ self.subset.decoder
            rounding = torch.finfo(expected.dtype).eps * (expected.abs() + ablated.abs())
            wrong = (received.float() - (expected.float() - ablated)).abs() > rounding
        else:
            wrong = received != expected
        if bool((wrong.any(-1) & self.real).any()):
            row = int((wrong.any(-1) & self.real).any(-1).nonzero()[0])
            if not bool(expected[row, self.real[row]].isfinite().all()):  # nan differs from itself
                place = "in its response" if bool(self.response[row].any()) else "in its prompt"
                raise non_finite("Row", int(self.trials[row]), place, self.layer, expected.dtype)
            raise SteeringError(
                f"Steering check failed at layer {self.layer}, trial {int(self.trials[row])} of the batch: the next "
                "layer does not receive the residual stream with exactly the intended edit. Another hook, or a "
                "model that is not Llama-like, changes that layer's output; do not use its responses."
            )
        self.raw = None
        self.passes += 1


@contextmanager
def watched(model, guards: Sequence[Guard]) -> Iterator[None]:
    """Compare at every forward pass within the block. Raises SteeringError at the end if a guard saw none."""
    modules = [*model.model.layers, model.model.norm]
    with ExitStack() as stack:
        for guard in guards:
            hook = modules[guard.layer + 1].register_forward_pre_hook(_comparing(guard), with_kwargs=True)
            stack.callback(hook.remove)
        yield
    for guard in guards:
        if not guard.passes:
            raise SteeringError(f"Steering check failed: nothing passed layer {guard.layer}; do not use the responses.")


def _comparing(guard: Guard):
    def hook(_module, args, kwargs):
        guard.compare(args[0] if args else kwargs["hidden_states"])

    return hook
