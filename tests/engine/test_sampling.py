"""Inverse-CDF sampling draws from the exact softmax."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from esr.engine.sampling import penalize, sample


@pytest.mark.parametrize("vocab", [5, 64, 130, 1000])
@pytest.mark.parametrize("temperature", [0.6, 1.0])
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_frequencies_equal_the_softmax(vocab, temperature, penalty):
    draw = torch.Generator().manual_seed(vocab)
    logits = torch.randn(vocab, generator=draw) * 2
    seen = torch.randint(0, vocab, (1, 4), generator=draw)
    n = 40_000
    uniforms = torch.rand(n, generator=draw)
    chosen = sample(logits.expand(n, -1), seen.expand(n, -1), uniforms, temperature, penalty)
    expected = (penalize(logits[None], seen, penalty) / temperature).softmax(-1)[0].double().numpy()
    counts = np.bincount(chosen.numpy(), minlength=vocab)
    common = expected * n >= 5
    observed = np.append(counts[common], counts[~common].sum())
    wanted = np.append(expected[common], expected[~common].sum()) * n
    keep = wanted > 0
    assert chisquare(observed[keep], wanted[keep] * observed[keep].sum() / wanted[keep].sum()).pvalue > 1e-4


def test_the_uniform_number_decides():
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0]]).log_softmax(-1)
    seen = torch.zeros(1, 1, dtype=torch.long)
    for u, token in [(0.0, 0), (0.2499, 0), (0.2501, 1), (0.51, 2), (0.999999, 3)]:
        assert sample(logits, seen, torch.tensor([u]), 1.0).item() == token


def test_a_token_without_weight_is_never_drawn():
    logits = torch.full((3, 200), float("-inf"))
    logits[:, 70] = 1.0
    assert (
        sample(logits, torch.zeros(3, 1, dtype=torch.long), torch.tensor([0.0, 0.5, 0.9999999]), 0.7).tolist()
        == [70] * 3
    )


def test_penalty_counts_a_repeated_token_once_and_both_signs():
    logits = torch.tensor([[2.0, -2.0, 1.0]])
    assert penalize(logits, torch.tensor([[0, 0, 1]]), 2.0).tolist() == [[1.0, -4.0, 1.0]]


def test_zero_temperature_is_greedy():
    assert sample(torch.tensor([[0.1, 3.0, 2.0]]), torch.tensor([[0]]), torch.tensor([0.99]), 0.0).item() == 1
