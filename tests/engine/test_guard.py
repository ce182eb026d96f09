"""A run whose residual stream does not show the intended edit never goes on."""

from dataclasses import replace

import pytest
import torch
from conftest import ablation as ablate

from esr.engine.generation import Row, generate
from esr.engine.guard import Guard, SteeringError, watched
from esr.engine.interventions import AddVector, LatentSubset
from esr.engine.sinks import Sinks

ROWS = [Row((5, 6, 7), 0, 4), Row((8, 9), 0, 4)]


def vectors():
    return torch.randn(2, 32, generator=torch.Generator().manual_seed(0)) * 4


def guarded(model, edits, **parts):
    guard = Guard(1, **parts)
    with watched(model, [guard]):
        generate(model, ROWS, [guard, *edits], batch_size=2, temperature=0.0, repetition_penalty=1.0, stop_tokens=[])
    return guard


def ablation():
    directions = torch.linalg.qr(torch.randn(32, 3, generator=torch.Generator().manual_seed(5))).Q
    subset = LatentSubset((1, 2, 3), directions, torch.zeros(3), torch.zeros(3), torch.zeros(32), directions.T)
    return subset, [(1, 3), ()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("response_only", [False, True])
def test_the_guard_lets_the_intended_edit_pass_on_prompt_and_response(model, dtype, response_only):
    subset, sets = ablation()
    sinks, ablated = ablate(1, subset, sets)
    edits = [sinks, AddVector(1, vectors(), response_only), ablated]
    parts = {"vectors": vectors(), "response_only": response_only, "subset": subset, "chosen": ablated.chosen}
    assert guarded(model.to(dtype), edits, **parts).passes == 1 + 4


def test_the_guard_stops_an_unsteered_run(model):
    with pytest.raises(SteeringError, match="layer 1"):
        guarded(model, [], vectors=vectors())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_guard_sees_a_vector_a_little_too_short(model, dtype):
    with pytest.raises(SteeringError):
        guarded(model.to(dtype), [AddVector(1, 0.97 * vectors())], vectors=vectors())


def test_the_guard_stops_a_run_steered_with_rows_exchanged(model):
    with pytest.raises(SteeringError):
        guarded(model, [AddVector(1, vectors().flip(0))], vectors=vectors())


@pytest.mark.parametrize("response_only", [False, True])
def test_the_guard_stops_a_run_steered_elsewhere_in_the_text(model, response_only):
    with pytest.raises(SteeringError):
        guarded(model, [AddVector(1, vectors(), not response_only)], vectors=vectors(), response_only=response_only)


def test_the_guard_stops_a_run_that_ablates_other_latents_or_none_or_before_steering(model):
    subset, sets = ablation()
    steer, right, others = AddVector(1, vectors()), ablate(1, subset, sets), ablate(1, subset, [(2,), (1, 2, 3)])
    for edits in ([steer], [steer, *others], [*right, steer]):
        with pytest.raises(SteeringError):
            guarded(model, edits, vectors=vectors(), subset=subset, chosen=right[1].chosen)


def test_the_guard_stops_a_run_that_ablates_on_a_sink(model):
    class Everywhere(Sinks):
        def edit(self, hidden, step):
            self.mask = torch.zeros_like(step.real)
            return hidden

    subset, sets = ablation()
    right = ablate(1, subset, sets)
    with pytest.raises(SteeringError):
        wrong = Everywhere(1, 1.0)
        guarded(model, [wrong, replace(right[1], sinks=wrong)], subset=subset, chosen=right[1].chosen)
    assert guarded(model, right, subset=subset, chosen=right[1].chosen).passes


def test_the_guard_stops_a_run_whose_hook_edits_in_place(model):
    class InPlace(AddVector):
        def edit(self, hidden, step):
            hidden += 1.0
            return hidden

    with pytest.raises(SteeringError):
        guarded(model, [InPlace(1, vectors())], vectors=vectors())


def test_a_guard_that_saw_nothing_is_an_error(model):
    with pytest.raises(SteeringError, match="nothing passed layer 1"), watched(model, [Guard(1, vectors())]):
        pass
