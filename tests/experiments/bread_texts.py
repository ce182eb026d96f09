"""Texts about bread and about horses, a tokenizer of words and a scorer of bread, for tests of the controls."""

import numpy as np

from esr.storage.records import Trial

WRONG = "The horses eat hay. They brush manes in the stable every day."
GOOD = "Mix flour and water. Knead the dough and bake it for an hour."
RESTART = " Wait, that's not right. Let me start over."


class Words:
    """A token is a word with the space before it; the ids grow as words come."""

    def __init__(self):
        self.words = []

    def encode(self, text, add_special_tokens=True):
        pieces = [piece for piece in text.replace(" ", "\0 ").split("\0") if piece]
        self.words += [piece for piece in pieces if piece not in self.words]
        return [self.words.index(piece) for piece in pieces]

    def decode(self, tokens, skip_special_tokens=True):
        return "".join(self.words[i] for i in tokens)


class Bread:
    """Scores 100 with a word about bread, else 0."""

    fingerprint = "bread"

    def score(self, prompts, texts, distractors):
        bread = {"flour", "dough", "bake", "knead", "water"}
        return np.array([100.0 * bool(bread & set(t.lower().replace(".", "").split())) for t in texts])


TOKENIZER = Words()


def trial(text, condition="steered", latent=0, prompt_id="evaluation-00", **changes):
    tokens = TOKENIZER.encode(text)
    fields = {
        "id": f"{condition}-{latent}-{prompt_id}", "model": "m", "condition": condition, "latent": latent,
        "label": "horses", "prompt_id": prompt_id, "prompt": f"Explain {prompt_id}.", "seed": 7,
        "boost": 0.4 if condition == "steered" else 0.0, "layer": 2, "max_new_tokens": 60, "temperature": 0.6,
        "repetition_penalty": 1.1, "tokens": tokens, "text": text, "finish_reason": "stop",
    }  # fmt: skip
    return Trial(**(fields | changes))


def pieces(tokens):
    return TOKENIZER.decode(tokens)
