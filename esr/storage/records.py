"""Typed rows, one schema each, checked on write and on read.

Rows are stored as JSON Lines. An unknown, missing or ill-typed field is an error that names file, line and field.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=())


class Prompt(Record):
    id: str
    text: str


class Latent(Record):
    """An SAE latent that was drawn, with what it means and whether it may steer (paper section 3)."""

    index: int
    label: str  # "" when no words set its contexts apart
    words: list[str]
    concreteness: float = Field(ge=0, le=1)
    density: float = Field(ge=0, le=1)  # share of corpus tokens it fires on
    prompt_activation: float = Field(ge=0)  # largest activation on any token of any prompt
    contexts: list[str]  # strongest first, the firing token between « and »
    kept: bool
    reason: str


class Query(Record):
    """One question of the calibration: the mean first-attempt score of `n` answers at `boost`."""

    boost: float
    score: float
    n: int


class Threshold(Record):
    """The boost, in units of the median residual norm, at which a latent's first attempts score the target."""

    latent: int
    label: str
    boost: float
    sd: float  # of the posterior over the threshold
    score: float  # mean first-attempt score predicted at `boost`
    converged: bool
    reason: str  # "converged", or why not
    queries: list[Query]


class Trial(Record):
    """One answer and everything that determined it. `id` is a hash of the determining fields."""

    id: str
    model: str
    condition: str
    latent: int
    label: str
    prompt_id: str
    prompt: str
    seed: int
    boost: float  # in units of the median residual norm; 0 without steering
    layer: int
    ablate: list[int] = []  # latents zero-ablated, read after steering
    instruction: str = ""  # said to the model after the prompt
    prefill: list[int] = []  # token ids put in as the beginning of the answer
    adapter: str = ""  # folder of LoRA weights merged into the model
    response_only: bool = False  # steered at the answer's tokens alone
    max_new_tokens: int
    temperature: float
    repetition_penalty: float
    tokens: list[int]
    text: str
    finish_reason: Literal["stop", "length"]


class Attempt(Record):
    """Characters `start` to `end` of an answer, begun by the words `restart` ("" for the first attempt)."""

    start: int
    end: int
    restart: str
    score: float | None  # 0-100; None when the judge gave none


class Judgement(Record):
    """What a judge made of a trial. Every trial has one: without attempts when it could not be judged.

    outcome: "scored"; "empty", an answer without text; "run_error", no reply was had; "parse_failure", the reply is no
    verdict; "truncated", it was cut off.
    """

    trial_id: str
    model: str
    condition: str
    latent: int
    prompt_id: str
    seed: int
    judge: str
    outcome: Literal["scored", "empty", "run_error", "parse_failure", "truncated"]
    attempts: list[Attempt]
    degraded: bool
    unverified: int = 0  # attempts the judge claimed but the answer does not show: merged into the one before


class AnnotatedResponse(Record):
    """An answer of data/judge/annotated.jsonl, read twice or three times under data/judge/RUBRIC.md.

    part: `develop` to improve a judge on, `report` only to measure it. starts: character offsets of the attempts after
    the first. scores: 0-100, one per attempt, mean of the readings. near_miss: restart-like words and no restart.
    """

    id: str
    part: Literal["develop", "report"]
    model: str
    condition: Literal["unsteered", "steered"]
    boost: float
    prompt: str
    label: str
    text: str
    starts: list[int]
    scores: list[float]
    near_miss: bool
    n_annotations: Literal[2, 3]


class Detector(Record):
    """A latent that fires on answers to another prompt, with its place and what it was chosen by (paper section 5)."""

    latent: int
    rank: int
    rule: Literal["strict", "auc", "cohens_d"]
    matched_share: float = Field(ge=0, le=1)  # of answers to their own prompt on which it fires at all
    mismatched_share: float = Field(ge=0, le=1)
    matched_mean: float  # of the largest activation in an answer
    mismatched_mean: float
    auc: float = Field(ge=0, le=1)
    cohens_d: float


class AblationSet(Record):
    """Latents that the trials of a condition lose; with `prompts`, the trials of these prompts alone."""

    condition: str
    latents: list[int]
    prompts: list[str] = []
