"""Which concepts are steered with."""

import numpy as np
import pytest
import torch

from esr.steering.directions import choose_concepts, difference_of_means, separation


def test_concepts_that_a_prompt_is_about_are_left_out():
    similarity = np.array([0.1, 0.5, 0.2, 0.29, 0.31])
    reasons = choose_concepts(similarity, 2, 0, 0.3)
    assert [reasons[1], reasons[4]] == ["a prompt is about it"] * 2
    assert sorted(reasons[i] for i in (0, 2, 3)) == ["kept", "kept", "not drawn"]
    assert choose_concepts(similarity, 9, 0, 1.0) == ["kept"] * 5
    assert len({tuple(choose_concepts(np.zeros(9), 3, seed, 0.3)) for seed in range(9)}) > 1  # drawn by seed
    with pytest.raises(ValueError, match=r"like a prompt: their cosines are 0.10 or more, .* raise it"):
        choose_concepts(similarity, 2, 0, 0.05)


def test_a_difference_of_means_points_from_other_texts_to_the_concept():
    others = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    concept = others[:30] + torch.tensor([0.0, 20.0, 0.0, 0.0])
    direction = difference_of_means(concept, others)
    assert direction.norm() == pytest.approx(1) and direction[1] > 0.99
    assert separation(concept, others) == 1
    assert separation(others[:25], others[25:]) < 0.7
