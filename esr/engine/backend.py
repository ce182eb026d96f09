"""The backend interface: three verbs through which everything above runs a model, whatever runs it.

A backend is made by `backend_of` from what `esr.models.loading` loaded. All three verbs take token ids, edits as data
(`esr.engine.edits`), and refuse before heavy work what they cannot run. Responses and scores under an edit that was not
seen in the residual stream end the run with SteeringError. So do collected residual streams on vLLM; the transformers
engine stops at the collected layer, and no next layer looks at them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from esr.engine.activations import BATCH, Document, residuals
from esr.engine.architecture import check_architecture
from esr.engine.edits import LayerEdit, guarded, interventions_of
from esr.engine.generation import generate
from esr.engine.guard import watched
from esr.engine.interventions import Capture, Step, apply
from esr.engine.rows import Response, Row
from esr.models.vllm import VllmModel

Collected = tuple[int, Float[Tensor, "response_tokens d_model"], Bool[Tensor, " response_tokens"]]


class Backend(Protocol):
    """What runs a model. device: where it takes the tensors of edits."""

    device: torch.device

    def generate(
        self,
        rows: Sequence[Row],
        edits: Sequence[LayerEdit] = (),
        *,
        batch_size: int,
        temperature: float,
        repetition_penalty: float,
        stop_tokens: Sequence[int],
        collect: Sequence[int] = (),
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[Response]:
        """One response per row, under edits indexed like `rows`; temperature 0 is greedy.

        A row's tokens follow from its prompt, seed and edit. collect: layers whose residual streams, after the edits,
        come with the responses. Calls `on_progress(new_tokens, finished_rows)` as it goes.
        """
        ...

    def collect(
        self,
        documents: Sequence[Document],
        layer: int,
        edits: Sequence[LayerEdit] = (),
        *,
        median_norm: float = math.inf,
        batch_size: int = BATCH,
        what: str = "activations",
    ) -> Iterator[Collected]:
        """Index of each document, the residual stream at `layer` on its response tokens, after the edits, and which of
        them are sinks by `median_norm` before; in any order. edits: indexed like `documents`."""
        ...

    def score(
        self, documents: Sequence[Document], edits: Sequence[LayerEdit] = ()
    ) -> list[Float[Tensor, " response_tokens"]]:
        """Log-probability of each response token given all before it, in nats. edits: indexed like `documents`."""
        ...


class TransformersBackend:
    """A transformers model in this process, driven by the engine's own loop."""

    def __init__(self, model):
        self.model = model
        self.device: torch.device = model.device

    def generate(self, rows, edits=(), *, collect=(), **options) -> list[Response]:
        guards, interventions = guarded(edits)
        captures = [Capture(layer) for layer in collect]
        with watched(self.model, guards):
            responses = generate(self.model, rows, [*interventions, *captures], **options)
        for i, response in enumerate(responses):
            response.residuals = {capture.layer: capture.residuals(i) for capture in captures}
        return responses

    def collect(self, documents, layer, edits=(), **options) -> Iterator[Collected]:
        return residuals(self.model, documents, layer, interventions_of(edits), **options)

    @torch.inference_mode()
    def score(self, documents, edits=()) -> list[Float[Tensor, " response_tokens"]]:
        check_architecture(self.model)
        guards, interventions = guarded(edits)
        with watched(self.model, guards):
            return [self._log_probabilities(document, i, interventions) for i, document in enumerate(documents)]

    def _log_probabilities(self, document: Document, index: int, interventions) -> Float[Tensor, " response_tokens"]:
        ids = torch.tensor([[*document.prompt, *document.response]], device=self.device)
        begin, real = len(document.prompt), torch.ones_like(ids, dtype=torch.bool)
        positions = torch.arange(ids.shape[1], device=self.device)[None]
        step = Step(torch.tensor([index], device=self.device), real, positions >= begin - 1, positions)
        with apply(self.model, interventions, step):
            logits = self.model(input_ids=ids).logits[0, begin - 1 : -1].float()
        return -torch.nn.functional.cross_entropy(logits, ids[0, begin:], reduction="none")


def backend_of(loaded) -> Backend:
    """The backend that runs what `esr.models.loading.resident_model` loaded."""
    if isinstance(loaded, VllmModel):
        from esr.engine.vllm.backend import resident_backend

        return resident_backend(loaded)
    return TransformersBackend(loaded)
