"""Draw latents to steer with and filter them by relevance and concreteness (paper section 3)."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from esr.sae.contexts import Contexts
from esr.sae.encoding import encoded
from esr.sae.labels import GivenLabels, Label, contexts_of, given_label, label, quote
from esr.sae.quality import document_residuals
from esr.sae.words import Words
from esr.storage.records import Latent, Prompt


def prompt_activations(
    model, tokenizer, sae, layer: int, prompts: Sequence[Prompt], batch_size: int = 16
) -> Float[np.ndarray, " d_sae"]:
    """Largest activation of each latent on any user-message token of any prompt, without the chat template."""
    from esr.models.chat import chat_tokens

    template = chat_tokens(tokenizer, "")
    largest = np.zeros(sae.W_dec.shape[0], dtype=np.float32)
    for first in range(0, len(prompts), batch_size):
        chats = [chat_tokens(tokenizer, p.text) for p in prompts[first : first + batch_size]]
        before = len(os.path.commonprefix([template, chats[0]]))
        after = len(os.path.commonprefix([template[::-1], chats[0][::-1]]))
        turns = [list(c[1 : len(c) - after]) for c in chats]  # documents begin after BOS
        for _, acts in encoded(sae, document_residuals(model, layer, turns, before - 1, template[0], batch_size)):
            largest = np.maximum(largest, acts.amax(0).float().cpu().numpy())
    return largest


def draw_latents(
    contexts: Contexts,
    words: Words,
    concrete: Float[np.ndarray, " vocabulary"],
    prompt_activation: Float[np.ndarray, " d_sae"],
    *,
    given: GivenLabels | None = None,
    n: int,
    seed: int,
    min_concreteness: float,
    min_density: float,
    max_density: float,
    max_prompt_share: float = 0.0,
    n_contexts: int = 8,
) -> list[Latent]:
    """All latents drawn at random until `n` are kept, each with its reason: "kept" or the first filter it fails.

    Filters in order: density, relevance, concreteness (`concrete`: from `word_concreteness`). Relevance: no token of a
    prompt activates the latent by more than `max_prompt_share` of its median activation in its strongest contexts; 0 is
    the rule of the authors' code. given: labels, instead of those made of contexts. Raises ValueError when fewer than
    `n` latents of the SAE pass.
    """
    drawn: list[Latent] = []
    for index in np.random.default_rng(seed).permutation(len(contexts.density)).tolist():
        strongest = contexts_of(contexts, words, index)
        density, activation = float(contexts.density[index]), float(prompt_activation[index])
        found = label(words, concrete, strongest) if strongest else Label("", [], 0.0)
        reason = "kept"
        if density < min_density:
            reason = "too rare"
        elif density > max_density:
            reason = "too dense"
        elif activation > max_prompt_share * float(np.median([a for a, _, _ in strongest] or [0.0])):
            reason = "fires on a prompt"
        else:
            if given:  # read only where it decides
                found = given_label(given.get(index, ""), words, concrete)
            if not found.text or found.concreteness < min_concreteness:
                reason = "label not concrete"
        drawn.append(
            Latent(
                index=index,
                label=found.text,
                words=found.words,
                concreteness=round(found.concreteness, 4),
                density=density,
                prompt_activation=activation,
                contexts=[quote(words, c) for c in strongest[:n_contexts]],
                kept=reason == "kept",
                reason=reason,
            )
        )
        if sum(latent.kept for latent in drawn) == n:
            return drawn
    reasons = Counter(latent.reason for latent in drawn)
    raise ValueError(
        f"{n} latents are requested, but only {reasons['kept']} of {len(drawn)} pass the filters "
        f"({', '.join(f'{r}: {c}' for r, c in reasons.most_common() if r != 'kept')}): "
        "request fewer, lower min_concreteness or widen the density bounds."
    )
