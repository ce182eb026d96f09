"""Restart phrases for self-corrections: a grammar, and those of its phrases that the untuned model finds likeliest.

A model that is taught words it would hardly say learns the words and little else. No phrase quotes the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch

# A restart joins a halt, a verdict and an announcement, in every combination. Most halts share one first word, whose
# weight is the sum of theirs: sampling below temperature 1 would suppress a choice among many first words. No halt
# begins with a word that begins ordinary sentences ("I'm sorry"): `openers` are penalized where no restart belongs.
HALTS = {
    "Wait,": 8, "Wait, no,": 3, "Wait, sorry,": 2, "Wait, hold on,": 2, "Wait a moment,": 2, "Wait, I'm sorry,": 1,
    "Sorry,": 1, "Hold on,": 1, "Hang on,": 1, "Oops,": 1, "Oh no,": 1,
}  # fmt: skip
VERDICTS = (
    "that's not right.",
    "this is not what you asked.",
    "I've drifted away from your question.",
    "I got sidetracked.",
    "this has nothing to do with your question.",
    "that doesn't answer the question.",
    "I've lost the thread.",
    "I'm wandering off the topic.",
    "I was talking about the wrong thing.",
    "none of this is right, it is unrelated.",
)
ANNOUNCEMENTS = (
    "Let me start over.",
    "Let me start again.",
    "Let me begin again.",
    "Let me try that again.",
    "I'll start over from the beginning.",
    "I should start afresh.",
    "Let me get back to your question.",
    "Let me go back to the topic.",
    "Let me answer your actual question.",
    "I need to start from scratch.",
)
BATCH = 32  # phrases a pass


def restart_phrases() -> dict[str, int]:
    """Every restart of the grammar with its weight, that of its halt."""
    parts = product(HALTS, VERDICTS, ANNOUNCEMENTS)
    return {" ".join(chosen): HALTS[chosen[0]] for chosen in parts}


def openers(tokenizer) -> list[int]:
    """Token ids with which a restart of the grammar begins, after a space and at the start of a line."""
    words = {halt.split(",")[0].split()[0] for halt in HALTS}
    ids = {
        tokenizer(f"{before}{word}", add_special_tokens=False).input_ids[0] for word in words for before in ("", " ")
    }
    return sorted(ids)


@torch.no_grad()
def likeliest(model, tokenizer, contexts: Sequence[Sequence[int]], n: int) -> dict[str, int]:
    """The `n` phrases of the grammar with the highest mean log-likelihood a token after `contexts`, with their weights.

    contexts: token ids of a chat and an off-topic opening each; a phrase follows after a space. Raises ValueError when
    the grammar has fewer than `n` phrases.
    """
    phrases = restart_phrases()
    if not 0 < n <= len(phrases):
        raise ValueError(f"n_phrases is {n}; the grammar has {len(phrases)} phrases: choose 1 to {len(phrases)}.")
    tokens = {phrase: tokenizer(f" {phrase}", add_special_tokens=False).input_ids for phrase in phrases}
    order = sorted(phrases, key=lambda phrase: (len(tokens[phrase]), phrase))  # batches of similar lengths
    means = dict.fromkeys(phrases, 0.0)
    for context in contexts:
        for first in range(0, len(order), BATCH):
            batch = order[first : first + BATCH]
            for phrase, mean in zip(batch, _means(model, context, [tokens[p] for p in batch]), strict=True):
                means[phrase] += mean / len(contexts)
    chosen = sorted(phrases, key=lambda phrase: -means[phrase])[:n]
    return {phrase: phrases[phrase] for phrase in chosen}


def _means(model, context: Sequence[int], batch: Sequence[Sequence[int]]) -> list[float]:
    """Mean log-likelihood a token of each continuation of one context, nats."""
    width = max(len(tokens) for tokens in batch)
    ids = torch.tensor([[*context, *tokens, *[0] * (width - len(tokens))] for tokens in batch], device=model.device)
    logits = model(input_ids=ids, use_cache=False, logits_to_keep=width + 1).logits[:, :-1].float()
    found = logits.log_softmax(-1).gather(2, ids[:, -width:, None])[..., 0]
    return [float(row[: len(tokens)].mean()) for row, tokens in zip(found, batch, strict=True)]
