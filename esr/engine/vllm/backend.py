"""The client of vLLM's process: a backend (esr.engine.backend) whose verbs are messages to it."""

from __future__ import annotations

import atexit
import math
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

from torch import Tensor

import esr
from esr.engine.activations import BATCH, Document, check_lengths
from esr.engine.architecture import check_architecture, max_positions
from esr.engine.edits import LayerEdit
from esr.engine.finite import NonFiniteError
from esr.engine.guard import SteeringError
from esr.engine.rows import Response, Row, check_rows
from esr.engine.vllm.wire import pack, receive, send
from esr.models.devices import device
from esr.models.vllm import VllmModel, interpreter
from esr.paths import CACHE
from esr.progress import Progress, say

MAX_LENGTH = 8192  # positions of a request unless the entry's options say otherwise: they cost key-value cache


_running: list[VllmBackend] = []  # at most one: each holds a process


def resident_backend(model: VllmModel) -> VllmBackend:
    """The backend of `model`, the same at each call; that of another model ends first."""
    if not _running or _running[0].model is not model:
        for running in _running:
            running.close()
        _running[:] = [VllmBackend(model)]
    return _running[0]


class VllmBackend:
    """Runs a model in vLLM's process, which starts at the first verb and ends with this process.

    The process knows nothing of trials: it gets token ids, seeds and edits, and refuses results of edits that it has
    not seen arrive.
    """

    def __init__(self, model: VllmModel):
        self.model, self.device = model, device()
        self.process: subprocess.Popen | None = None

    def generate(
        self, rows: Sequence[Row], edits: Sequence[LayerEdit] = (), *, batch_size: int, temperature: float,
        repetition_penalty: float, stop_tokens: Sequence[int], collect: Sequence[int] = (),
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[Response]:  # fmt: skip
        check_architecture(self.model.config)
        check_rows(self.model.config, rows, batch_size, stop_tokens)
        sampling: dict[str, Any] = {
            "temperature": temperature,
            "repetition_penalty": repetition_penalty,
            "stop_tokens": [*stop_tokens],
        }
        requests = [_request(r.prompt, len(r.prompt), 0, r.max_new_tokens, r.seed) for r in rows]
        found, tensors = self._run(requests, edits, collect, batch_size=batch_size, **sampling)
        responses = [_response(text, stop_tokens) for text in found]
        for place, response in enumerate(responses):
            response.residuals = {layer: tensors[f"{place}.hidden.{layer}"].to(self.device) for layer in collect}
        if on_progress:
            on_progress(sum(len(text["tokens"]) for text in found), len(rows))
        return responses

    def collect(
        self, documents: Sequence[Document], layer: int, edits: Sequence[LayerEdit] = (), *,
        median_norm: float = math.inf, batch_size: int = BATCH, what: str = "activations",
    ) -> Iterator[tuple[int, Tensor, Tensor]]:  # fmt: skip
        check_architecture(self.model.config)
        check_lengths(self.model.config, documents)
        progress, tokens = Progress(what, len(documents), "responses"), 0
        for begin in range(0, len(documents), batch_size):
            part = range(begin, min(begin + batch_size, len(documents)))
            requests = [_document(documents[i], len(documents[i].prompt)) for i in part]
            _, tensors = self._run(
                requests, [e.of_trials(slice(begin, part.stop)) for e in edits], [layer], median_norm=median_norm
            )
            for place, i in enumerate(part):
                hidden, sinks = (tensors[f"{place}.{name}.{layer}"].to(self.device) for name in ("hidden", "sinks"))
                yield i, hidden, sinks
            tokens += sum(len(documents[i]) for i in part)
            progress.update(part[-1] + 1, tokens)

    def score(self, documents: Sequence[Document], edits: Sequence[LayerEdit] = ()) -> list[Tensor]:
        check_architecture(self.model.config)
        check_lengths(self.model.config, documents)
        requests = [_document(document, 0) for document in documents]
        _, tensors = self._run(requests, edits, [], score=True)
        scores = [tensors[f"{place}.scores"] for place in range(len(documents))]
        return [found[len(d.prompt) :].to(self.device) for d, found in zip(documents, scores, strict=True)]

    def _run(
        self, rows: list[dict], edits: Sequence[LayerEdit], layers: Sequence[int], *, batch_size: int = 256,
        temperature: float = 0.0, repetition_penalty: float = 1.0, stop_tokens: Sequence[int] = (),
        median_norm: float = math.inf, score: bool = False,
    ) -> tuple[list[dict], dict[str, Tensor]]:  # fmt: skip
        """Texts and tensors of `rows`. Raises SteeringError, NonFiniteError, or RuntimeError with the log's place."""
        if not rows:
            return [], {}
        self._check_layers(edits, layers)
        self._check_lengths(rows)
        fields, tensors = pack(edits)
        job = {
            "rows": rows, "edits": fields, "layers": sorted(layers), "batch_size": batch_size, "score": score,
            "temperature": temperature, "repetition_penalty": repetition_penalty, "stop_tokens": list(stop_tokens),
            "median_norm": None if math.isinf(median_norm) else median_norm,
        }  # fmt: skip
        reply, found = self._request_reply(job, tensors)
        return reply["responses"], found

    @property
    def options(self) -> dict[str, Any]:
        return {"max_model_len": min(MAX_LENGTH, max_positions(self.model.config))} | self.model.options

    def _check_lengths(self, rows: list[dict]) -> None:
        """vLLM would end a response at max_model_len without a word."""
        limit = self.options["max_model_len"]
        for place, row in enumerate(rows):
            if (needed := len(row["prompt"]) + row["max_tokens"]) > limit:
                raise ValueError(
                    f"Row {place} needs {needed} positions, and vLLM has {limit} (max_model_len): raise max_model_len "
                    "under vllm in data/models.yaml, or shorten the prompt or the response."
                )

    def _check_layers(self, edits: Sequence[LayerEdit], layers: Sequence[int]) -> None:
        n = self.model.config.num_hidden_layers
        for edit in edits:
            if not 0 <= edit.layer < n - 1:
                raise ValueError(
                    f"The edited layer is {edit.layer}; with vLLM layers 0 to {n - 2} can be edited, since the one "
                    "behind it sees whether the edit arrives."
                )
        for layer in layers:
            if not 0 <= layer < n:
                raise ValueError(f"The collected layer is {layer}; the model has layers 0 to {n - 1}.")

    def _request_reply(
        self, job: dict[str, Any], tensors: dict[str, Tensor]
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        process = self._started()
        try:
            send(cast(BinaryIO, process.stdin), job, tensors)
            return self._receive()
        except BrokenPipeError:
            raise self._ended() from None

    def _receive(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        assert self.process is not None
        if (message := receive(cast(BinaryIO, self.process.stdout))) is None:
            raise self._ended()
        content, tensors = message
        if kind := content.get("error"):
            text = content["message"]
            if kind == "NonFiniteError":
                raise NonFiniteError(text, content["row"])
            raise (SteeringError if kind == "SteeringError" else RuntimeError)(f"{text} Its log is {self.log}.")
        return content, tensors

    def _started(self) -> subprocess.Popen:
        if self.process is None:
            self.log = CACHE / "vllm" / f"{os.getpid()}.log"
            self.log.parent.mkdir(parents=True, exist_ok=True)
            say(f"vllm: starting {self.model.folder.name}; its log is {self.log}")
            with self.log.open("wb") as log:
                self.process = subprocess.Popen(
                    [str(interpreter()), "-m", "esr.engine.vllm.server"], cwd=self.log.parent, env=_environment(),
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                )  # fmt: skip
            atexit.register(self.close)
            job = {"folder": str(self.model.folder), "dtype": self.model.dtype, "options": self.options}
            try:
                send(cast(BinaryIO, self.process.stdin), job)
                self._receive()
            except BrokenPipeError:
                raise self._ended() from None
            except Exception:
                self.close()
                raise
        return self.process

    def _ended(self) -> RuntimeError:
        assert self.process is not None
        status, self.process = self.process.wait(), None
        lines = self.log.read_text(errors="replace").strip().splitlines() or ["nothing"]
        return RuntimeError(f"vLLM ended with status {status}; its log {self.log} ends: {lines[-1]}")

    def close(self) -> None:
        """End vLLM's process; the next verb starts another."""
        if self.process is not None:
            process, self.process = self.process, None
            process.communicate()  # closes its stdin: it ends by itself


def _environment() -> dict[str, str]:
    """Of vLLM's process: this package alone on its path, all cores, no reports to its makers."""
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    defaults = {
        "VLLM_CPU_OMP_THREADS_BIND": cores, "VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_LOGGING_LEVEL": "WARNING",
    }  # fmt: skip
    mine = {
        "PYTHONPATH": str(Path(esr.__path__[0]).parent), "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(len(cores.split(","))),
    }  # fmt: skip
    return defaults | dict(os.environ) | mine


def _request(prompt: Sequence[int], prompt_length: int, begin: int, max_tokens: int, seed: int = 0) -> dict[str, Any]:
    fields = {"prompt_length": prompt_length, "begin": begin, "max_tokens": max_tokens, "seed": seed}
    return {"prompt": [*prompt]} | fields


def _document(document: Document, begin: int) -> dict[str, Any]:
    """A document as a prompt: one more token is generated, which nobody reads."""
    return _request([*document.prompt, *document.response], len(document.prompt), begin, 1)


def _response(text: dict[str, Any], stop_tokens: Sequence[int]) -> Response:
    """vLLM gives the stop token with the others."""
    stopped = bool(text["tokens"]) and text["tokens"][-1] in set(stop_tokens)
    return Response(text["tokens"][:-1] if stopped else text["tokens"], "stop" if stopped else "length")
