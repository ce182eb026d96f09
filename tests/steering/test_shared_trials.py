"""Responses of a stage that hosts shared: byte-equal rows, complete, each trial once."""

import json
from types import SimpleNamespace

import pytest
import torch
from test_trials import letters, vectors

from esr.config.registry import Sampling
from esr.engine.shards import MERGE, SHARD, ShardEnd
from esr.engine.workers import Workers
from esr.steering import trials
from esr.steering.trials import Settings, generate_responses, plan_condition
from esr.storage.records import Prompt

PROMPTS = [Prompt(id=f"evaluation-{i:02d}", text=f"Explain how to do {i}.") for i in range(10)]


@pytest.fixture
def study(model, monkeypatch):
    entry = SimpleNamespace(
        backend="transformers", steer_layer=1, sae_layer=1, sampling=Sampling(repetition_penalty=1.1)
    )
    model.generation_config.eos_token_id = 2
    monkeypatch.setattr(trials, "resident_model", lambda _model, _adapter: (model.to(torch.float32), letters()))
    monkeypatch.setattr(trials, "load_directions", lambda _model, latents: vectors()[[x % 2 for x in latents]])
    monkeypatch.setattr(trials, "engine_provenance", lambda _model, _adapter: {})
    monkeypatch.setattr(trials, "residual_norm", lambda _model: 3.0)
    monkeypatch.setattr(trials, "sae_norm", lambda _model: 3.0)
    monkeypatch.setattr(trials, "model_entry", lambda _id: entry)
    return plan_condition("steered", {3: 0.4, 8: 0.6}, {3: "", 8: ""}, PROMPTS, n_prompts=9, n_seeds=1, seed=1)


def responses(plans):
    return generate_responses(plans, Settings("smollm2-135m", 0.8, 3, 6), Workers(0), "steer")


def rows(plans):
    return "".join(trial.model_dump_json() + "\n" for trial in responses(plans)).encode()


def shard(plans, name, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv(SHARD, name)
        return rows(plans)


def test_1_2_and_5_shards_a_killed_and_a_duplicated_one_give_byte_equal_rows(study, tmp_path, monkeypatch):
    expected = {}
    for n in (1, 2, 5):
        monkeypatch.setattr("esr.engine.workers.CACHE", tmp_path / str(n))
        for number in range(1, n):
            with pytest.raises(ShardEnd):
                shard(study, f"{number}/{n}", monkeypatch)
        if n == 5:  # the last shard dies at its last chunk, then runs twice
            dying = pytest.MonkeyPatch()
            known, seen = trials.generate_chunk, []

            def die(content, report, known=known, seen=seen):
                seen.append(content)
                if len(seen) == 1:
                    raise KeyboardInterrupt
                return known(content, report)

            die.__qualname__ = "generate_chunk"
            dying.setattr(trials, "generate_chunk", die)
            with pytest.raises(KeyboardInterrupt):
                shard(study, "5/5", monkeypatch)
            dying.undo()
            shard(study, "5/5", monkeypatch)
        expected[n] = shard(study, f"{n}/{n}", monkeypatch)
        monkeypatch.setenv(MERGE, str(n))
        assert rows(study) == expected[n]
        monkeypatch.delenv(MERGE)
    assert expected[1] == expected[2] == expected[5] and expected[1].count(b"\n") == 18
    assert len({trial.id for trial in responses(study)}) == 18


def test_a_chunk_of_other_trials_or_cut_off_is_refused(study, tmp_path, monkeypatch):
    monkeypatch.setattr("esr.engine.workers.CACHE", tmp_path)
    rows(study)
    file, other = sorted(tmp_path.rglob("generate_chunk/*"))[:2]
    good = file.read_bytes()
    file.write_bytes(other.read_bytes())
    with pytest.raises(ValueError, match=f"{file} holds rows of other trials than planned: delete it"):
        rows(study)
    for bad in (good[:-20], json.dumps(json.loads(good) * 2).encode()):  # cut off; each row twice
        file.write_bytes(bad)
        with pytest.raises(ValueError, match=f"{file} (is damaged|holds rows of other trials)"):
            rows(study)
