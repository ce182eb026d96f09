"""Hooks of one request on the residual stream, for vllm-lens: they edit, collect, and see that the edit arrives.

vllm-lens logs an exception in a hook and goes on unsteered, and whoever asks gets a plain response. So every pass is
counted twice: behind the edited layer, and before the next one, where the guard of the transformers engine has compared
what that layer receives with what was planned. The server compares both counts with the tokens of the request.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from esr.engine.edits import LayerEdit
from esr.engine.guard import Guard, SteeringError
from esr.engine.interventions import Step
from esr.engine.sinks import Sinks


class RowHooks:
    """Of one request at one layer; `behind` runs behind it, `before_next` before the next, on every tensor rank.

    edit: of this request alone; None edits nothing. prompt: its number of tokens. collect: keep the residual stream
    after the edit and the mask of sinks by `median_norm`, from token `begin` on.
    """

    def __init__(
        self, layer: int, edit: LayerEdit | None, prompt: int, collect: bool = False, begin: int = 0,
        median_norm: float = math.inf,
    ):  # fmt: skip
        self.layer, self.edit, self.prompt = layer, edit, prompt
        self.collect, self.begin, self.sinks = collect, begin, Sinks(layer, median_norm)
        self.guard: Guard | None = None
        self.interventions: list | None = None
        self.passes = self.seen = self.checked = 0

    def behind(self, ctx: Any, hidden: Float[Tensor, "tokens d_model"]) -> Float[Tensor, "tokens d_model"] | None:
        try:
            return self._behind(ctx.saved, hidden)
        except Exception as error:
            ctx.saved["error"] = f"{type(error).__name__}: {error}"
            raise

    def _behind(self, saved: dict[str, Any], hidden: Tensor) -> Tensor | None:
        positions = torch.arange(self.seen, self.seen + len(hidden), device=hidden.device)[None]
        real = torch.ones_like(positions, dtype=torch.bool)
        row = torch.zeros(1, dtype=torch.long, device=hidden.device)
        step = Step(row, real, positions >= self.prompt - 1, positions)
        edited = self.sinks.edit(hidden[None], step)
        for intervention in self._interventions(hidden.device):
            edited = intervention.edit(edited, step)
        if self.collect:
            new = positions[0] >= self.begin
            saved[f"hidden {self.passes}"] = edited[0, new].cpu()
            saved[f"sinks {self.passes}"] = self.sinks.mask[0, new].cpu()
        self.passes, self.seen = self.passes + 1, self.seen + len(hidden)
        saved["seen"] = self.seen
        return None if self.edit is None else edited[0]

    def _interventions(self, device: torch.device) -> list:
        """The guard and the edits, on the device of the model."""
        if self.interventions is None:
            edit = self.edit.to(device) if self.edit else None
            self.guard = edit.guard() if edit else None
            self.interventions = [self.guard, *edit.interventions()] if edit else []
        return self.interventions

    def before_next(self, ctx: Any, received: Float[Tensor, "tokens d_model"]) -> None:
        """Compare what the next layer receives with the plan; the first difference is reported and ends the count."""
        try:
            if self.guard is None:
                raise SteeringError(f"layer {self.layer} ran elsewhere, on another pipeline stage perhaps")
            self.guard.compare(received[None])
        except Exception as error:
            ctx.saved.setdefault("error", f"{type(error).__name__}: {error}")
            raise
        self.checked += len(received)
        ctx.saved["checked"] = self.checked
