"""Which scores make a text off or on topic."""

from __future__ import annotations

from pydantic import Field, model_validator

from esr.config.schema import Section


class TopicScores(Section):
    """Limits on scores, 0-100; texts between them are neither."""

    max_off_topic_score: float = Field(ge=0, le=100)
    min_on_topic_score: float = Field(ge=0, le=100)

    @model_validator(mode="after")
    def _off_and_on_topic_exclude_each_other(self):
        if self.max_off_topic_score >= self.min_on_topic_score:
            raise ValueError(
                f"max_off_topic_score is {self.max_off_topic_score} and min_on_topic_score {self.min_on_topic_score}: "
                "a text would be both, so make the first the smaller"
            )
        return self
