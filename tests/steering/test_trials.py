"""Pairs share latent, prompt and seed; responses follow from the plans, whatever ran beside or before."""

import json
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from esr.config.registry import Sampling
from esr.engine.edits import guarded
from esr.engine.finite import NonFiniteError
from esr.engine.workers import Workers
from esr.steering import trials
from esr.steering.trials import Chunk, Settings, Steering, build_edits, generate_responses, plan_condition
from esr.storage.digests import trial_seed
from esr.storage.records import Prompt

PROMPTS = [Prompt(id=f"evaluation-{i:02d}", text=f"Explain how to do {i}.") for i in range(10)]
DRAW = {"n_prompts": 4, "n_seeds": 2, "seed": 1}


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


def test_every_plan_gets_its_layer_vector_and_ablation():
    """From plans to edits: the registry's SAE, rows steered at different layers, some not at all."""
    base = plan_condition("steered", {3: 0.5, 8: 0.25}, {3: "", 8: ""}, PROMPTS, n_prompts=1, n_seeds=1, seed=1)
    plans = [
        replace(base[0], layer=17, ablate=(5, 9)),
        replace(base[1], layer=12),
        replace(base[0], layer=17, boost=0.0),
    ]
    steering = Steering("smollm2-135m", sae_layer=17, residual_norm=100.0, sae_norm=90.0)
    edits = build_edits(steering, plans, "cpu")
    guards, hooks = guarded(edits)
    assert [type(hook).__name__ + str(hook.layer) for hook in hooks] == [
        "Guard12", "Guard17", "AddVector12", "Sinks17", "AddVector17", "ZeroAblate17",
    ]  # fmt: skip
    assert hooks[:2] == guards
    norms = torch.stack([edit.vectors.norm(dim=-1) for edit in edits])
    torch.testing.assert_close(norms, torch.tensor([[0.0, 25.0, 0.0], [50.0, 0.0, 0.0]]))
    assert edits[1].subset.latents == (5, 9) and edits[1].chosen.tolist() == [
        [True, True],
        [False, False],
        [False, False],
    ]
    assert build_edits(steering, plans[2:], "cpu") == []


def test_a_chunk_is_the_same_after_a_detour_through_json():
    plans = plan_condition("steered", {3: 0.5}, {3: "sea"}, PROMPTS, **DRAW)
    plans = (replace(plans[0], ablate=(5, 9), prefill=(1, 2)), *plans[1:])
    chunk = Chunk(Settings("tiny", 0.6, 8, 16), Steering("tiny", 17, 100.0, 90.0, True), 1.1, {"code": "x"}, plans)
    assert Chunk.read(json.loads(json.dumps(asdict(chunk)))) == chunk


def test_a_latent_that_does_not_exist_is_refused_before_a_model_loads(monkeypatch):
    monkeypatch.setattr(trials, "engine_provenance", lambda _model, _adapter: pytest.fail("went on"))
    settings = Settings("smollm2-135m", 0.6, 8, 16)
    plans = plan_condition("steered", {4608: 0.4}, {4608: ""}, PROMPTS, **DRAW)
    with pytest.raises(ValueError, match="Latent 4608 of smollm2-135m does not exist"):
        trials.generate_responses(plans, settings, workers=None, what="test")


def letters():
    """A tokenizer of single characters, whose chat template prints the message alone."""
    characters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,:;!?'-"
    vocabulary = dict(zip(["<pad>", "<bos>", "<eos>", *characters], range(97), strict=False))
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", chat_template="{{ messages[0]['content'] }}"
    )


def test_responses_are_the_same_bits_in_any_order_of_chunks_and_in_a_run_that_resumes(tmp_path, model, monkeypatch):
    monkeypatch.setattr(trials, "resident_model", lambda _model, _adapter: (model.bfloat16(), letters()))
    monkeypatch.setattr(trials, "load_directions", lambda _model, latents: vectors()[[x % 2 for x in latents]])
    monkeypatch.setattr(trials, "engine_provenance", lambda _model, _adapter: {})
    monkeypatch.setattr(trials, "residual_norm", lambda _model: 3.0)
    monkeypatch.setattr(trials, "sae_norm", lambda _model: 3.0)
    monkeypatch.setattr(
        trials,
        "model_entry",
        lambda _id: SimpleNamespace(
            backend="transformers", steer_layer=1, sae_layer=1, sampling=Sampling(repetition_penalty=1.1)
        ),
    )
    model.generation_config.eos_token_id = 2
    plans = plan_condition("steered", {3: 0.4, 8: 0.6}, {3: "", 8: ""}, PROMPTS, n_prompts=8, n_seeds=1, seed=1)
    settings = Settings("smollm2-135m", 0.8, 4, 9)
    responses = []
    for name, order in (("first", 1), ("backwards", -1), ("resumed", 1)):
        monkeypatch.setattr("esr.engine.workers.CACHE", tmp_path / name)
        workers = Workers(0)
        run = workers.map

        def reordered(function, chunks, run=run, order=order, **options):
            files = run(function, chunks[::order], **options | {"items": options["items"][::order]})
            return files[::order]

        if name == "resumed":  # half of the chunks are there from a run that was killed
            for file in sorted((tmp_path / "first").rglob("*"))[-2:]:
                target = tmp_path / name / file.relative_to(tmp_path / "first")
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(file.read_bytes())
        workers.map = reordered
        responses.append(generate_responses(plans, settings, workers, name))
    assert len({t.id for t in responses[0]}) == 16 and any(t.tokens for t in responses[0])
    assert responses[0] == responses[1] == responses[2]


def test_a_trial_that_overflows_is_named(model, monkeypatch):
    monkeypatch.setattr(trials, "resident_model", lambda _model, _adapter: (model.half(), letters()))
    monkeypatch.setattr(trials, "load_directions", lambda _model, latents: vectors()[[x % 2 for x in latents]])
    model.generation_config.eos_token_id = 2
    plans = plan_condition("steered", {3: 0.4, 8: 1e6}, {3: "", 8: ""}, PROMPTS, n_prompts=1, n_seeds=1, seed=1)
    plans = tuple(replace(p, layer=1) for p in plans)
    chunk = Chunk(Settings("tiny", 0.6, 8, 4), Steering("tiny", 17, 1.0, 1.0), 1.1, {}, plans)
    named = f"Condition steered, latent 8, prompt {plans[1].prompt_id}: Row 1 .* after layer 1, in its prompt"
    with pytest.raises(NonFiniteError, match=named):
        trials.generate_chunk(asdict(chunk), lambda *_: None)


def test_chunks_are_as_full_as_they_may_be_and_hold_the_trials_of_a_pair_together(monkeypatch):
    """Eight conditions of four responses each, at most 10 a chunk: four chunks of eight, not sixteen of two."""
    monkeypatch.setattr(trials, "engine_provenance", lambda _model, _adapter: {})
    monkeypatch.setattr(trials, "residual_norm", lambda _model: 187.0)
    monkeypatch.setattr(trials, "sae_norm", lambda _model: 187.0)
    seen = []

    class Planned(Exception):
        pass

    def keep(_function, chunks, **_options):
        seen.extend([(p["latent"], p["prompt_id"], p["boost"]) for p in chunk["plans"]] for chunk in chunks)
        raise Planned

    draw = {"n_prompts": 2, "n_seeds": 1, "seed": 1}
    plans = [
        plan
        for i in range(8)
        for plan in plan_condition(f"boost {i}", {3: i / 10, 8: i / 10}, {3: "", 8: ""}, PROMPTS, **draw)
    ]
    with pytest.raises(Planned):
        settings = Settings("smollm2-135m", 0.6, 10, 16)
        generate_responses(plans, settings, SimpleNamespace(map=keep), "test")
    assert [len(chunk) for chunk in seen] == [8, 8, 8, 8]
    assert all(len({plan[:2] for plan in chunk}) == 1 and len({plan[2] for plan in chunk}) == 8 for chunk in seen)
