"""Residuals computed again show what generation saw, under the same edits, and a stream stays a stream."""

import numpy as np
import pytest
import torch
from conftest import latent_subset

from esr.engine.activations import Document, residuals
from esr.engine.backend import TransformersBackend
from esr.engine.edits import LayerEdit, interventions_of
from esr.engine.generation import Row, generate
from esr.engine.interventions import Capture, LatentSubset
from esr.steering import activations, trials
from esr.steering.activations import edits_of, latent_activity, latent_margins, max_activations, token_activations
from esr.storage.records import Trial

ROWS = [Row((5, 6, 7, 8), 1, 6), Row((9, 10), 2, 11), Row((11, 12, 13), 3, 2), Row((5, 6), 4, 8)]
SAMPLING = {"batch_size": 3, "temperature": 0.8, "repetition_penalty": 1.1, "stop_tokens": []}


def vectors(scale=4.0):
    return scale * torch.randn(len(ROWS), 32, generator=torch.Generator().manual_seed(0))


def written(model, edits, capture):
    """Documents as generated under `edits`, and what `capture` saw of each response: all its tokens but the last."""
    responses = generate(model, ROWS, [*interventions_of(edits), capture], **SAMPLING)
    documents = [Document(row.prompt, tuple(response.tokens)) for row, response in zip(ROWS, responses, strict=True)]
    return documents, [capture.residuals(i)[len(row.prompt) :] for i, row in enumerate(ROWS)]


@pytest.mark.parametrize("response_only", [False, True])
@pytest.mark.parametrize("layer", [1, 2])
def test_residuals_equal_those_captured_in_generation_each_under_its_vector(model, layer, response_only):
    edits = [LayerEdit(1, vectors(), response_only)]
    documents, captured = written(model, edits, Capture(layer))
    hooks = interventions_of(edits)
    read = {i: hidden for i, hidden, _ in residuals(model, documents, layer, hooks, batch_size=3)}
    assert sorted(read) == [0, 1, 2, 3]
    for i, expected in enumerate(captured):
        assert read[i].shape == (len(documents[i].response), 32)
        assert (read[i][:-1] - expected).abs().max() <= 1e-4 * expected.abs().max()
    plain = {i: hidden for i, hidden, _ in residuals(model, documents, layer, batch_size=3)}
    assert all((plain[i] - read[i]).abs().max() > 0.5 for i in read)


def test_token_activations_equal_captured_latents_steered_and_ablated(model):
    sae = latent_subset(n=6, bias=2.0)
    edits = [LayerEdit(1, vectors(), subset=sae, chosen=sae.rows([(10, 12), (), (11,), ()]))]
    documents, captured = written(model, edits, Capture(1, keep=sae.activations))
    for i, read in token_activations(TransformersBackend(model), sae, documents, 1, edits, batch_size=2):
        np.testing.assert_allclose(read[:-1], captured[i], atol=1e-3, rtol=1e-3)
    assert sum((c > 0).sum() for c in captured) > 0


def test_margins_are_of_prompts_too_and_positive_where_a_latent_fires(model):
    sae, edits = latent_subset(n=6, bias=2.0), [LayerEdit(1, vectors())]
    documents, _ = written(model, edits, Capture(1))
    margins = latent_margins(TransformersBackend(model), sae, documents, 1, edits, batch_size=2)
    whole = [Document(d.prompt[:1], (*d.prompt[1:], *d.response)) for d in documents]
    fired = [values.max(0) for _, values in token_activations(TransformersBackend(model), sae, whole, 1, edits)]
    np.testing.assert_array_equal(margins > 0, np.max(fired, 0) > 0)
    short, edits = documents[2:3], [LayerEdit(1, vectors()[2:3])]
    alone = latent_margins(TransformersBackend(model), sae, short, 1, edits)
    ((_, responses),) = token_activations(TransformersBackend(model), sae, short, 1, edits)
    assert ((alone > 0) & (responses.max(0) == 0)).any()  # a latent that fires on a prompt alone


def test_documents_come_batch_by_batch(model, monkeypatch):
    passes = []
    forward = model.model.forward
    monkeypatch.setattr(model.model, "forward", lambda **inputs: passes.append(1) or forward(**inputs))
    documents = [Document((5, 6), tuple(range(3, 4 + i))) for i in range(6)]
    stream = residuals(model, documents, 1, batch_size=2)
    seen = []
    for i, hidden, _ in stream:
        seen.append((i, len(hidden), len(passes)))
    assert seen == [(0, 1, 1), (1, 2, 1), (2, 3, 2), (3, 4, 2), (4, 5, 3), (5, 6, 3)]


def test_layers_above_are_not_computed_and_no_hook_stays(model):
    ran = []
    handle = model.model.layers[2].register_forward_hook(lambda *_: ran.append(1))
    list(residuals(model, [Document((5, 6), (7, 8))], 1))
    handle.remove()
    assert not ran and not any(layer._forward_hooks for layer in model.model.layers)


class TinySae:
    """A latent subset's latents as a whole SAE."""

    def __init__(self, sae: LatentSubset):
        self.encode, self.W_dec = sae.activations, sae.decoder


def test_whole_sae_maxima_and_activity_are_those_of_the_tokens(model):
    sae = latent_subset(n=6, bias=2.0)
    edits = [LayerEdit(1, vectors())]
    documents, _ = written(model, edits, Capture(1))
    documents.append(Document((5,), ()))  # an empty response has no activation
    edits = [LayerEdit(1, torch.cat([vectors(), torch.zeros(1, 32)]))]
    tokens = dict(token_activations(TransformersBackend(model), sae, documents, 1, edits))
    maxima = max_activations(TransformersBackend(model), TinySae(sae), documents, 1, edits)
    for i in range(len(ROWS)):
        np.testing.assert_allclose(maxima[i], tokens[i].max(0), rtol=1e-5)
    assert (maxima[-1] == 0).all()
    activity = latent_activity(TransformersBackend(model), TinySae(sae), documents, 1, edits)
    every = np.concatenate([tokens[i] for i in range(len(ROWS))])
    assert activity.tokens == len(every)
    np.testing.assert_allclose(activity.frequency, (every > 0).mean(0))
    np.testing.assert_allclose(activity.mean, every.mean(0), rtol=1e-5)


def test_nothing_to_read_is_an_error(model):
    with pytest.raises(ValueError, match="with a token"):
        latent_activity(TransformersBackend(model), TinySae(latent_subset()), [Document((5,), ())], 1)


def trial(latent, boost, ablate=(), model="smollm2-135m"):
    return Trial(
        id="", model=model, condition="steered", latent=latent, label="", prompt_id="evaluation-01", prompt="", seed=0,
        boost=boost, layer=17, ablate=list(ablate), max_new_tokens=4, temperature=0.6, repetition_penalty=1.1,
        tokens=[5], text="", finish_reason="stop",
    )  # fmt: skip


def test_trials_have_the_edits_they_were_generated_under(monkeypatch):
    monkeypatch.setattr(trials, "residual_norm", lambda _model: 100.0)
    monkeypatch.setattr(trials, "sae_norm", lambda _model: 90.0)
    [edit] = edits_of([trial(3, 0.5), trial(8, 0.0), trial(8, 0.25, ablate=(5,))], "cpu")
    torch.testing.assert_close(edit.vectors.norm(dim=-1), torch.tensor([50.0, 0.0, 25.0]))
    assert (edit.median_norm, edit.layer) == (90.0, 17) and edit.chosen[:, 0].tolist() == [False, False, True]
    assert edits_of([trial(8, 0.0)], "cpu") == [] == edits_of([], "cpu")
    with pytest.raises(ValueError, match="several models"):
        edits_of([trial(3, 0.5), trial(3, 0.5, model="smollm2-135m-selfcorrect")], "cpu")


def test_documents_hold_the_instruction_and_the_prefill(monkeypatch):
    monkeypatch.setattr(activations, "chat_tokens", lambda _tokenizer, text, prefill: (len(text), *prefill))
    changes = {"prompt": "ab", "instruction": "cde", "prefill": [9], "tokens": [1, 2]}
    instructed = trial(3, 0.5).model_copy(update=changes)
    assert activations.documents_of([instructed], None) == [Document((7, 9), (1, 2))]
