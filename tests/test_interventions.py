"""An edit is exactly the intended one, exactly where intended, and gone afterwards."""

import pytest
import torch

from esr.generation import Row, generate
from esr.interventions import AddVector, Capture, Step, apply

GREEDY = {"batch_size": 3, "temperature": 0.0, "repetition_penalty": 1.0, "stop_tokens": []}
ROWS = [Row((5, 6, 7, 8), 0, 3), Row((9, 10), 0, 3), Row((11, 12, 13), 0, 3)]


def residuals(model, layers, edits):
    captures = [Capture(layer, len(ROWS)) for layer in layers]
    generate(model, [Row(r.prompt, 0, 1) for r in ROWS], [*edits, *captures], **GREEDY)
    return [[c.residuals(i) for i in range(len(ROWS))] for c in captures]


def test_the_steered_layer_changes_by_exactly_the_vector_and_earlier_layers_not_at_all(model):
    vectors = torch.zeros(3, 32)
    vectors[1] = torch.randn(32, generator=torch.Generator().manual_seed(0))
    plain, steered = (residuals(model, [0, 1, 2], edits) for edits in ([], [AddVector(1, vectors)]))
    for row in range(3):
        assert torch.equal(plain[0][row], steered[0][row])
        assert torch.equal(steered[1][row], plain[1][row] + vectors[row])
        assert torch.equal(plain[2][row], steered[2][row]) == (row != 1)


def test_answer_only_steering_leaves_the_prompt_alone(model):
    vectors = torch.ones(3, 32)
    [plain], [steered] = (residuals(model, [1], edits) for edits in ([], [AddVector(1, vectors, answer_only=True)]))
    for row in range(3):
        assert torch.equal(steered[row][:-1], plain[row][:-1])
        assert torch.equal(steered[row][-1], plain[row][-1] + 1)


def test_hooks_return_new_tensors():
    hidden = torch.randn(2, 3, 8)
    before = hidden.clone()
    step = Step(torch.tensor([0, 1]), torch.ones(2, 3, dtype=torch.bool), torch.ones(2, 3, dtype=torch.bool))
    edited = AddVector(0, torch.ones(2, 8)).edit(hidden, step)
    assert torch.equal(hidden, before) and edited is not hidden


def test_hooks_are_gone_after_an_exception(model):
    class Broken:
        layer = 1

        def edit(self, hidden, step):
            raise RuntimeError("broken edit")

    with pytest.raises(RuntimeError, match="broken edit"):
        generate(model, ROWS, [AddVector(0, torch.ones(3, 32)), Broken()], **GREEDY)
    assert not any(layer._forward_hooks for layer in model.model.layers)


def test_a_layer_that_does_not_exist_is_refused_before_any_hook(model):
    step = Step(torch.zeros(0), torch.zeros(0, 0), torch.zeros(0, 0))
    with pytest.raises(ValueError, match="layers 0 to 2"), apply(model, [AddVector(3, torch.ones(1, 32))], step):
        pass
    assert not any(layer._forward_hooks for layer in model.model.layers)
