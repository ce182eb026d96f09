"""Schemas of rows, which are stored as JSON Lines and checked on write and read.

An unknown, missing or ill-typed field raises an error that names file, line and field.
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
    """A drawn SAE latent, its label and whether it passes the filters (paper section 3)."""

    index: int
    label: str  # "" when no word is distinctive
    words: list[str]
    concreteness: float = Field(ge=0, le=1)
    density: float = Field(ge=0, le=1)  # share of corpus tokens it fires on
    prompt_activation: float = Field(ge=0)  # largest activation on any token of any prompt
    contexts: list[str]  # strongest first, the firing token between « and »
    kept: bool
    reason: str


class GivenLabel(Record):
    """A label of a latent that somebody else made, in a file that an entry of the registry names."""

    index: int = Field(ge=0)
    label: str


class Query(Record):
    """One evaluation of the calibration: mean first-attempt score of `n` responses at `boost`."""

    boost: float
    score: float
    n: int


class Threshold(Record):
    """The boost, in median residual norms, at which a latent's mean first-attempt score is the target."""

    latent: int
    label: str
    boost: float
    sd: float  # of the posterior over the threshold
    score: float  # mean first-attempt score predicted at `boost`
    converged: bool
    reason: str  # "converged", or why not
    queries: list[Query]


class Trial(Record):
    """One response and everything that determines it; `id` is a digest of the determining fields."""

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
    ablate: list[int] = []  # zero-ablated latents, computed after steering
    instruction: str = ""  # appended to the prompt
    prefill: list[int] = []  # token ids of the prefilled opening
    adapter: str = ""  # folder of LoRA weights merged into the model
    response_only: bool = False  # steered only at the response's tokens
    max_new_tokens: int
    temperature: float
    repetition_penalty: float
    tokens: list[int]
    text: str
    finish_reason: Literal["stop", "length"]


class Attempt(Record):
    """Characters `start` to `end` of a response; `restart` is its restart phrase, "" for the first attempt."""

    start: int
    end: int
    restart: str
    score: float | None  # 0-100; None when the judge gave none


class Cut(Record):
    """Scores of the parts of a response before and after the character `at`, where nothing restarts."""

    at: int
    before: float
    after: float


class Judgement(Record):
    """A judge's verdict on a trial; every trial has one, without attempts unless the outcome is "scored".

    outcome: "scored"; "empty", a response without text; "run_error", no reply; "parse_failure", no verdict in the
    reply; "truncated", a reply cut off. cuts: placebo restarts of a response without one. thirds: scores of the parts
    of the whole response. Both are the offline judge's alone.
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
    unverified: int = 0  # claimed attempts that the response does not show, merged into the one before
    cuts: list[Cut] = []
    thirds: list[float] = []


class AnnotatedResponse(Record):
    """A response of data/judge/annotated.jsonl with two or three annotations under data/judge/RUBRIC.md.

    part: `develop` to improve a judge, `report` only to measure it. starts: character offsets of the attempts after the
    first. scores: 0-100, one per attempt, mean of the annotations. near_miss: restart-like words without a restart.
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


class SampledResponse(Record):
    """A response of data/judge/sample.jsonl, drawn at random among those of its model and condition.

    part: `develop` to make a judge, `report` only to measure it, once. origin: the run it is from. probability: with
    which it was drawn. label: of the latent or concept that it, or the response it is paired with, was steered with.
    """

    id: str
    part: Literal["develop", "report"]
    origin: str
    model: str
    condition: str
    boost: float
    latent: int
    label: str
    prompt_id: str
    prompt: str
    text: str
    probability: float = Field(gt=0, le=1)


class Annotation(Record):
    """One annotator's reading of a sampled response, under data/judge/RUBRIC.md.

    starts: characters at which attempts after the first begin. scores: 0-100, one per attempt. recovered: the response
    is off topic first and on topic at its end, with or without a restart.
    """

    id: str
    annotator: str
    starts: list[int]
    scores: list[float]
    recovered: bool


class RestartCase(Record):
    """A text of data/judge/restart_cases.jsonl, written to try a detector of restarts on kinds that are easily missed
    or mistaken.

    part: `develop` to make a detector, `report` only to measure it. starts: characters at which restarts begin.
    """

    id: str
    part: Literal["develop", "report"]
    kind: str
    prompt: str
    text: str
    starts: list[int]


class RestartExample(Record):
    """A text of data/judge/restart_examples.jsonl, which the restart detector is fitted on.

    kind: "restart", a response whose restart is the characters `start` to `end`; "none", a response with such words and
    no restart; "plain", a response of this project's models; "phrase" and "near_miss", sentences alone, which stand
    between two responses, to be found or not.
    """

    kind: Literal["restart", "none", "plain", "phrase", "near_miss"]
    prompt: str  # "" for sentences alone
    text: str
    start: int = 0
    end: int = 0


class Detector(Record):
    """An off-topic detector: a latent that fires on responses to another prompt, and its rank (paper section 5)."""

    latent: int
    rank: int
    rule: Literal["strict", "auc", "cohens_d"]
    matched_share: float = Field(ge=0, le=1)  # of responses to the prompt on which it fires
    mismatched_share: float = Field(ge=0, le=1)
    matched_mean: float  # mean of the largest activation in a response
    mismatched_mean: float
    auc: float = Field(ge=0, le=1)
    cohens_d: float


class AblationSet(Record):
    """Latents ablated in a condition; with `prompts`, only in the trials of these prompts."""

    condition: str
    latents: list[int]
    prompts: list[str] = []
