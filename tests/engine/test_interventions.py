"""An edit is exactly the intended one, exactly where intended, and gone afterwards."""

import pytest
import torch
from conftest import ablation, latent_subset

from esr.engine.generation import Row, generate
from esr.engine.interventions import AddVector, Capture, LatentSubset, Step, apply

GREEDY = {"batch_size": 3, "temperature": 0.0, "repetition_penalty": 1.0, "stop_tokens": []}
ROWS = [Row((5, 6, 7, 8), 0, 3), Row((9, 10), 0, 3), Row((11, 12, 13), 0, 3)]


def residuals(model, layers, edits):
    captures = [Capture(layer) for layer in layers]
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


def test_response_only_steering_leaves_the_prompt_alone(model):
    vectors = torch.ones(3, 32)
    [plain], [steered] = (residuals(model, [1], edits) for edits in ([], [AddVector(1, vectors, response_only=True)]))
    for row in range(3):
        assert torch.equal(steered[row][:-1], plain[row][:-1])
        assert torch.equal(steered[row][-1], plain[row][-1] + 1)


def test_hooks_return_new_tensors():
    hidden = torch.randn(2, 3, 8)
    before = hidden.clone()
    real = torch.ones(2, 3, dtype=torch.bool)
    step = Step(torch.tensor([0, 1]), real, real, torch.arange(3).expand(2, 3))
    edited = AddVector(0, torch.ones(2, 8)).edit(hidden, step)
    assert torch.equal(hidden, before) and edited is not hidden


def test_hooks_are_gone_after_an_exception(model):
    class Broken:
        layer = 1

        def edit(self, hidden, step):
            raise RuntimeError("broken edit")

        def prompt_key(self, trial):
            return None

    with pytest.raises(RuntimeError, match="broken edit"):
        generate(model, ROWS, [AddVector(0, torch.ones(3, 32)), Broken()], **GREEDY)
    assert not any(layer._forward_hooks for layer in model.model.layers)


def test_a_layer_that_does_not_exist_is_refused_before_any_hook(model):
    step = Step(torch.zeros(0), *[torch.zeros(0, 0)] * 3)
    with pytest.raises(ValueError, match="layers 0 to 2"), apply(model, [AddVector(3, torch.ones(1, 32))], step):
        pass
    assert not any(layer._forward_hooks for layer in model.model.layers)


def test_an_ablated_latent_reads_zero_and_nothing_else_changes(model):
    """Only the chosen latents of the chosen rows: what is lost is exactly their share of the residual stream."""
    sae = latent_subset(n=8, bias=300.0)  # all latents active, whatever the random model's residuals
    sets = [(), (10, 12, 13, 15), (11, 14, 16, 17)]
    chosen = sae.rows(sets)
    plain, ablated = residuals(model, [1, 2], []), residuals(model, [1, 2], ablation(1, sae, sets))
    assert torch.equal(ablated[0][0], plain[0][0]) and torch.equal(ablated[1][0], plain[1][0])
    for row in (1, 2):
        assert torch.equal(plain[0][row][0], ablated[0][row][0])  # the first token, a sink
        before, after = sae.activations(plain[0][row][1:]), sae.activations(ablated[0][row][1:])
        assert (before[:, chosen[row]] > 0).all()
        assert (after[:, chosen[row]] == 0).all()
        torch.testing.assert_close(after[:, ~chosen[row]], before[:, ~chosen[row]], atol=1e-4, rtol=1e-4)
        lost = (before * chosen[row]) @ sae.decoder
        torch.testing.assert_close(ablated[0][row][1:], plain[0][row][1:] - lost)
        assert not torch.equal(ablated[1][row], plain[1][row])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ablating_a_silent_latent_is_the_steered_run_within_rounding(model, dtype):
    """Where a latent does not fire there is nothing to lose, at the ablated layer and at all layers above."""
    sae, everything = latent_subset(n=4), [(10, 11, 12, 13)] * 3
    steer = AddVector(1, torch.randn(3, 32, generator=torch.Generator().manual_seed(4)))
    silent = LatentSubset(sae.latents, sae.encoder, sae.bias, torch.full((4,), 1e6), sae.center, sae.decoder)
    model = model.to(dtype)
    steered = residuals(model, [1, 2], [steer])
    ablated = residuals(model, [1, 2], [steer, *ablation(1, silent, everything)])
    rounding = torch.finfo(dtype).eps
    for layer in range(2):
        for row in range(3):
            assert (silent.activations(steered[0][row]) == 0).all()
            torch.testing.assert_close(ablated[layer][row], steered[layer][row], atol=rounding, rtol=rounding)
    [fires] = residuals(model, [1], [steer, *ablation(1, sae, everything)])
    assert any(not torch.equal(fires[row], steered[0][row]) for row in range(3)), "they act where they fire"


def test_ablation_reads_after_steering_and_undoes_a_steered_latent(model):
    sae = latent_subset()
    vectors = 500 * sae.decoder[[0, 0, 0]]
    edits = [AddVector(1, vectors), *ablation(1, sae, [(10,), (11,), ()])]
    [edited] = residuals(model, [1], edits)
    read = [sae.activations(edited[row][1:])[:, 0] for row in range(3)]
    assert (read[0] == 0).all() and (read[1] > 10).all() and (read[2] > 10).all()


def test_the_steered_layer_and_the_ablated_layer_may_differ_and_rows_may_be_steered_at_different_layers(model):
    sae = latent_subset()
    first, second = torch.zeros(3, 32), torch.zeros(3, 32)
    first[0], second[1] = 2.0, -3.0
    edits = [AddVector(0, first), AddVector(1, second), *ablation(2, sae, [(), (), (10, 11, 12, 13)])]
    plain, edited = residuals(model, [0, 1, 2], []), residuals(model, [0, 1, 2], edits)
    assert torch.equal(edited[0][0], plain[0][0] + 2.0) and torch.equal(edited[0][1], plain[0][1])
    assert torch.equal(edited[1][1], plain[1][1] - 3.0) and torch.equal(edited[1][2], plain[1][2])
    assert (sae.activations(edited[2][2][1:]) == 0).all() and (sae.activations(plain[2][2][1:]) > 0).any()


def test_captured_latents_are_those_of_the_captured_residuals(model):
    sae, vectors = latent_subset(), torch.randn(3, 32, generator=torch.Generator().manual_seed(4))
    latents, whole = Capture(1, keep=sae.activations), Capture(1)
    generate(model, ROWS, [AddVector(1, vectors), latents, whole], **GREEDY)
    for row in range(3):
        assert latents.residuals(row).shape == (len(ROWS[row].prompt) + 2, 4)
        torch.testing.assert_close(latents.residuals(row), sae.activations(whole.residuals(row)))


def test_a_latent_the_latent_subset_does_not_have_is_refused():
    with pytest.raises(ValueError, match="Latent 99 is not among the 4"):
        latent_subset().rows([(10,), (99,)])
