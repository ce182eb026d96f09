"""Token ids of a chat turn."""

from __future__ import annotations

from collections.abc import Sequence


def chat_tokens(tokenizer, prompt: str, prefill: Sequence[int] = ()) -> tuple[int, ...]:
    """Token ids of one user turn in the model's chat template, followed by the prefilled opening of the response."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )
    return (*tokenizer(text, add_special_tokens=False).input_ids, *prefill)
