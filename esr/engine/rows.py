"""Rows to generate and their responses; what cannot be generated is refused before any work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor
from transformers import PreTrainedConfig

from esr.engine.architecture import max_positions


@dataclass(frozen=True)
class Row:
    """One response to generate. `prompt`: token ids, chat template and any prefill included."""

    prompt: tuple[int, ...]
    seed: int
    max_new_tokens: int


@dataclass
class Response:
    """Generated token ids without the stop token, and why generation ended: `stop` or `length`.

    residuals: by layer, of each token of prompt and response but a last one that was never run, `[tokens, d_model]`;
    of the layers that were asked for.
    """

    tokens: list[int] = field(default_factory=list)
    finish_reason: Literal["stop", "length"] = "length"
    residuals: dict[int, Tensor] = field(default_factory=dict)


def check_rows(config: PreTrainedConfig, rows: Sequence[Row], batch_size: int, stop_tokens: Sequence[int]) -> None:
    """Raise ValueError, naming the row, for what a model of this config cannot generate."""
    ids = range(config.vocab_size)
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}: give at least 1.")
    for token in stop_tokens:
        if token not in ids:
            raise ValueError(
                f"Stop token {token} is not in the vocabulary (ids 0 to {ids[-1]}), so no response would end with it: "
                "correct eos_token_id in the model's generation_config.json."
            )
    for index, row in enumerate(rows):
        if not row.prompt or row.max_new_tokens < 1:
            raise ValueError(f"Row {index} needs a prompt of at least one token and max_new_tokens of at least 1.")
        if min(row.prompt) < 0 or max(row.prompt) not in ids:
            raise ValueError(
                f"Row {index} has a prompt token outside the vocabulary (ids 0 to {ids[-1]}): use the tokenizer of "
                "this model."
            )
        _check_positions(config, index, row)


def _check_positions(config: PreTrainedConfig, index: int, row: Row) -> None:
    needed, limit = len(row.prompt) + row.max_new_tokens, max_positions(config)
    if needed > limit:
        raise ValueError(
            f"Row {index} needs {needed} positions ({len(row.prompt)} for its prompt and max_new_tokens "
            f"{row.max_new_tokens}), and the model has {limit}: shorten the prompt or lower max_new_tokens, by "
            f"{needed - limit} together."
        )
