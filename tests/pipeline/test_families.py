"""Every published model runs from fetch to claims, as a replica of architecture, tokenizer and SAE (families.py)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from esr.models.chat import control_tokens
from esr.paths import PIPELINE, ROOT
from tests.pipeline.families import FAMILIES, TOKENIZERS, write_tokenizer

ENTRIES = YAML(typ="safe", pure=True).load(ROOT / "data" / "models.yaml")


def test_every_model_of_the_hub_has_a_replica():
    published = {name for name, entry in ENTRIES.items() if "release" in entry.get("sae", {})}
    assert published == set(FAMILIES)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_control_tokens_of_a_replica_are_its_templates_and_those_of_turns_of_gemma_3_are_not_named(kind):
    tokenizer = write_tokenizer(kind, ["Explain how to bake bread.\n"])
    assert list(control_tokens(tokenizer).values()) == TOKENIZERS[kind][0]
    named = TOKENIZERS[kind][0][:3] if kind == "gemma 3" else TOKENIZERS[kind][0]
    assert set(tokenizer.all_special_tokens) == set(named)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_published_model_runs_from_fetch_to_claims(name, tmp_path):
    environment = os.environ | {
        "ESR_ROOT": str(tmp_path), "ESR_CACHE": str(tmp_path / ".cache"), "ESR_WORKERS": "0", "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub"), "PYTHONPATH": str(ROOT), PIPELINE: "test",
    }  # fmt: skip
    command = [sys.executable, str(Path(__file__).with_name("families.py")), str(ROOT), name]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    rates = json.loads((tmp_path / "paper/numbers/esr.json").read_text())[name]
    assert rates["unsteered"]["n_trials"] == rates["steered"]["n_trials"] > 0
    assert rates["steered"]["multi_attempt_rate"]["estimate"] > 0  # restarts written into some responses
    figures = {path.stem for path in (tmp_path / "paper/figures").glob("*.svg")}
    assert {"esr_by_model", "first_attempt_scores", f"calibration_{name}"} <= figures
    drawn = {"boost_sweep": "boost_sweep", "ablate": "ablation", "activations": "activations", "finetune": "finetune"}
    assert {figure for stage, figure in drawn.items() if stage in ENTRIES[name].get("experiments", [])} <= figures
    rows = [json.loads(x) for x in (tmp_path / f"data/steer/{name}/responses.jsonl").read_text().splitlines()]
    unsteered, steered = ([r["text"] for r in rows if r["condition"] == c] for c in ("unsteered", "steered"))
    assert unsteered != steered
