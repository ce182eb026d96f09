"""Results stay, or their room's numerics version is raised: what was computed before is then not used again."""

import json
from unittest.mock import patch

import pytest
import torch

from esr.engine.interventions import AddVector
from esr.models.provenance import NUMERICS
from tests.golden import make, results
from tests.golden.repository import build, use


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build(tmp_path_factory.mktemp("golden") / "repository")


@pytest.fixture(autouse=True)
def repository(built, monkeypatch):
    use(built, monkeypatch)


def test_results_are_those_of_the_numerics_versions():
    for room in NUMERICS:  # a room before those that build on it: the first to change is the one to raise
        stored = results.stored(room)
        assert stored, f"NUMERICS has {room!r} and tests/golden has no {room}.json: run `{results.MAKE}`"
        assert (problem := results.complaint(room, stored, results.results(room))) is None, problem


def test_every_room_with_a_version_has_results_and_the_reverse():
    assert {path.stem for path in results.FOLDER.glob("*.json")} == NUMERICS.keys() == results.ROOMS.keys()


def test_steering_ablation_prefill_and_penalty_each_change_the_tokens():
    """Else their results would guard nothing."""
    engine, steering = (results.stored(room)["results"] for room in ("engine", "steering"))
    for kind in ("llama", "gemma2"):
        tokens = [json.dumps(value) for name, value in engine.items() if name.startswith(kind) and "tokens" in name]
        assert len(tokens) == 7 and len(set(tokens)) == 7
    assert len({json.dumps(response) for response in steering["responses"]}) == len(results.PLANS)
    names = ("responses", "steered at the response", "repetition penalty", "adapter")
    assert len({json.dumps(steering[name]) for name in names}) == len(names)


def steer_too_far(vector, hidden, step, known=AddVector.edit):
    return hidden + 1.01 * (known(vector, hidden, step) - hidden)


def drop_first_token(tokenizer, prompt, prefill=()):
    from esr.models.chat import chat_tokens

    return chat_tokens(tokenizer, prompt, prefill)[1:]


def share_one_prompt(_generator, slots):
    return slots[:1], dict.fromkeys(slots[1:], slots[0])


WRONG = [  # room, what a careless change replaces, and by what
    ("engine", "esr.engine.interventions.AddVector.edit", steer_too_far),
    ("engine", "esr.engine.sampling.penalize", lambda logits, seen, penalty: logits),
    ("engine", "esr.engine.generation.Generator._alike", share_one_prompt),
    ("models", "esr.models.loading.stop_tokens", lambda model, tokenizer: [2, 3]),
    ("models", "tests.golden.results.chat_tokens", drop_first_token),
    ("sae", "esr.sae.loading.load_directions", lambda model, latents: torch.ones(len(latents), 32)),
    ("sae", "esr.engine.interventions.LatentSubset.activations", lambda self, hidden: (hidden @ self.encoder).relu()),
    ("steering", "esr.steering.trials.user_message", lambda plan: plan.prompt),
    ("steering", "esr.steering.trials.trial_seed", lambda *parts: 1),
    ("experiments", "esr.experiments.lora._batches", lambda examples, size, seed: [[0, 1], [2, 3], [4, 5]]),
    ("experiments", "esr.experiments.finetuning.load_directions", lambda model, latents: torch.ones(len(latents), 32)),
]  # fmt: skip


@pytest.mark.parametrize(("room", "place", "other"), WRONG, ids=[place for _, place, _ in WRONG])
def test_changed_results_need_a_higher_version(room, place, other):
    with patch(place, other):
        found = results.results(room)
    problem = results.complaint(room, results.stored(room), found)
    assert problem.startswith(f"results of `{room}` changed (")
    assert problem.endswith(f"): raise NUMERICS['{room}'] and regenerate with `python -m tests.golden.make`")


def test_a_higher_version_needs_new_results(monkeypatch):
    stored = results.stored("models")
    monkeypatch.setitem(NUMERICS, "models", NUMERICS["models"] + 1)
    problem = results.complaint("models", stored, stored["results"])
    assert problem == (
        f"NUMERICS['models'] is {NUMERICS['models']}, the results in models.json are of {NUMERICS['models'] - 1}: "
        "run `python -m tests.golden.make`"
    )
    above = results.stored("steering")
    assert results.complaint("steering", above, above["results"]) == problem.replace("models.json", "steering.json")


def test_changed_results_are_not_written_under_the_old_version(monkeypatch):
    before = results.stored("models")
    other = before["results"] | {"stop tokens": [7]}
    with pytest.raises(ValueError, match=r"results of `models` changed \(stop tokens\): raise NUMERICS\['models'\]"):
        make.text_of("models", other)
    assert json.loads(make.text_of("models", before["results"] | {"new": [1]}))["results"]["new"] == [1]
    monkeypatch.setitem(NUMERICS, "models", NUMERICS["models"] + 1)
    assert json.loads(make.text_of("models", other)) == {"versions": {"models": NUMERICS["models"]}, "results": other}


def test_floats_may_differ_by_rounding_and_no_more():
    values = torch.tensor([[100.0, 1.0, 2.0, 3.0]])
    expected = results.floats(values)
    assert results.equal(expected, results.floats(values * (1 + 1e-5)))
    assert not results.equal(expected, results.floats(values * (1 + 2e-4)))
    assert not results.equal(expected, results.floats(torch.cat([values, values])))
    assert not results.equal(expected, results.floats(values * torch.nan))


def test_a_choice_that_rounding_could_change_is_no_golden_result():
    from esr.engine import generation

    logits, seen = torch.tensor([[1.0, 1.0 + 1e-5, 0.0]]), torch.zeros(1, 1, dtype=torch.long)
    for temperature, uniform in ((0.0, 0.3), (1.0, float(logits.softmax(-1)[0, 0]))):
        with pytest.raises(AssertionError, match="likely|close"), results.far_apart():
            generation.sample(logits, seen, torch.tensor([uniform]), temperature, 1.0)
