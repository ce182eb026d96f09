"""A backend runs the edits it is given, and says so where it cannot: checks of contract.py."""

import contract
import pytest
import torch

from esr.engine.backend import TransformersBackend, backend_of
from esr.engine.edits import LayerEdit
from esr.engine.guard import SteeringError
from esr.engine.interventions import AddVector


@pytest.fixture(scope="module", params=["llama", "gemma2"])
def backend(request):
    return backend_of(contract.make_model(request.param))


@pytest.mark.parametrize("check", contract.ALONE, ids=lambda check: check.__name__)
def test_contract(backend, check):
    check(backend)


@pytest.mark.parametrize("check", contract.BESIDE, ids=lambda check: check.__name__)
def test_contract_beside_the_same_model(backend, check):
    check(backend, TransformersBackend(backend.model))


def test_scores_are_those_of_the_models_logits(backend):
    document = contract.documents()[2]
    ids = torch.tensor([[*document.prompt, *document.response]])
    with torch.no_grad():
        expected = backend.model(input_ids=ids).logits[0].log_softmax(-1)[:-1].gather(1, ids[0, 1:, None])[:, 0]
    torch.testing.assert_close(backend.score([document])[0], expected[len(document.prompt) - 1 :])


def test_neither_generation_nor_scores_go_on_without_the_edit(backend, monkeypatch):
    monkeypatch.setattr(AddVector, "edit", lambda self, hidden, step: hidden)
    with pytest.raises(SteeringError, match="layer 1"):
        backend.generate(contract.ROWS, [contract.steer()], **contract.GREEDY)
    with pytest.raises(SteeringError, match="layer 1"):
        backend.score(contract.documents(), [contract.steer()])


def test_latents_without_the_choice_of_each_trial_are_refused():
    with pytest.raises(ValueError, match="which of them each trial ablates"):
        LayerEdit(1, subset=contract.subset())
