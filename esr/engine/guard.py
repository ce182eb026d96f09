"""The guard of a steered run: at every forward pass, what the next layer reads is what was intended, or the run ends.

An unsteered answer that passes for a steered one is the worst defect of a steering study. The guard does not trust the
hooks that edit: it keeps a layer's raw output, works out what the plans ask for, and compares it with what the module
after the layer receives, for every row and token, prompt and answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from esr.engine.interventions import LatentSubset


class SteeringError(RuntimeError):
    """The residual stream does not show the intended edit: a run that went on would be unsteered or wrongly steered."""


class Guard:
    """Watches one layer; itself the first intervention there, one that edits nothing.

    vectors: added to every token of each trial (to answers alone with `response_only`); None adds nothing.
    chosen: of `readout`'s latents, those each trial loses, read after the addition.
    """

    def __init__(
        self,
        layer: int,
        vectors: Float[Tensor, "trials d_model"] | None = None,
        response_only: bool = False,
        subset: LatentSubset | None = None,
        chosen: Bool[Tensor, "trials latents"] | None = None,
    ):
        self.layer, self.vectors, self.response_only = layer, vectors, response_only
        self.subset, self.chosen = subset, chosen
        self.raw: Tensor | None = None
        self.passes = 0

    def edit(self, hidden, step):
        self.raw = hidden.clone()  # a hook that edits in place must not change what is compared
        self.trials, self.real, self.response = step.trials.clone(), step.real, step.response
        return hidden

    def prompt_key(self, trial):
        return ()

    def compare(self, received: Float[Tensor, "rows seq d_model"]) -> None:
        """Raises SteeringError unless `received` is the raw output with the intended edit: exactly, where vectors are
        added, and to one rounding of the dtype where latents are ablated."""
        if self.raw is None or self.raw.shape != received.shape:
            raise SteeringError(
                f"Steering check failed: layer {self.layer} ran without its hooks; do not use the answers."
            )
        expected = self.raw
        if self.vectors is not None:
            where = self.response if self.response_only else self.real
            added = self.vectors[self.trials].to(expected.dtype)[:, None, :] * where[:, :, None].to(expected.dtype)
            expected = expected + added
        if self.chosen is not None:
            lost = (self.subset.activations(expected) * self.chosen[self.trials][:, None]) @ self.subset.decoder
            rounding = torch.finfo(expected.dtype).eps * (expected.abs() + lost.abs())
            wrong = (received.float() - (expected.float() - lost)).abs() > rounding
        else:
            wrong = received != expected
        if bool((wrong.any(-1) & self.real).any()):
            row = int((wrong.any(-1) & self.real).any(-1).nonzero()[0])
            raise SteeringError(
                f"Steering check failed at layer {self.layer}, trial {int(self.trials[row])} of the batch: the next "
                "layer does not receive the residual stream with exactly the intended edit. Another hook, or a "
                "model that is not Llama-like, changes that layer's output; do not use its answers."
            )
        self.raw = None
        self.passes += 1


@contextmanager
def watched(model, guards: Sequence[Guard]) -> Iterator[None]:
    """Compare at every forward pass within the block. Raises SteeringError at the end if a guard never saw one."""
    modules = [*model.model.layers, model.model.norm]
    with ExitStack() as stack:
        for guard in guards:
            hook = modules[guard.layer + 1].register_forward_pre_hook(_comparing(guard), with_kwargs=True)
            stack.callback(hook.remove)
        yield
    for guard in guards:
        if not guard.passes:
            raise SteeringError(f"Steering check failed: nothing passed layer {guard.layer}; do not use the answers.")


def _comparing(guard: Guard):
    def hook(_module, args, kwargs):
        guard.compare(args[0] if args else kwargs["hidden_states"])

    return hook
