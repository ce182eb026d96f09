"""Restart propensity: how likely a fixed response is to restart at the ends of its sentences.

At a sentence end the propensity is the log-odds of the probability mass of a restart's first tokens
(`restart_phrases.openers`) as the next token, at temperature 1, under the response's own steering. The residual stream
is cached at the SAE's layer, after steering and before ablation, on all tokens. An edit of it then costs the layers
above and the logits at sentence ends. The paper counts restarts in sampled responses instead (its section 5).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from esr.config.registry import model_entry
from esr.config.schema import ConfigError
from esr.engine.activations import Document
from esr.engine.architecture import check_architecture
from esr.engine.edits import LayerEdit
from esr.engine.interventions import AddVector, Capture, Captured, Step, apply
from esr.engine.sampling import penalize
from esr.engine.sinks import Sinks
from esr.experiments.lora import only_layers
from esr.models.alignment import align, sentence_ends
from esr.steering.activations import documents_of
from esr.storage.records import Judgement, Trial

PASS_TOKENS = 2048  # of all rows of a pass through the upper layers: more costs memory and, on a CPU, time


@dataclass(frozen=True)
class Passage:
    """A fixed response up to where it restarts, or as far as it is read.

    ends: numbers of response tokens, ascending, after which a sentence ends; none is behind the start of a restart.
    restarts: whether a restart begins right at the last of them.
    """

    trial: Trial
    ends: tuple[int, ...]
    restarts: bool = False

    @property
    def tokens(self) -> tuple[int, ...]:
        """The response's tokens up to its last sentence end."""
        return tuple(self.trial.tokens[: self.ends[-1]])

    def as_json(self) -> dict:
        return {"trial": self.trial.model_dump(), "ends": list(self.ends), "restarts": self.restarts}

    @classmethod
    def of_json(cls, fields: dict) -> Passage:
        return cls(Trial.model_validate(fields["trial"]), tuple(fields["ends"]), fields["restarts"])


def passage(trial: Trial, restart: int | None, tokenizer, max_tokens: int) -> Passage | None:
    """The trial's passage within its first `max_tokens` tokens; None where no sentence ends before its restart.

    restart: the character at which the response first restarts, None for one that does not.
    """
    alignment = align(trial.tokens, tokenizer)
    begin = len(alignment.text) + 1 if restart is None else restart
    ends = [n for n in sentence_ends(alignment) if n <= max_tokens and alignment.starts[n] <= begin]
    if not ends:
        return None
    here = restart is not None and not alignment.text[alignment.starts[ends[-1]] : begin].strip()
    return Passage(trial, tuple(ends), here)


def moved(one: Passage, boost: float) -> Passage:
    """The same text, read under another boost of its latent."""
    return replace(one, trial=one.trial.model_copy(update={"boost": boost}))


def plain_documents(passages: Sequence[Passage], tokenizer) -> list[Document]:
    """The passages' prompts and texts, to be read without steering."""
    whole = documents_of([one.trial for one in passages], tokenizer)
    return [Document(document.prompt, one.tokens) for document, one in zip(whole, passages, strict=True)]


def first_restart(judgement: Judgement) -> int | None:
    """The character at which a judged response first restarts."""
    return judgement.attempts[1].start if len(judgement.attempts) > 1 else None


@dataclass(frozen=True)
class Cached:
    """The residual stream of one text at the SAE's layer, after steering.

    sinks: tokens that no ablation reaches. places: tokens of the text that end a sentence, from 0.
    """

    hidden: Float[Tensor, "tokens d_model"]
    sinks: Bool[Tensor, " tokens"]
    places: tuple[int, ...]


class UpperLayers:
    """The layers of a transformers model above `layer`, run on cached residual streams.

    openers: token ids with which a restart begins. median_norm: at `layer`, by which sinks are known.
    """

    def __init__(self, model, openers: Sequence[int], layer: int, median_norm: float):
        check_architecture(model)
        if not 0 <= layer < len(model.model.layers) - 1:
            raise ValueError(
                f"layer is {layer}, and a layer above it has to run: take 0 to {len(model.model.layers) - 2}."
            )
        if not openers:
            raise ValueError("The tokenizer spells every restart letter by letter, so that no token opens one.")
        self.model, self.layer, self.median_norm = model, layer, median_norm
        self.openers = torch.tensor(list(openers), device=model.device)
        head = model.get_output_embeddings()
        self.head = head.weight.detach().float()  # logits in float32: rounded to bfloat16 they would drown an effect
        self.bias = None if head.bias is None else head.bias.detach().float()
        self.cap = getattr(model.config, "final_logit_softcapping", None)  # Gemma 2

    @torch.no_grad()
    def cache(self, document: Document, ends: Sequence[int], edits: Sequence[LayerEdit] = ()) -> Cached:
        """The document's residual stream under the steering of `edits`, each of one trial.

        ends: numbers of response tokens after which a sentence ends. Raises ValueError for steering above the layer.
        """
        steering = [AddVector(e.layer, e.vectors, e.response_only) for e in edits if e.vectors is not None]
        if above := [edit.layer for edit in steering if edit.layer > self.layer]:
            raise ValueError(f"Steering at layer {above[0]} acts above layer {self.layer}, where the stream is cached.")
        tokens = [*document.prompt, *document.response]
        step = self._step(len(tokens), len(document.prompt))
        sinks, capture = Sinks(self.layer, self.median_norm), Capture(self.layer, leave=True)
        with suppress(Captured), apply(self.model, [sinks, *steering, capture], step):
            self.model.model(input_ids=torch.tensor([tokens], device=self.model.device), use_cache=False)
        places = tuple(len(document.prompt) + end - 1 for end in ends)
        return Cached(capture.residuals(0), sinks.mask[0], places)

    def logits(
        self, hidden: Float[Tensor, "sets tokens d_model"], places: Sequence[int]
    ) -> Float[Tensor, "sets places vocab"]:
        """Next-token logits after the tokens at `places`, from residual streams at the layer; float32."""
        n_layers, decoder = len(self.model.model.layers), self.model.model
        step = self._step(hidden.shape[1], 0, len(hidden))
        with (
            only_layers(self.model, range(self.layer + 1, n_layers)),
            apply(self.model, [_Put(self.layer, hidden)], step),
        ):
            top = decoder(input_ids=torch.zeros_like(step.positions), use_cache=False).last_hidden_state
        logits = torch.nn.functional.linear(top[:, list(places)].float(), self.head, self.bias)
        return self.cap * torch.tanh(logits / self.cap) if self.cap else logits

    def log_odds(
        self, hidden: Float[Tensor, "sets tokens d_model"], places: Sequence[int]
    ) -> Float[Tensor, "sets places"]:
        """Restart propensity after the tokens at `places`, in passes of `PASS_TOKENS` tokens."""
        rows = max(1, PASS_TOKENS // hidden.shape[1])
        return torch.cat([opening_log_odds(self.logits(part, places), self.openers) for part in hidden.split(rows)])

    def _step(self, n_tokens: int, n_prompt: int, rows: int = 1) -> Step:
        positions = torch.arange(n_tokens, device=self.model.device).expand(rows, -1)
        trials = torch.zeros(rows, dtype=torch.long, device=self.model.device)
        return Step(trials, torch.ones_like(positions, dtype=torch.bool), positions >= n_prompt - 1, positions)


@dataclass
class _Put:
    """Has the layers above start from `hidden`, whatever ran below."""

    layer: int
    hidden: Float[Tensor, "rows seq d_model"]

    def edit(self, hidden, step):
        return self.hidden.to(hidden.dtype)

    def prompt_key(self, trial):
        return None


def opening_log_odds(
    logits: Float[Tensor, "*places vocab"], openers: Int[Tensor, " openers"]
) -> Float[Tensor, "*places"]:
    """Log-odds that the next token is one of `openers`."""
    others = logits.clone()
    others[..., openers] = -torch.inf
    return logits[..., openers].logsumexp(-1) - others.logsumexp(-1)


def sampled_probability(
    logits: Float[Tensor, "places vocab"],
    openers: Int[Tensor, " openers"],
    seen: Sequence[Sequence[int]],
    temperature: float,
    repetition_penalty: float,
) -> Float[Tensor, " places"]:
    """Probability with which sampling opens a restart: with its temperature, and its penalty on the tokens `seen`."""
    rows = []
    for row, tokens in zip(logits, seen, strict=True):
        ids = torch.tensor([list(tokens)], device=logits.device)
        rows.append(penalize(row[None].clone(), ids, repetition_penalty)[0] / max(temperature, 1e-4))
    return opening_log_odds(torch.stack(rows), openers).sigmoid()


def refuse_vllm(model_id: str) -> None:
    """Raise ConfigError for a model that vLLM runs."""
    if model_entry(model_id).backend == "vllm":
        raise ConfigError(
            f"{model_id} runs on vLLM, and propensity needs the layers above the SAE's alone, which transformers runs: "
            "write `backend: transformers` at its entry, or leave the stage `mechanism` out."
        )
