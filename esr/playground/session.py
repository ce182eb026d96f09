"""A session with one model: a chosen pair of responses, generated in turns, judged, and read through latents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from threading import Event
from typing import Literal

import numpy as np
from jaxtyping import Float

from esr.config.registry import model_entry, required
from esr.config.stages import stage_parameters
from esr.engine.attention import RAGGED, attention_by
from esr.engine.backend import backend_of
from esr.engine.linear import packed
from esr.engine.rows import Response, Row
from esr.engine.workers import one_thread
from esr.judging.offline import OfflineJudge, load_judge
from esr.models.alignment import Alignment, align
from esr.models.chat import chat_tokens
from esr.models.loading import resident_model, stop_tokens
from esr.playground.streaming import Stream
from esr.sae.loading import load_latent_subset
from esr.steering.activations import documents_of, edits_of, token_activations
from esr.steering.provenance import engine_provenance
from esr.steering.trials import Chunk, Plan, Settings, Steering, build_edits, check_directions, trial_of, user_message
from esr.storage.records import Judgement, Trial


@dataclass(frozen=True)
class Choice:
    """What to compare with an unsteered response. plan: the session names its condition and sets its layer."""

    plan: Plan
    max_new_tokens: int

    @property
    def edited(self) -> bool:
        return bool(self.plan.boost or self.plan.ablate)


@dataclass(frozen=True)
class Side:
    """One response so far. seen: the guard saw every edit in the residual stream, at every pass so far."""

    plan: Plan
    text: str
    tokens: tuple[int, ...]
    seen: bool
    finish_reason: Literal["stop", "length"] | None
    """None while it is not finished."""

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None


@dataclass(frozen=True)
class Pair:
    """The unsteered response and the edited one; `edited` is None where the choice edits nothing."""

    plain: Side
    edited: Side | None

    @property
    def sides(self) -> list[Side]:
        return [self.plain] if self.edited is None else [self.plain, self.edited]


class Session:
    """A loaded model and what its responses follow from. Raises ConfigError or FileNotFoundError in one sentence."""

    def __init__(self, model_id: str):
        entry = model_entry(model_id)
        self.model_id = model_id
        self.layer = required(entry.steer_layer, model_id, "steer_layer")
        self.penalty = entry.sampling.repetition_penalty
        self.temperature: float = stage_parameters("steer", model_id)["temperature"]
        self.steering = Steering.of(model_id)
        self.model, self.tokenizer = resident_model(model_id)
        self.backend = backend_of(self.model)
        self.stop_tokens = stop_tokens(self.model, self.tokenizer)
        self.provenance = engine_provenance(model_id)
        self.judge: OfflineJudge | None = None

    def settings(self, choice: Choice) -> Settings:
        """batch_size 1: every response alone in its batch, which is what makes it the same bit for bit."""
        return Settings(self.model_id, self.temperature, 1, choice.max_new_tokens)

    def plans(self, choice: Choice) -> list[Plan]:
        """The unsteered plan and, where the choice edits anything, the edited one. Raises ConfigError or ValueError."""
        chosen = replace(choice.plan, prompt=choice.plan.prompt.strip(), layer=self.layer)
        if not chosen.prompt:
            raise ValueError("The prompt is empty: type one, or choose one from the list.")
        check_directions(self.model_id, [chosen.latent, *chosen.ablate])
        plain = replace(chosen, condition="unsteered", boost=0.0, ablate=())
        if not choice.edited:
            return [plain]
        name = "steered" if chosen.boost else "unsteered"
        return [plain, replace(chosen, condition=f"{name}, detectors ablated" if chosen.ablate else name)]

    def generate(self, choice: Choice, on_step: Callable[[Pair], None], stop: Event) -> Pair:
        """Both responses, the two taking turns token by token; ends early, between two tokens, once `stop` is set.

        Raises SteeringError when the guard misses an edit, ValueError for a choice that cannot run.
        """
        plans = self.plans(choice)
        streams = [self._stream(plan, choice.max_new_tokens) for plan in plans]
        with one_thread(), packed(self.model), attention_by(self.model, RAGGED):
            while not stop.is_set() and not all(stream.finished for stream in streams):
                for stream in streams:
                    if not stream.finished and not stop.is_set():
                        stream.advance()
                on_step(self._pair(plans, streams))
        return self._pair(plans, streams)

    def _stream(self, plan: Plan, max_new_tokens: int) -> Stream:
        row = Row(chat_tokens(self.tokenizer, user_message(plan)), plan.seed, max_new_tokens)
        return Stream(
            self.model,
            row,
            build_edits(self.steering, [plan], self.backend.device),
            temperature=self.temperature,
            repetition_penalty=self.penalty,
            stop_tokens=self.stop_tokens,
        )

    def _pair(self, plans: Sequence[Plan], streams: Sequence[Stream]) -> Pair:
        sides = [self._side(plan, stream) for plan, stream in zip(plans, streams, strict=True)]
        return Pair(sides[0], sides[1] if len(sides) > 1 else None)

    def _side(self, plan: Plan, stream: Stream) -> Side:
        tokens = tuple(stream.response.tokens)
        text = self.tokenizer.decode(tokens, skip_special_tokens=True)
        return Side(plan, text, tokens, stream.seen, stream.response.finish_reason if stream.finished else None)

    def trials(self, pair: Pair, choice: Choice) -> list[Trial]:
        """The responses as rows of the study, with the ids that the pipeline gives them; a stopped one as cut off."""
        return [self._trial(side, self.settings(choice)) for side in pair.sides]

    def _trial(self, side: Side, settings: Settings) -> Trial:
        chunk = Chunk(settings, self.steering, self.penalty, self.provenance, (side.plan,))
        response = Response(list(side.tokens), side.finish_reason or "length")
        return trial_of(chunk, side.plan, response, self.tokenizer)

    def judgements(self, trials: Sequence[Trial]) -> list[Judgement]:
        """Attempts and scores of the offline judge. Raises FileNotFoundError naming the stage that makes it."""
        if self.judge is None:
            self.judge = load_judge(self.model_id)
        return self.judge.judge(trials)

    def alignment(self, trial: Trial) -> Alignment:
        return align(trial.tokens, self.tokenizer)

    def activations(
        self, trials: Sequence[Trial], latents: Sequence[int]
    ) -> list[Float[np.ndarray, "response_tokens latents"]]:
        """Activations of latents on each trial's response tokens, after its edits; 0 on sinks.

        Raises ConfigError for a model without an SAE and for a latent that it does not have.
        """
        layer = required(self.steering.sae_layer, self.model_id, "sae")
        subset = load_latent_subset(self.model_id, list(latents))
        found: dict[int, np.ndarray] = {i: np.zeros((0, len(latents))) for i in range(len(trials))}
        some = [i for i, trial in enumerate(trials) if trial.tokens]
        kept = [trials[i] for i in some]
        edits = edits_of(kept, self.backend.device)
        options = {"median_norm": self.steering.sae_norm or float("inf"), "what": "playground"}
        documents = documents_of(kept, self.tokenizer)
        with one_thread():
            for i, values in token_activations(self.backend, subset, documents, layer, edits, **options):
                found[some[i]] = values
        return [found[i] for i in range(len(trials))]
