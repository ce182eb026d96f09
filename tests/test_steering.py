"""Pairs share latent, prompt and seed; a run whose residual stream does not show the edit never goes on."""

import pytest
import torch

from esr import steering
from esr.generation import Row
from esr.interventions import AddVector
from esr.records import Prompt
from esr.steering import SteeringError, check_edit, plan_condition, trial_seed

PROMPTS = [Prompt(id=f"evaluation-{i:02d}", text=f"Explain how to do {i}.") for i in range(10)]
DRAW = {"n_prompts": 4, "n_seeds": 2, "seed": 1}
ROWS = [Row((5, 6, 7), 0, 4), Row((8, 9), 0, 4)]


def vectors():
    return torch.randn(2, 32, generator=torch.Generator().manual_seed(0)) * 4


def key(plan):
    return plan.latent, plan.prompt_id, plan.seed


def test_conditions_are_paired_whatever_their_boosts():
    labels = {3: "bread", 8: "sea"}
    plain = plan_condition("unsteered", {3: 0.0, 8: 0.0}, labels, PROMPTS, **DRAW)
    steered = plan_condition("steered", {3: 0.4, 8: 0.6}, labels, PROMPTS, **DRAW)
    assert [key(p) for p in plain] == [key(p) for p in steered]
    assert len({key(p) for p in steered}) == 2 * 4 * 2
    assert {p.prompt_id for p in steered if p.latent == 3} != {p.prompt_id for p in steered if p.latent == 8}


def test_adding_a_latent_leaves_the_others_trials_alone():
    one = plan_condition("steered", {3: 0.4}, {3: "bread"}, PROMPTS, **DRAW)
    two = plan_condition("steered", {8: 0.1, 3: 0.4}, {3: "bread", 8: "sea"}, PROMPTS, **DRAW)
    assert one == [p for p in two if p.latent == 3]


def test_seeds_differ_by_latent_prompt_and_repeat():
    seeds = {trial_seed(s, x, p, r) for s in (1, 2) for x in (1, 2) for p in ("a", "b") for r in (0, 1)}
    assert len(seeds) == 16


def test_too_few_prompts_are_refused():
    with pytest.raises(ValueError, match="n_prompts is 11, but there are 10"):
        plan_condition("steered", {3: 0.4}, {3: ""}, PROMPTS, n_prompts=11, n_seeds=1, seed=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_canary_passes_where_steering_works(model, dtype):
    check_edit(model.to(dtype), ROWS, 1, vectors())


def test_the_canary_stops_an_unsteered_run(model, monkeypatch):
    monkeypatch.setattr(AddVector, "edit", lambda self, hidden, step: hidden)
    with pytest.raises(SteeringError, match="layer 1"):
        check_edit(model, ROWS, 1, vectors())


def test_the_canary_stops_a_run_steered_with_rows_exchanged(model, monkeypatch):
    right = AddVector.edit
    monkeypatch.setattr(AddVector, "edit", lambda self, h, step: right(AddVector(1, self.vectors.flip(0)), h, step))
    with pytest.raises(SteeringError):
        check_edit(model, ROWS, 1, vectors())


def test_the_canary_stops_a_run_steered_on_the_answer_alone(model, monkeypatch):
    right = AddVector.edit
    monkeypatch.setattr(
        AddVector, "edit", lambda self, h, step: right(AddVector(1, self.vectors, answer_only=True), h, step)
    )
    with pytest.raises(SteeringError):
        check_edit(model, ROWS, 1, vectors())


def test_a_latent_that_does_not_exist_is_refused_before_a_model_loads(monkeypatch):
    monkeypatch.setattr(steering, "engine_provenance", lambda _model: pytest.fail("went on"))
    settings = steering.Settings("smollm2-135m", 0.6, 8, 16, 187.0)
    plans = plan_condition("steered", {4608: 0.4}, {4608: ""}, PROMPTS, **DRAW)
    with pytest.raises(ValueError, match="Latent 4608 of smollm2-135m does not exist"):
        steering.write_answers(plans, settings, workers=None, what="test")
