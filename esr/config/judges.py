"""The entries of language models as judges in params.yaml, with their defaults."""

from __future__ import annotations

from pydantic import Field, model_validator

from esr.config.schema import Positive, Section


class LlmJudge(Section):
    """A language model as a judge, under a unique `name`; `model` is inspect-ai's name, provider first.

    For an OpenAI-compatible server: `openai-api/<service>/<model>`, its `base_url`, and the key in <SERVICE>_API_KEY.
    For a model of the registry that this machine serves itself: `serve` instead of both.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$", examples=["gpt-4o-mini"])
    model: str = Field(default="", pattern=r"^([^/\s]+/\S+)?$", examples=["openai/gpt-4o-mini"])
    serve: str | None = None  # id in data/models.yaml of a model with a GGUF file
    base_url: str | None = None
    temperature: float | None = Field(default=0.0, ge=0, le=2)  # null for models that take none
    structured: bool = True  # request replies in a schema; false for servers that refuse
    max_connections: Positive = 8  # requests at the same time
    max_retries: int = Field(default=5, ge=0)  # of a failed request, with increasing delays
    timeout_s: Positive = 120  # of one request
    max_tokens: Positive = 1024  # of one reply
    max_cost: float | None = Field(default=None, gt=0)  # USD a run
    usd_per_million_input: float | None = Field(default=None, ge=0)
    usd_per_million_output: float | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _has_one_source(self):
        if bool(self.model) == bool(self.serve) or (self.serve and self.base_url):
            raise ValueError(
                "a judge is a model of a provider (model, and base_url for a server of your own) or one that this "
                "machine serves (serve): give one of the two"
            )
        return self

    @model_validator(mode="after")
    def _cost_is_known(self):
        if self.max_cost is not None and None in (self.usd_per_million_input, self.usd_per_million_output):
            raise ValueError("max_cost needs usd_per_million_input and usd_per_million_output: add both")
        return self
