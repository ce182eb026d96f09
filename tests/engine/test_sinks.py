"""Attention sinks are found by norm and place, and no latent is read or ablated on one."""

import pytest
import torch
from conftest import ablation, latent_subset, tiny_llama

from esr.engine.activations import Document, residuals
from esr.engine.backend import TransformersBackend
from esr.engine.generation import Row, generate
from esr.engine.interventions import AddVector, Capture
from esr.engine.sinks import sink_mask
from esr.steering.activations import latent_activity, max_activations, token_activations

LAYER, LOUD = 1, 3  # LOUD: a token whose residual stream is huge, as that of a BOS within a text
# Places of sinks in the prompt: the first token alone, as in SmolLM2, or three tokens, as in Qwen2.5-1.5B
SINKS = {"one": (0,), "several": (0, 2, 3)}
EVERYTHING = (10, 11, 12, 13)
GREEDY = {"batch_size": 2, "temperature": 0.0, "repetition_penalty": 1.0, "stop_tokens": []}


@pytest.fixture
def loud():
    """A model in which the token `LOUD` is a sink, wherever it stands."""
    model = tiny_llama()
    with torch.no_grad():
        model.model.embed_tokens.weight[LOUD] *= 400
    return model


def prompt_with(places):
    return tuple(LOUD if i in places and i else 20 + i for i in range(6))


def captured(model, prompts, edits):
    """Residuals after the edits of prompt and response, by trial."""
    capture = Capture(LAYER)
    generate(model, [Row(prompt, 0, 3) for prompt in prompts], [*edits, capture], **GREEDY)
    return [capture.residuals(i) for i in range(len(prompts))]


def median(model):
    [plain] = captured(model, [(20, 21, 22, 23, 24, 25, 26)], [])
    return float(plain[1:].norm(dim=-1).median())


@pytest.mark.parametrize("places", SINKS.values(), ids=SINKS)
def test_ablation_leaves_every_sink_as_it_is_and_edits_all_other_tokens(loud, places):
    subset = latent_subset(n=4, bias=300.0)  # all active, on sinks too
    norm, prompts = median(loud), [prompt_with(places), (21, 22)]
    plain = captured(loud, prompts, [])
    ablated = captured(loud, prompts, ablation(LAYER, subset, [EVERYTHING, ()], norm))
    found = sink_mask(plain[0], norm, torch.arange(len(plain[0])))
    assert tuple(found[:6].nonzero().flatten().tolist()) == places
    changed = (plain[0][:6] != ablated[0][:6]).any(-1)
    assert tuple((~changed).nonzero().flatten().tolist()) == places
    assert torch.equal(plain[1], ablated[1])


def test_a_sink_is_known_by_its_norm_before_steering(loud):
    """A strong boost does not turn ordinary tokens into sinks, which would switch the ablation off."""
    subset, norm = latent_subset(n=4, bias=300.0), median(loud)
    sinks, ablate = ablation(LAYER, subset, [EVERYTHING], norm)
    steer = AddVector(LAYER, torch.full((1, 32), 9 * norm / 32**0.5))
    steered = captured(loud, [prompt_with((0,))], [steer])
    both = captured(loud, [prompt_with((0,))], [sinks, steer, ablate])
    assert (steered[0][1:6] != both[0][1:6]).any(-1).all() and torch.equal(steered[0][0], both[0][0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sham_ablation_leaves_responses_bit_identical(loud, dtype):
    """Latents that never fire but on a sink, and an empty set."""
    loud, norm = loud.to(dtype), median(loud.to(dtype))
    prompts = [prompt_with(SINKS["several"]), (21, 22, LOUD, 24)]
    subset = latent_subset(n=4)
    [plain, other] = captured(loud, prompts, [])
    regular = torch.cat([rows[~sink_mask(rows, norm, torch.arange(len(rows)))] for rows in (plain, other)])
    subset.threshold.copy_(subset.activations(regular).amax(0) * 1.01 + 0.01)
    assert (subset.activations(plain[:6]) > 0).any(), "they fire on a sink"
    steer = AddVector(LAYER, torch.zeros(2, 32))
    sinks, ablate = ablation(LAYER, subset, [EVERYTHING, ()], norm)
    for edits in ([], [steer], [sinks, steer, ablate]):
        for expected, found in zip((plain, other), captured(loud, prompts, edits), strict=True):
            assert torch.equal(expected, found)


def test_activations_of_sinks_are_not_counted(loud):
    norm, subset, backend = median(loud), latent_subset(n=6, bias=2.0), TransformersBackend(loud)
    document = Document((20, 21, 22), (30, LOUD, 31, 32))
    [(_, hidden, sinks)] = residuals(loud, [document], LAYER, median_norm=norm)
    assert sinks.tolist() == [False, True, False, False]
    assert (subset.activations(hidden)[1] > 0).any()

    class Whole:
        encode, W_dec = staticmethod(subset.activations), subset.decoder

    options = {"median_norm": norm}
    others = subset.activations(hidden[~sinks])
    [(_, by_token)] = token_activations(backend, subset, [document], LAYER, **options)
    assert (by_token[1] == 0).all() and (by_token[[0, 2, 3]] == others.numpy()).all()
    torch.testing.assert_close(
        torch.tensor(max_activations(backend, Whole, [document], LAYER, **options)[0]), others.amax(0)
    )
    activity = latent_activity(backend, Whole, [document], LAYER, **options)
    assert activity.tokens == 3
    torch.testing.assert_close(torch.tensor(activity.mean).float(), others.mean(0))
