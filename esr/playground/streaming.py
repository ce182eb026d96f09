"""One response generated token by token, with the engine's loop, hooks and guard."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from esr.engine.architecture import check_architecture
from esr.engine.edits import LayerEdit, guarded
from esr.engine.generation import Generator
from esr.engine.guard import SteeringError, watched
from esr.engine.interventions import apply, check_layers
from esr.engine.rows import Response, Row, check_rows


class Stream(Generator):
    """The engine's loop over one row, one token at a time.

    Hooks are attached for the length of a step: streams of one model can take turns. Alone in its batch, a response is
    the one that the pipeline makes of the same plan in a batch of its own. Raises ValueError, before any work, for a
    model, row or edit that cannot run.
    """

    def __init__(
        self,
        model,
        row: Row,
        edits: Sequence[LayerEdit],
        *,
        temperature: float,
        repetition_penalty: float,
        stop_tokens: Sequence[int],
    ):
        check_architecture(model)
        check_rows(model.config, [row], 1, stop_tokens)
        self.guards, interventions = guarded(edits)
        check_layers(model, interventions)
        super().__init__(model, [row], interventions, 1, temperature, repetition_penalty, stop_tokens)
        self.finished = False

    @property
    def response(self) -> Response:
        return self.responses[0]

    @property
    def seen(self) -> bool:
        """Whether there are edits and the guard saw each of them in the residual stream, at every pass so far."""
        return bool(self.guards) and all(guard.passes for guard in self.guards)

    @torch.inference_mode()
    def advance(self) -> None:
        """Generate one token. Raises SteeringError unless every edit reached the next layer at each pass."""
        before = [guard.passes for guard in self.guards]
        with watched(self.model, self.guards), apply(self.model, self.interventions, self.step):
            self._admit()
            _, finished = self._decode()
        for guard, passes in zip(self.guards, before, strict=True):
            if guard.passes == passes:
                raise SteeringError(
                    f"Steering check failed: a token passed layer {guard.layer} unseen; do not use the response."
                )
        self.finished = bool(finished)
