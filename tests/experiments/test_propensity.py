"""Propensity from a cache equals that of the whole model under the engine's hooks; edits of the cache are exact."""

import math
from types import SimpleNamespace

import pytest
import torch
from conftest import ablation, latent_subset

from esr.engine.activations import Document
from esr.engine.edits import LayerEdit
from esr.engine.interventions import AddVector, Step, apply
from esr.experiments import propensity
from esr.experiments.attribution import attribution
from esr.experiments.latent_edits import Edit, Reference, edited, removed, share_of_vector
from esr.experiments.propensity import UpperLayers, opening_log_odds, sampled_probability

DOCUMENT = Document((5, 6, 7, 8), tuple(range(10, 30)))
ENDS = (4, 11, 20)
OPENERS = (3, 40, 41)
SETS = [(), (10,), (11, 13), (10, 11, 12, 13)]


def vector(scale=1.0):
    return scale * torch.randn(1, 32, generator=torch.Generator().manual_seed(3))


def full_log_odds(model, edits, steer_layer, layer, *, sinks=True, norm=math.inf):
    """Log-odds of openers by whole passes under the engine's hooks. sinks: whether ablation leaves them alone."""
    tokens = torch.tensor([[*DOCUMENT.prompt, *DOCUMENT.response]])
    positions = torch.arange(tokens.shape[1])[None]
    real = torch.ones_like(tokens, dtype=torch.bool)
    step = Step(torch.tensor([0]), real, positions >= len(DOCUMENT.prompt) - 1, positions)
    found = []
    for latents in edits:
        marks, ablate = ablation(layer, latent_subset(bias=1.0), [latents], norm)
        if not sinks:
            marks.edit = lambda hidden, step, marks=marks: marks.__dict__.update(mask=~step.real) or hidden
        with torch.no_grad(), apply(model, [marks, AddVector(steer_layer, vector()), ablate], step):
            logits = model(input_ids=tokens).logits[0].float()
        places = [len(DOCUMENT.prompt) + end - 1 for end in ENDS]
        found.append(opening_log_odds(logits[places], torch.tensor(OPENERS)))
    return torch.stack(found)


def cached_log_odds(model, edits, steer_layer, layer, norm=math.inf):
    upper = UpperLayers(model, OPENERS, layer, norm)
    cached = upper.cache(DOCUMENT, ENDS, [LayerEdit(steer_layer, vector())])
    chosen = [Edit(str(latents), latents) for latents in edits]
    with torch.no_grad():
        return upper.log_odds(edited(chosen, cached.hidden, cached.sinks, latent_subset(bias=1.0)), cached.places)


@pytest.mark.parametrize(("steer_layer", "layer"), [(0, 0), (0, 1), (1, 1)])
@pytest.mark.parametrize("norm", [math.inf, 0.5])
def test_the_cached_path_is_the_whole_model_under_the_engines_hooks(model, steer_layer, layer, norm):
    """Steered at or below the SAE's layer; the first token is a sink, or all loud ones are."""
    cached = cached_log_odds(model, SETS, steer_layer, layer, norm)
    torch.testing.assert_close(cached, full_log_odds(model, SETS, steer_layer, layer, norm=norm), atol=2e-5, rtol=1e-4)
    assert (cached[1:] - cached[0]).abs().max() > 1e-2 or norm < 1, "the sets act"


def test_an_edited_sink_is_noticed(model):
    wrong = full_log_odds(model, SETS, 0, 0, sinks=False)  # at layer 0: above it a layer of Gemma sees the first token
    cached = cached_log_odds(model, SETS, 0, 0)
    assert (cached[1:] - wrong[1:]).abs().max() > 1e-3
    torch.testing.assert_close(cached[0], wrong[0], atol=2e-5, rtol=1e-4)


def test_rows_do_not_depend_on_the_size_of_a_pass(model, monkeypatch):
    whole = cached_log_odds(model, SETS, 0, 1)
    monkeypatch.setattr(propensity, "PASS_TOKENS", 1)
    torch.testing.assert_close(cached_log_odds(model, SETS, 0, 1), whole, atol=1e-5, rtol=1e-5)


def test_the_model_is_left_as_it_was(model):
    layers = list(model.model.layers)
    cached_log_odds(model, SETS, 0, 1)
    assert list(model.model.layers) == layers and not any(layer._forward_hooks for layer in layers)


def test_steering_above_the_cache_is_refused(model):
    upper = UpperLayers(model, OPENERS, 0, math.inf)
    with pytest.raises(ValueError, match="Steering at layer 1 acts above layer 0"):
        upper.cache(DOCUMENT, ENDS, [LayerEdit(1, vector())])
    with pytest.raises(ValueError, match="layer is 2"):
        UpperLayers(model, OPENERS, 2, math.inf)


def test_log_odds_are_of_the_openers_mass():
    logits = torch.randn(2, 9)
    mass = logits.softmax(-1)[:, [2, 5]].sum(-1)
    torch.testing.assert_close(opening_log_odds(logits, torch.tensor([2, 5])), (mass / (1 - mass)).log())
    plain = sampled_probability(logits, torch.tensor([2, 5]), [[0], [1]], 1.0, 1.0)
    torch.testing.assert_close(plain, mass)
    penalized = sampled_probability(logits, torch.tensor([2, 5]), [[2, 5], [2, 5]], 1.0, 2.0)
    assert (penalized < mass).all(), "openers that were said are said less"


def stream():
    draw = torch.Generator().manual_seed(8)
    hidden = torch.randn(12, 32, generator=draw)
    sinks = torch.zeros(12, dtype=torch.bool)
    sinks[0] = True
    return hidden, sinks


def test_kinds_of_edits_replace_activity_by_what_they_say():
    """Orthogonal latents: after an edit each reads its activity minus the change."""
    hidden, sinks = stream()
    subset = latent_subset(bias=5.0)
    before = subset.activations(hidden)
    reference = Reference(torch.full((4,), 2.0), torch.full((4,), 3.0), 4.0 + torch.arange(20.0).view(5, 4))
    expected = {
        "zero": torch.zeros(12, 2), "mean": torch.full((12, 2), 2.0), "add": before[:, [0, 2]] + 3.0,
        "resample": reference.donor[torch.arange(12) % 5][:, [0, 2]],
    }  # fmt: skip
    for kind, wanted in expected.items():
        [after] = edited([Edit(kind, (10, 12), kind)], hidden, sinks, subset, reference)
        read = subset._preactivations(after)
        torch.testing.assert_close(read[1:, [0, 2]], wanted[1:], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(read[:, [1, 3]], subset._preactivations(hidden)[:, [1, 3]], atol=1e-4, rtol=1e-4)
        assert torch.equal(after[0], hidden[0]), "the sink stays"


def test_shams_change_nothing_or_as_much_as_the_ablation():
    hidden, sinks = stream()
    subset = latent_subset(bias=5.0)
    assert torch.equal(edited([Edit("empty", ())], hidden, sinks, subset)[0], hidden)
    silent = latent_subset(bias=-100.0)
    assert torch.equal(edited([Edit("silent", (10, 11))], hidden, sinks, silent)[0], hidden)
    zero, turned = (removed(Edit("x", (10, 12), kind), hidden, sinks, subset) for kind in ("zero", "random"))
    torch.testing.assert_close(turned.norm(dim=-1), zero.norm(dim=-1))
    assert torch.nn.functional.cosine_similarity(turned[1:], zero[1:]).abs().mean() < 0.5
    with pytest.raises(ValueError, match="needs the activity of other texts"):
        removed(Edit("x", (10,), "mean"), hidden, sinks, subset)


def test_a_latent_that_is_the_steering_vector_takes_all_of_it_away():
    """Where the vector brings all of a latent's activity, ablating the latent removes the vector."""
    subset = latent_subset(bias=0.0)
    vector = 50 * subset.decoder[0]
    hidden, sinks = vector.expand(6, 32) + subset.center, torch.zeros(6, dtype=torch.bool)
    taken = removed(Edit("x", (10,)), hidden, sinks, subset)
    assert share_of_vector(taken, sinks, vector) == pytest.approx(1.0, abs=1e-4)
    assert share_of_vector(removed(Edit("x", (11,)), hidden, sinks, subset), sinks, vector) == pytest.approx(
        0, abs=1e-4
    )
    assert share_of_vector(taken, sinks, torch.zeros(32)) == 0


def test_attribution_is_the_first_order_effect_of_each_latent(model):
    """For a scaled-down ablation the estimate is exact, up to second order."""
    upper, subset = UpperLayers(model, OPENERS, 1, math.inf), latent_subset(bias=1.0)
    cached = upper.cache(DOCUMENT, ENDS)
    estimated = attribution(upper, cached, subset)
    small = 1e-2
    edits = [Edit("none", ()), *(Edit("one", (latent,), scale=small) for latent in subset.latents)]
    with torch.no_grad():
        measured = upper.log_odds(edited(edits, cached.hidden, cached.sinks, subset), cached.places).mean(1)
    torch.testing.assert_close((measured[1:] - measured[0]) / small, estimated, atol=2e-2, rtol=5e-2)


def test_vllm_is_refused_in_a_sentence(monkeypatch):
    monkeypatch.setattr(propensity, "model_entry", lambda _: SimpleNamespace(backend="vllm"))
    with pytest.raises(propensity.ConfigError, match="runs on vLLM, and propensity needs the layers above"):
        propensity.refuse_vllm("some-model")
