"""Synthetic self-corrections for fine-tuning (paper, experiment 4): off-topic opening, explicit restart, response.

What a model is to learn comes apart into a decision and a competence. The decision: to restart where the text is off
topic, and nowhere else. The competence: to answer the prompt after a restart although the steering goes on. So each
kind of example carries loss where it teaches one of them and nowhere else:

- `correction`: prompt and opening without loss, then the restart and a response as long as an ordinary one. In some of
  them only, the first token of the restart carries loss: the share that decides is a setting of its own.
- `plain`: an unsteered response, with loss on every token: the model stays what it was.
- `steered`: an on-topic response under a steering vector. Steering alone is no reason to restart.
- `redirected`: the user changes the subject, and the response follows.
- `near_miss`: a text that was asked for and contains a restart's words, such as a letter of apology.

The last three teach only where not to restart. Behind their sentences the next token carries loss, a restart's first
words are penalized, and nothing else of the text counts. A steered text is trained on under its steering vector.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from esr.experiments.training_texts import TrainingText
from esr.models.chat import chat_tokens
from esr.storage.digests import seeded
from esr.storage.records import Record

AFTER_RESTART = (" ", "\n\n")
SENTENCE_END = re.compile(r"(?<=[^\W\d])[.!?]+(?=\s|$)")  # not the number of a list's item
BREAK = re.compile(r"[.!?][\"')]*$|\n$")  # a token that ends a sentence or a line
MIN_WORDS, MAX_WORDS = 8, 60  # of an opening
REDIRECTIONS = (
    "{}\n\nActually, forget that. {}",
    "{}\n\nOn second thoughts, I would rather know this: {}",
    "I was going to ask: {} But never mind. {}",
)
LEGITIMATE = re.compile(r"\b(wait|sorry|apolog\w+|mistakes?|oops|hold on|start (over|again)|begin again)\b", re.I)
MAX_TOKENS = 10_000  # of an example
Kind = Literal["correction", "plain", "steered", "redirected", "near_miss"]


class Example(Record):
    """A training text: `tokens` include the chat template.

    targets: indices of tokens to predict. decision: index of a restart's first token, a target with a higher weight;
    None where the restart is given. no_restart: indices at which a restart must not begin.
    latent, boost: steering of the whole text in training; boost 0 for none.
    """

    kind: Kind
    prompt_id: str
    tokens: list[int]
    targets: list[int]
    decision: int | None = None
    no_restart: list[int] = []
    latent: int = 0
    boost: float = 0.0


@dataclass(frozen=True)
class Material:
    """What examples are made of.

    responses: unsteered and on topic. openings: steered and off topic. phrases: restarts and their weights. latents,
    boosts: of on-topic texts that are steered in training; boosts from and to, median residual norms.
    """

    responses: Sequence[TrainingText]
    openings: Sequence[TrainingText]
    phrases: Mapping[str, int]
    latents: Sequence[int]
    boosts: tuple[float, float]


@dataclass(frozen=True)
class Mixture:
    """How many examples of each kind.

    ratio: share of self-corrections. decision_share: of those, the share whose restart is a decision. foreign_share: of
    those, the share that is unsteered and opens with another prompt's response. others: shares of the other kinds in
    the rest; plain responses take what is left. response_tokens: length limit of responses.
    """

    n: int
    ratio: float
    decision_share: float = 0.5
    foreign_share: float = 0.0
    others: Mapping[str, float] = field(default_factory=lambda: dict(steered=0.35, redirected=0.05, near_miss=0.1))
    response_tokens: int = 112

    def __post_init__(self):
        for name in ("ratio", "decision_share", "foreign_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be 0 to 1.")
        if sum(self.others.values()) > 1:
            raise ValueError(f"The shares of {', '.join(self.others)} add up to more than 1: lower them.")

    def counts(self) -> dict[str, int]:
        """Examples of each kind."""
        corrections = round(self.ratio * self.n)
        rest = self.n - corrections
        counts = {"correction": corrections} | {kind: round(share * rest) for kind, share in self.others.items()}
        return counts | {"plain": self.n - sum(counts.values())}


class Writer:
    """Writes examples of each kind from its material, drawn by one seed."""

    def __init__(self, material: Material, tokenizer, mixture: Mixture, stop_token: int, seed: int):
        self.material, self.tokenizer, self.mixture, self.stop_token = material, tokenizer, mixture, stop_token
        self.rng = seeded(seed, mixture.ratio, mixture.n)
        self.steered: dict[str, list[TrainingText]] = {}
        for opening in material.openings:
            self.steered.setdefault(opening.prompt_id, []).append(opening)

    def correction(self, response: TrainingText) -> Example:
        """Opening, restart and response; steered where the opening was."""
        if self.material.openings and self.rng.random() >= self.mixture.foreign_share:
            source = self.rng.choice(self.steered.get(response.prompt_id) or self.material.openings)
        else:
            source = self.rng.choice([a for a in self.material.responses if a.prompt_id != response.prompt_id])
        prompt = self._chat(response.prompt)
        opening = _ids(self.tokenizer, cut_opening(source.text, self.rng))
        phrase = self.rng.choices(list(self.material.phrases), list(self.material.phrases.values()))[0]
        restart = _ids(self.tokenizer, f" {phrase}")
        rest = _ids(self.tokenizer, self.rng.choice(AFTER_RESTART) + response.text.strip())
        rest = self._cut(rest, response.finish_reason)
        begin = len(prompt) + len(opening)
        decides = self.rng.random() < self.mixture.decision_share
        after = begin + len(restart)
        return self._example(
            "correction", response, [*prompt, *opening, *restart, *rest], range(begin + (not decides), MAX_TOKENS),
            decision=begin if decides else None, no_restart_from=after + 1, latent=source.latent, boost=source.boost,
        )  # fmt: skip

    def plain(self, response: TrainingText) -> Example:
        prompt, tokens = self._chat(response.prompt), self._cut(response.tokens, response.finish_reason)
        return self._example("plain", response, [*prompt, *tokens], range(len(prompt), MAX_TOKENS))

    def steered_on_topic(self, response: TrainingText) -> Example:
        vector = self.rng.choice(list(self.material.latents)), round(self.rng.uniform(*self.material.boosts), 3)
        return self._silent("steered", response, response.prompt, latent=vector[0], boost=vector[1])

    def redirected(self, response: TrainingText) -> Example:
        other = self.rng.choice([a for a in self.material.responses if a.prompt_id != response.prompt_id])
        return self._silent("redirected", response, self.rng.choice(REDIRECTIONS).format(other.prompt, response.prompt))

    def near_miss(self, response: TrainingText) -> Example:
        return self._silent("near_miss", response, response.prompt)

    def _silent(self, kind: Kind, response: TrainingText, prompt: str, latent: int = 0, boost: float = 0.0) -> Example:
        """Loss only where a restart might begin."""
        chat = self._chat(prompt)
        tokens = [*chat, *self._cut(response.tokens, "length")]
        example = self._example(
            kind, response, tokens, range(0), no_restart_from=len(chat) + 1, latent=latent, boost=boost
        )
        return example.model_copy(update={"targets": [i for i in example.no_restart if i < len(tokens)]})

    def _chat(self, prompt: str) -> list[int]:
        return list(chat_tokens(self.tokenizer, prompt))

    def _cut(self, tokens: Sequence[int], finish_reason: str) -> list[int]:
        """The first tokens, and the stop token where the response ended there by itself."""
        limit = self.mixture.response_tokens
        return [*tokens[:limit], *[self.stop_token] * (finish_reason == "stop" and len(tokens) <= limit)]

    def _example(
        self, kind: Kind, response: TrainingText, tokens: list[int], targets: range, *, decision: int | None = None,
        no_restart_from: int | None = None, latent: int = 0, boost: float = 0.0,
    ) -> Example:  # fmt: skip
        first = targets.start + 1 if no_restart_from is None else no_restart_from
        ends = [i for i in range(first, len(tokens) + 1) if BREAK.search(self.tokenizer.decode([tokens[i - 1]]))]
        predicted = [i for i in targets if i < len(tokens)]
        return Example(
            kind=kind, prompt_id=response.prompt_id, tokens=tokens, targets=predicted, decision=decision,
            no_restart=ends, latent=latent, boost=boost,
        )  # fmt: skip


def make_examples(material: Material, tokenizer, mixture: Mixture, *, stop_token: int, seed: int) -> list[Example]:
    """The examples of `mixture` in random order; each response is used about equally often for a kind.

    Near misses are responses with a restart's words (`LEGITIMATE`); where none has them, any response. Raises
    ValueError for fewer than two responses.
    """
    if len(material.responses) < 2:
        raise ValueError(f"There are {len(material.responses)} on-topic responses, and 2 are needed.")
    writer = Writer(material, tokenizer, mixture, stop_token, seed)
    misses = [a for a in material.responses if LEGITIMATE.search(a.text)]
    sources = {
        "correction": (writer.correction, material.responses),
        "plain": (writer.plain, material.responses),
        "steered": (writer.steered_on_topic, material.responses),
        "redirected": (writer.redirected, material.responses),
        "near_miss": (writer.near_miss, misses or material.responses),
    }
    examples: list[Example] = []
    for kind, count in mixture.counts().items():
        write, responses = sources[kind]
        examples += [write(response) for response in _turns(responses, count, writer.rng)]
    writer.rng.shuffle(examples)
    return examples


def _turns(responses: Sequence[TrainingText], n: int, rng: random.Random) -> list[TrainingText]:
    return [a for _ in range(-(-n // len(responses))) for a in rng.sample(list(responses), len(responses))][:n]


def cut_opening(text: str, rng: random.Random) -> str:
    """The first 8 to 60 words of `text` up to the end of a sentence; a full stop replaces a missing end.

    Never within a sentence: models trained on openings broken off there also broke off their plain sentences.
    """
    words = [m.end() for m in re.finditer(r"\S+", text)]
    first, last = words[min(MIN_WORDS, len(words)) - 1], words[min(MAX_WORDS, len(words)) - 1]
    ends = [m.end() for m in SENTENCE_END.finditer(text) if first <= m.end() <= last]
    if not ends:
        return text[:last].strip().rstrip(",;:-") + "."
    return text[: rng.choice(ends)].strip()


def _ids(tokenizer, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False).input_ids)
