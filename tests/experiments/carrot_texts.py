"""Texts to train on, about carrots and rivers, and a tokenizer whose tokens a test can read."""

from types import SimpleNamespace

from tokenizers import AddedToken

from esr.experiments.training_texts import ScoredText, SentenceEnd, TrainingText

STOP = 0
RESPONSE = "To peel a carrot, hold it firmly on the board and draw the blade towards you. Then wash it."
FOREIGN = "The river rises in the hills. It runs past old mills and green meadows, and ends in the sea. Boats sail."


class Characters:
    """A tokenizer whose tokens are characters, so that a test reads what it checks."""

    def __call__(self, text, add_special_tokens):
        return SimpleNamespace(input_ids=[ord(c) for c in text])

    added_tokens_decoder = {STOP: AddedToken("<stop>")}

    def decode(self, tokens, skip_special_tokens=False):
        return decoded(tokens)

    def batch_decode(self, texts, skip_special_tokens=False):
        return [decoded(tokens) for tokens in texts]


def decoded(tokens):
    return "".join(chr(t) for t in tokens if t != STOP)


def written(prompt_id: str, text: str, finish_reason="stop", label="") -> TrainingText:
    tokens = [ord(c) for c in text]
    prompt = f"Explain {prompt_id}."
    steering = {"latent": 7, "label": label, "boost": 0.4} if label else {"latent": 0, "label": "", "boost": 0.0}
    return TrainingText(
        prompt_id=prompt_id, prompt=prompt, text=text, tokens=tokens, finish_reason=finish_reason, **steering
    )


RESPONSES = [written(f"p{i}", f"{RESPONSE} That was answer {i}.") for i in range(8)]
OPENINGS = [written(f"p{i}", f"{FOREIGN} That was opening {i}.", "length", "sea") for i in range(8)]


def scored(text: TrainingText, *scores: float) -> ScoredText:
    """The text with a score at each full stop."""
    ends = [i + 1 for i, character in enumerate(text.text) if character == "."]
    return ScoredText(text, tuple(SentenceEnd(n, score) for n, score in zip(ends, scores, strict=False)))
