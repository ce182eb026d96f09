"""Every notebook runs, from models to claims, on a replica of the study (replica.py)."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from esr.paths import PIPELINE, ROOT
from esr.reporting.rules import read_rules

WRITTEN = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
STAGES = {name: stage.get("do", stage) for name, stage in WRITTEN.items()}
FETCHES = {"fetch", "fetch_folder", "fetch_embedder", "fetch_adapter"}  # the replica's models come from folders
REPLICA = (str(Path(__file__).with_name("replica.py")),)
CONFIGURATION = {"data/models.yaml", "data/study.yaml"}  # a stage depends on its model's entry, under `params`


@pytest.fixture(scope="module")
def replica(tmp_path_factory):
    root = tmp_path_factory.mktemp("replica")
    done = run(root, str(ROOT), **{PIPELINE: "test"})
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    root.joinpath("log").write_text(done.stderr)
    return root


def run(root, *arguments, program=REPLICA, **variables):
    environment = {name: value for name, value in os.environ.items() if name != PIPELINE} | variables
    environment |= {
        "ESR_ROOT": str(root), "ESR_CACHE": str(root / ".cache"), "ESR_WORKERS": "0", "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    command = [sys.executable, *program, *arguments]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)


def log_of(replica):
    return [json.loads(line) for line in (replica / "log").read_text().splitlines() if line.startswith("{")]


def test_every_notebook_ran(replica):
    ran = {row["stage"] for row in log_of(replica)}
    assert ran == {path.stem.partition("_")[2] for path in (ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")}


@pytest.mark.parametrize("stage", [name for name in STAGES if name not in FETCHES | {"paper"}])
def test_a_stage_depends_on_every_file_its_notebook_opens(replica, stage):
    """And each of its dependencies in data/ and paper/ is opened: an input DVC does not know makes stale results."""
    listed = [next(iter(x)) if isinstance(x, dict) else x for x in [*STAGES[stage]["deps"], *outs_of(STAGES[stage])]]
    opened = set()
    for row in log_of(replica):
        if row["stage"] == stage:
            known = [filled(path, WRITTEN[stage].get("foreach", ""), row["model"], replica) for path in listed]
            files = {
                name for name in row["opened"] if name.startswith(("data/", "paper/")) and name not in CONFIGURATION
            }
            unknown = {name for name in files if not any(f"{name}/".startswith(f"{path}/") for path in known)}
            assert unknown == set()
            opened |= {
                path
                for path, name in zip(listed, known, strict=True)
                if any(f"{f}/".startswith(f"{name}/") for f in files)
            }
    inputs = {dep for dep in STAGES[stage]["deps"] if dep.startswith(("data/", "paper/"))}
    assert inputs - opened == set()


def filled(path, group, model, replica):
    """A path of dvc.yaml with the model's values of data/study.yaml in place of its variables."""
    if not model:
        return path
    study = yaml.safe_load((replica / "data" / "study.yaml").read_text())["study"]
    values = study[group.removeprefix("${study.").removesuffix("}")].get(model, {}) | {"key": model}
    return re.sub(r"\$\{(?:item\.)?(\w+)\}", lambda match: values.get(match[1], ""), path)


def outs_of(stage):
    return [*stage.get("outs", []), *stage.get("metrics", [])]


def test_numbers_and_figures_of_the_pipeline_are_there(replica):
    outs = [out for stage in STAGES.values() for out in outs_of(stage) if isinstance(out, dict)]
    named = {name for out in outs for name in out if name.startswith("paper/numbers/")}
    assert {name for name in named if not (replica / name).exists()} == set()
    assert len(list((replica / "paper" / "figures").glob("*.svg"))) >= 10


def test_conditions_share_latent_prompt_and_seed(replica):
    rows = [json.loads(line) for line in (replica / "data/steer/tiny/responses.jsonl").read_text().splitlines()]
    keys = {
        c: [(r["latent"], r["prompt_id"], r["seed"]) for r in rows if r["condition"] == c]
        for c in ("unsteered", "steered")
    }
    assert keys["unsteered"] == keys["steered"]
    texts = {c: [r["text"] for r in rows if r["condition"] == c] for c in keys}
    assert texts["unsteered"] != texts["steered"]


def test_restarts_are_followed_through_every_experiment(replica):
    episodes = json.loads((replica / "data/activations/tiny-selfcorrect/summary.json").read_text())
    assert episodes["episodes"] > 0 and episodes["off_topic_ratio"]["n"] > 0
    controls = json.loads((replica / "data/controls/tiny-selfcorrect/summary.json").read_text())
    assert controls["sustained"]["after_restart"]["0-2"]["n"] > 0


def test_claims_are_decided_from_these_numbers(replica):
    """Each rule of a stage that ran has its number where the rule names it."""
    rows = {row["id"]: row for row in json.loads((replica / "paper/numbers/claims.json").read_text())}
    assert {row["model"] for row in rows.values()} == {"tiny", "tiny-selfcorrect"}
    elsewhere = ("judge", "mechanism")  # a language model as a judge; no stage yet
    ran = [rule for rule in read_rules().rules if rule.outcome[0] not in elsewhere]
    ran = [rule for rule in ran if rule.model == "organism" or rule.outcome[0] not in ("meta_prompts", "controls")]
    # its windows are shorter than the one that the rule names
    assert {rule.id for rule in ran if rows[rule.id]["measured"] is None} == {"sustained"}


def test_every_response_of_every_stage_is_on_a_page(replica, tmp_path):
    """Those with a prefilled opening, too: the judge's places are in opening and continuation together."""
    done = run(replica, str(tmp_path), program=("-m", "esr.publishing.responses"), **{PIPELINE: "test"})
    assert done.returncode == 0, done.stdout + done.stderr
    files = list(replica.glob("data/*/*/responses.jsonl"))
    assert {path.name for path in tmp_path.iterdir()} == {f"{f.parts[-2]}-{f.parts[-3]}.html" for f in files}
    for file in files:
        text = (tmp_path / f"{file.parts[-2]}-{file.parts[-3]}.html").read_text()
        rows = json.loads(re.search(r'id="data">(.*?)</script>', text)[1])["rows"]
        assert [row["id"] for row in rows] == [json.loads(line)["id"] for line in file.read_text().splitlines()]
        opened = [row for row in rows if row["opening"]]
        assert bool(opened) == (file.parts[-3] == "controls")


@pytest.mark.parametrize(("stage", "model"), [("judge", "tiny"), ("measure", ""), ("figures", "")])
def test_a_notebook_run_by_hand_says_where_it_writes_and_changes_no_output(replica, stage, model):
    def contents():
        return {
            path: path.read_bytes()
            for name in ("data", "paper")
            for path in (replica / name).rglob("*.*")
            if path.is_file()
        }

    before = contents()
    done = run(replica, "--by-hand", stage, model)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"outputs go to {replica / 'scratch'}" in done.stdout
    assert contents() == before
    written = {
        path.relative_to(replica / "scratch").parts[:2] for path in (replica / "scratch").rglob("*") if path.is_file()
    }
    assert {"judge": ("data", "judge"), "measure": ("paper", "numbers"), "figures": ("paper", "figures")}[
        stage
    ] in written
