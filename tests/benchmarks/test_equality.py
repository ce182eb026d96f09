"""Equality with transformers: found where it is, and a difference is found and explained."""

import json

import pytest
import torch
from conftest import tiny_llama

from benchmarks import equality
from benchmarks.equality import Difference, compare, engine_tokens, transformers_tokens
from esr import paths

PROMPTS = [tuple(torch.randint(3, 97, (n,), generator=torch.Generator().manual_seed(n)).tolist()) for n in (5, 9, 14)]
STOPS = [2]


def test_engine_and_transformers_write_the_same_tokens(model):
    assert compare(model, PROMPTS, 12, STOPS) == []


def test_either_of_several_stop_tokens_ends_both(model):
    free = transformers_tokens(model, PROMPTS[0], 12, STOPS)
    stops = [2, free[4]]
    assert transformers_tokens(model, PROMPTS[0], 12, stops) == free[: free.index(free[4])]
    assert compare(model, PROMPTS, 12, stops) == []


def test_a_difference_is_placed_and_measured(monkeypatch):
    model = tiny_llama()
    right = engine_tokens(model, PROMPTS, 8, STOPS)
    other = (right[1][3] + 1) % 97
    wrong = [right[0], [*right[1][:3], other, *right[1][4:]], right[2][:-1]]
    monkeypatch.setattr(equality, "engine_tokens", lambda *_: wrong)
    tie, short = compare(model, PROMPTS, 8, STOPS)
    assert (tie.prompt, tie.position, tie.expected, tie.found) == (1, 3, right[1][3], other)
    with torch.no_grad():
        logits = model(torch.tensor([[*PROMPTS[1], *right[1][:3]]])).logits[0, -1]
    assert tie.margin == pytest.approx(float(logits[right[1][3]] - logits[other])) and tie.margin > 0
    assert short == Difference(2, 7, right[2][7], None, None)


def test_numbers_are_written_per_model(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(paths, "NUMBERS", tmp_path)
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(equality, "load_model", lambda name, dtype: tiny_llama().to(dtype))
    monkeypatch.setattr(equality, "load_tokenizer", lambda name: None)
    monkeypatch.setattr(equality, "stop_tokens", lambda _model, _tokenizer: STOPS)
    monkeypatch.setattr(equality, "chat_tokens", lambda _tokenizer, text: [3 + ord(c) % 90 for c in text[:20]])
    for name in ("one", "two"):
        equality.main([name, "--prompts", "3", "--tokens", "4"])
    numbers = {"n_prompts": 3, "n_equal": 3, "n_tokens": 4}
    assert json.loads((tmp_path / "equality.json").read_text()) == {"one": numbers, "two": numbers}
    assert "two: 3 of 3 prompts equal, 4 tokens each" in capsys.readouterr().out


def test_a_model_that_is_not_fetched_is_one_sentence():
    with pytest.raises(SystemExit, match="error: Unknown model 'nothing'"):
        equality.main(["nothing"])
