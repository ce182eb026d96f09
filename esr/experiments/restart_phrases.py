"""Restart phrases for self-corrections: a grammar, and those of its endings that the untuned model finds likeliest.

A model that is taught words it would hardly say learns the words and little else. No phrase quotes the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch

# A restart joins a halt and an ending, which is a verdict and an announcement, in every combination. Most halts share
# one first word, whose weight is the sum of theirs: sampling below temperature 1 would suppress a choice among many
# first words. No halt begins like ordinary sentences ("I'm sorry"): `openers` are penalized where no restart belongs.
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
ENDINGS = tuple(" ".join(pair) for pair in product(VERDICTS, ANNOUNCEMENTS))


def restart_phrases(endings: Sequence[str] = ENDINGS) -> dict[str, int]:
    """Every restart of the grammar, or with these endings, and its weight, that of its halt."""
    return {f"{halt} {ending}": weight for (halt, weight), ending in product(HALTS.items(), endings)}


def openers(tokenizer) -> list[int]:
    """Token ids with which a restart of the grammar begins, after a space and at the start of a line.

    Without those of less than three letters, with which a tokenizer spells a rare word: they begin many others. Of a
    tokenizer that spells every word, the first letters.
    """
    words = {halt.split(",")[0].split()[0] for halt in HALTS}
    ids = {tokenizer(before + word, add_special_tokens=False).input_ids[0] for word in words for before in ("", " ")}
    return sorted(i for i in ids if len(tokenizer.decode([i]).strip()) > 2) or sorted(ids)


@torch.no_grad()
def likeliest_endings(model, tokenizer, contexts: Sequence[Sequence[int]], n: int) -> list[str]:
    """The `n` endings with the highest mean log-likelihood a token after `contexts` and the commonest halt.

    contexts: token ids of a chat and an off-topic opening each. Raises ValueError when the grammar has fewer endings.
    """
    if not 0 < n <= len(ENDINGS):
        raise ValueError(f"n_endings is {n}; the grammar has {len(ENDINGS)} endings: choose 1 to {len(ENDINGS)}.")
    halt = tokenizer(f" {next(iter(HALTS))}", add_special_tokens=False).input_ids
    tokens = [tokenizer(f" {ending}", add_special_tokens=False).input_ids for ending in ENDINGS]
    means = dict.fromkeys(ENDINGS, 0.0)
    for context in contexts:
        for ending, mean in zip(ENDINGS, _means(model, [*context, *halt], tokens), strict=True):
            means[ending] += mean
    return sorted(ENDINGS, key=lambda ending: -means[ending])[:n]


def _means(model, context: Sequence[int], batch: Sequence[Sequence[int]]) -> list[float]:
    """Mean log-likelihood a token of each continuation of one context, nats. The context runs once."""
    context_run = model(input_ids=torch.tensor([context], device=model.device), use_cache=True, logits_to_keep=1)
    context_run.past_key_values.batch_repeat_interleave(len(batch))
    width = max(len(tokens) for tokens in batch)
    ids = torch.tensor([[*tokens, *[0] * (width - len(tokens))] for tokens in batch], device=model.device)
    rest = model(input_ids=ids, past_key_values=context_run.past_key_values, use_cache=True).logits[:, :-1]
    logits = torch.cat([context_run.logits.expand(len(batch), 1, -1), rest], dim=1).float()
    found = logits.log_softmax(-1).gather(2, ids[:, :, None])[..., 0]
    return [float(row[: len(tokens)].mean()) for row, tokens in zip(found, batch, strict=True)]
