"""Synthetic self-corrections for fine-tuning (paper, experiment 4): off-topic opening, explicit restart, response.

What a model is to learn comes apart into a decision and a competence. The decision: to restart where the text is off
topic, and nowhere else. The competence: to answer the prompt after a restart although the steering goes on. So each
kind of example carries loss where it teaches one of them and nowhere else:

- `correction`: prompt and opening without loss, then a restart, given up to its first token, and a response as long as
  an ordinary one. That it begins there is not taught here: with a loss on that, four corrections in ten made the model
  restart in three of ten unsteered responses (paper/LOG.md).
- `decision`: a text of the untuned model, steered. Where a sentence ends and the text so far is off topic, a restart is
  wanted; where it is on topic, none. So whether a restart is wanted follows from the text, not from the steering.
- `plain`: an unsteered response, with loss on every token: the model stays what it was.
- `unsteered`: a text of the untuned model, unsteered, good or middling: no restart, unless it is as far off topic as a
  steered one has to be.
- `redirected`: the user changes the subject, and the response follows.
- `near_miss`: a text that was asked for and contains a restart's words, such as a letter of apology.

The last three teach only where not to restart. Wanted or not is the probability of all tokens that restarts begin with.
Where none is wanted the token that follows carries loss too, else restarts come in other words.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from esr.experiments.training_texts import ScoredText, TrainingText
from esr.models.chat import chat_tokens
from esr.storage.digests import seeded
from esr.storage.records import Record

AFTER_RESTART = (" ", "\n\n")
BREAK = re.compile(r"[.!?][\"')]*$|\n$")  # a token that ends a sentence or a line
REDIRECTIONS = (
    "{}\n\nActually, forget that. {}",
    "{}\n\nOn second thoughts, I would rather know this: {}",
    "I was going to ask: {} But never mind. {}",
)
LEGITIMATE = re.compile(r"\b(wait|sorry|apolog\w+|mistakes?|oops|hold on|start (over|again)|begin again)\b", re.I)
T = TypeVar("T")
Kind = Literal["correction", "decision", "plain", "unsteered", "redirected", "near_miss"]


class Example(Record):
    """A training text: `tokens` include the chat template.

    targets: indices of tokens to predict. restart, no_restart: indices at which a restart must and must not begin.
    latent, boost: steering of the whole text in training; boost 0 for none.
    """

    kind: Kind
    prompt_id: str
    tokens: list[int]
    targets: list[int]
    restart: list[int] = []
    no_restart: list[int] = []
    latent: int = 0
    boost: float = 0.0


@dataclass(frozen=True)
class Material:
    """What examples are made of.

    responses: unsteered and on topic. texts, unsteered: steered and unsteered ones, each with the score of what stands
    before each end of a sentence. max_off_topic_score, min_on_topic_score: scores up to and from which a steered text
    is off and on topic; nothing is taught between. phrases: restarts and their weights.
    """

    responses: Sequence[TrainingText]
    texts: Sequence[ScoredText]
    unsteered: Sequence[ScoredText]
    max_off_topic_score: float
    min_on_topic_score: float
    phrases: Mapping[str, int]


@dataclass(frozen=True)
class Mixture:
    """How many examples of each kind.

    ratio: share of self-corrections. others: shares of the other kinds in the rest; plain responses take what is left.
    response_tokens: length limit of responses.
    """

    n: int
    ratio: float
    others: Mapping[str, float] = field(
        default_factory=lambda: {"decision": 0.4, "unsteered": 0.2, "redirected": 0.05, "near_miss": 0.1}
    )
    response_tokens: int = 112

    def __post_init__(self):
        if not 0 <= self.ratio <= 1:
            raise ValueError(f"ratio is {self.ratio}: it must be 0 to 1.")
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
        self.openings: dict[str, list[tuple[TrainingText, int]]] = {}
        for scored in material.texts:
            off_topic = [end.tokens for end in scored.ends if end.score <= material.max_off_topic_score]
            self.openings.setdefault(scored.text.prompt_id, []).extend((scored.text, n) for n in off_topic)
        self.every_opening = [opening for some in self.openings.values() for opening in some]

    def correction(self, response: TrainingText) -> Example:
        """Opening, restart and response, under the opening's steering."""
        text, n_opening = self.rng.choice(self.openings.get(response.prompt_id) or self.every_opening)
        prompt = self._chat(response.prompt)
        phrase = self.rng.choices(list(self.material.phrases), list(self.material.phrases.values()))[0]
        opening = text.tokens[:n_opening]
        restart = _ids(self.tokenizer, phrase if self.tokenizer.decode(opening)[-1:].isspace() else f" {phrase}")
        rest = _ids(self.tokenizer, self.rng.choice(AFTER_RESTART) + response.text.strip())
        rest = self._cut(rest, response.finish_reason)
        begin = len(prompt) + n_opening + 1  # behind the restart's first token
        tokens = [*prompt, *opening, *restart, *rest]
        return self._example(
            "correction", response, tokens, range(begin, len(tokens)), no_restart_from=begin + len(restart),
            latent=text.latent, boost=text.boost,
        )  # fmt: skip

    def decision(self, scored: ScoredText) -> Example:
        """A steered text as it was written."""
        off = [e.tokens for e in scored.ends if e.score <= self.material.max_off_topic_score]
        on = [e.tokens for e in scored.ends if e.score >= self.material.min_on_topic_score]
        return self._as_written("decision", scored.text, off, on)

    def unsteered(self, scored: ScoredText) -> Example:
        """An unsteered text as it was written, as far as responses are trained on."""
        good = [e.tokens for e in scored.ends if e.score > self.material.max_off_topic_score]
        text, limit = scored.text, self.mixture.response_tokens
        return self._as_written(
            "unsteered", text.model_copy(update={"tokens": text.tokens[:limit]}), [], [n for n in good if n <= limit]
        )

    def _as_written(self, kind: Kind, text: TrainingText, restart: list[int], no_restart: list[int]) -> Example:
        """Loss only behind these numbers of the text's tokens."""
        prompt = self._chat(text.prompt)
        tokens = [*prompt, *text.tokens]
        wanted, silent = ([len(prompt) + n for n in counts] for counts in (restart, no_restart))
        return Example(
            kind=kind, prompt_id=text.prompt_id, tokens=tokens, targets=[i for i in silent if i < len(tokens)],
            restart=wanted, no_restart=silent, latent=text.latent, boost=text.boost,
        )  # fmt: skip

    def plain(self, response: TrainingText) -> Example:
        prompt, tokens = self._chat(response.prompt), self._cut(response.tokens, response.finish_reason)
        tokens = [*prompt, *tokens]
        return self._example(
            "plain", response, tokens, range(len(prompt), len(tokens)), no_restart_from=len(prompt) + 1
        )

    def redirected(self, response: TrainingText) -> Example:
        other = self.rng.choice([a for a in self.material.responses if a.prompt_id != response.prompt_id])
        return self._silent("redirected", response, self.rng.choice(REDIRECTIONS).format(other.prompt, response.prompt))

    def near_miss(self, response: TrainingText) -> Example:
        return self._silent("near_miss", response, response.prompt)

    def _silent(self, kind: Kind, response: TrainingText, prompt: str) -> Example:
        """Loss only where a restart might begin."""
        chat = self._chat(prompt)
        tokens = [*chat, *self._cut(response.tokens, "length")]
        example = self._example(kind, response, tokens, range(0), no_restart_from=len(chat) + 1)
        return example.model_copy(update={"targets": [i for i in example.no_restart if i < len(tokens)]})

    def _chat(self, prompt: str) -> list[int]:
        return list(chat_tokens(self.tokenizer, prompt))

    def _cut(self, tokens: Sequence[int], finish_reason: str) -> list[int]:
        """The first tokens, and the stop token where the response ended there by itself."""
        limit = self.mixture.response_tokens
        return [*tokens[:limit], *[self.stop_token] * (finish_reason == "stop" and len(tokens) <= limit)]

    def _example(
        self, kind: Kind, response: TrainingText, tokens: list[int], targets: range, *, no_restart_from: int,
        latent: int = 0, boost: float = 0.0,
    ) -> Example:  # fmt: skip
        after = range(no_restart_from, len(tokens) + 1)
        ends = [i for i in after if BREAK.search(self.tokenizer.decode([tokens[i - 1]]))]
        return Example(
            kind=kind, prompt_id=response.prompt_id, tokens=tokens, targets=list(targets), no_restart=ends,
            latent=latent, boost=boost,
        )  # fmt: skip


def make_examples(material: Material, tokenizer, mixture: Mixture, *, stop_token: int, seed: int) -> list[Example]:
    """The examples of `mixture` in random order; each response is used about equally often for a kind.

    Near misses are responses with a restart's words (`LEGITIMATE`); where none has them, any response. Raises
    ValueError for fewer than two responses, and without an off-topic opening.
    """
    if len(material.responses) < 2:
        raise ValueError(f"There are {len(material.responses)} on-topic responses, and 2 are needed.")
    writer = Writer(material, tokenizer, mixture, stop_token, seed)
    if not writer.every_opening:
        raise ValueError(
            f"None of {len(material.texts)} steered texts is off topic at the end of a sentence (score of at most "
            f"{material.max_off_topic_score:g}), so there is nothing to correct: raise the boosts or the score."
        )
    misses = [a for a in material.responses if LEGITIMATE.search(a.text)]
    decisions, unsteered = ([scored for scored in some if scored.ends] for some in (material.texts, material.unsteered))
    written = {
        "correction": lambda n: map(writer.correction, _turns(material.responses, n, writer.rng)),
        "decision": lambda n: map(writer.decision, _turns(decisions, n, writer.rng)),
        "plain": lambda n: map(writer.plain, _turns(material.responses, n, writer.rng)),
        "unsteered": lambda n: map(writer.unsteered, _turns(unsteered, n, writer.rng)),
        "redirected": lambda n: map(writer.redirected, _turns(material.responses, n, writer.rng)),
        "near_miss": lambda n: map(writer.near_miss, _turns(misses or material.responses, n, writer.rng)),
    }
    examples = [example for kind, n in mixture.counts().items() for example in written[kind](n)]
    writer.rng.shuffle(examples)
    return examples


def _turns(texts: Sequence[T], n: int, rng: random.Random) -> list[T]:
    """`n` of `texts`, each about equally often."""
    return [a for _ in range(-(-n // len(texts))) for a in rng.sample(list(texts), len(texts))][:n]


def _ids(tokenizer, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False).input_ids)
