"""The grammar of restarts, and the phrases that a model finds likeliest."""

from types import SimpleNamespace

import pytest
import torch
from conftest import tiny_llama

from esr.experiments.restart_phrases import ENDINGS, HALTS, likeliest_endings, openers, restart_phrases


class Words:
    """A tokenizer with an id for each word, with and without a space before it, below the tiny model's 97."""

    def __init__(self):
        self.ids: dict[str, int] = {}

    def __call__(self, text, add_special_tokens):
        spaced = [f" {w}" for w in text.split()]
        spaced[0] = spaced[0] if text.startswith(" ") else spaced[0].strip()
        return SimpleNamespace(input_ids=[3 + self.ids.setdefault(w, len(self.ids)) % 90 for w in spaced])

    def decode(self, tokens):
        return next(word for word, i in self.ids.items() if i == tokens[0] - 3)


class Letters:
    """A tokenizer whose tokens are characters."""

    def __call__(self, text, add_special_tokens):
        return SimpleNamespace(input_ids=[ord(c) for c in text])

    def decode(self, tokens):
        return "".join(map(chr, tokens))


def test_there_are_hundreds_of_distinct_restarts():
    phrases = restart_phrases()
    assert len({p.lower() for p in phrases}) == len(phrases) > 500
    assert phrases["Wait, I got sidetracked. Let me start over."] == HALTS["Wait,"]


def test_no_restart_quotes_the_prompt_or_begins_like_other_sentences():
    assert not any("{" in phrase or phrase.startswith(("I ", "I'm", "The ")) for phrase in restart_phrases())


def test_openers_are_the_first_tokens_after_a_space_and_on_a_new_line():
    tokenizer = Words()
    found = [tokenizer.decode([i]) for i in openers(tokenizer)]
    assert {" Wait", "Wait", " Sorry", "Sorry", " Hold", "Hang"} <= set(found)
    assert "Oh" not in found  # too short to tell a restart
    assert not {word.strip() for word in found} - {halt.split(",")[0].split()[0] for halt in HALTS}


def test_a_tokenizer_that_spells_words_opens_restarts_with_their_first_letters():
    """None would leave a restart without probability, and training without a loss."""
    assert {chr(i) for i in openers(Letters())} == {" ", *(halt[0] for halt in HALTS)}


def test_the_likeliest_endings_have_the_highest_mean_log_likelihood_after_the_commonest_halt():
    model, tokenizer, contexts = tiny_llama(), Words(), [(5, 6, 7), (8, 9)]
    expected = dict.fromkeys(ENDINGS, 0.0)
    for context in contexts:
        before = [*context, *tokenizer(" Wait,", add_special_tokens=False).input_ids]
        for ending in ENDINGS:
            tokens = tokenizer(f" {ending}", add_special_tokens=False).input_ids
            logits = model(torch.tensor([[*before, *tokens]])).logits[0, len(before) - 1 : -1]
            expected[ending] -= torch.nn.functional.cross_entropy(logits, torch.tensor(tokens)).item()
    found = likeliest_endings(model, tokenizer, contexts, 10)
    assert found == sorted(expected, key=lambda ending: -expected[ending])[:10]
    assert set(restart_phrases(found)) == {f"{halt} {ending}" for halt in HALTS for ending in found}
    with pytest.raises(ValueError, match="n_endings is 999"):
        likeliest_endings(model, tokenizer, contexts, 999)
