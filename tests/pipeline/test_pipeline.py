"""The whole study at scale smoke, in a clone: it runs, repeats to the byte, and re-runs what changed, no more."""

import json
from pathlib import Path

import pytest

from tests.pipeline.clones import edit, make_clone, repro, run, stages_run

RESTARTING = "smollm2-135m-selfcorrect"  # runs all experiments: data/models.yaml


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A clone, run once from end to end."""
    folder = make_clone(tmp_path_factory.mktemp("clone") / "esr")
    print(repro(folder))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    places = ("notebooks/executed", "paper/numbers", "paper/figures")
    files = [f for place in places for f in sorted((folder / place).iterdir())] + [folder / "paper/paper.pdf"]
    return {str(f.relative_to(folder)): f.read_bytes() for f in files}


def test_it_ends_with_notebooks_numbers_figures_and_a_paper(clone):
    numbers = json.loads((clone / "paper/numbers/esr.json").read_text())["smollm2-135m"]
    assert set(numbers) == {"unsteered", "steered"}
    for condition in numbers.values():
        for name in ("multi_attempt_rate", "improvement_rate", "esr_rate", "first_attempt_score"):
            assert set(condition[name]) == {"estimate", "low", "high", "n"}
    assert numbers["unsteered"]["n_trials"] == numbers["steered"]["n_trials"] > 0
    made = contents(clone)
    assert made["paper/paper.pdf"].startswith(b"%PDF")
    others = {"06_concepts", "10_organism"}  # for models without an SAE, and for those with shipped trainings
    notebooks = {f.stem for f in (clone / "notebooks").glob("[0-9][0-9]_*.ipynb")} - others
    assert {Path(n).name.split("-")[0].removesuffix(".ipynb") for n in made if n.endswith(".ipynb")} == notebooks
    assert all(b"</svg>" in content for name, content in made.items() if name.endswith(".svg"))


def test_responses_are_steered_and_paired(clone):
    rows = [json.loads(line) for line in (clone / "data/steer/smollm2-135m/responses.jsonl").read_text().splitlines()]
    conditions = {c: {(r["latent"], r["prompt_id"], r["seed"]): r for r in rows if r["condition"] == c}
                  for c in ("unsteered", "steered")}  # fmt: skip
    assert conditions["unsteered"].keys() == conditions["steered"].keys()
    assert all(r["boost"] == 0 for r in conditions["unsteered"].values())
    assert all(r["boost"] > 0 for r in conditions["steered"].values())
    assert any(r["text"] != conditions["unsteered"][k]["text"] for k, r in conditions["steered"].items())


def test_experiments_on_restarts_run_for_models_that_restart(clone):
    for stage in ("boost_sweep", "meta_prompts", "ablate", "activations", "controls"):
        assert [folder.name for folder in (clone / "data" / stage).iterdir() if folder.is_dir()] == [RESTARTING]
    folders = {folder.name for folder in (clone / "data/detectors").iterdir() if folder.is_dir()}
    assert folders == {"smollm2-135m", RESTARTING}


def test_afterwards_it_is_up_to_date(clone):
    assert "up to date" in run(clone, "dvc", "repro")


def test_judges_are_validated_and_responses_drawn_to_label(clone):
    """The commands of docs/models.md, section "Another judge"."""
    shown = run(clone, "esr", "judge", "validate", "--part", "report")
    assert "labelled responses" in shown and "restart_recall" in shown and "annotators" in shown
    sample = clone / "data/judge/sample.jsonl"
    before = sample.read_bytes()
    assert "4 responses added" in run(clone, "esr", "label", "draw", "--model", "smollm2-135m", "--per-condition", "2")
    assert sample.read_bytes().startswith(before)
    sample.write_bytes(before)


def test_executed_again_everything_is_the_same_to_the_byte(clone):
    """Kernels were forked the first time and are started now."""
    before = contents(clone)
    again = ["judge@smollm2-135m", "cross_judge", "measure", "figures", "power", "claims", "paper"]
    run(clone, "dvc", "repro", "--force", "--single-item", *again)
    assert contents(clone) == before


def test_a_changed_parameter_runs_what_depends_on_it_and_no_more(clone):
    edit(clone / "params.yaml", "confidence: 0.95", "confidence: 0.9")
    intervals = {
        "finetune", "boost_sweep", "meta_prompts", "detectors", "ablate", "activations", "controls",
        "cross_judge", "measure", "figures", "power", "claims", "paper",
    }  # fmt: skip
    assert stages_run(repro(clone)) == intervals
    edit(clone / "params.yaml", "confidence: 0.9", "confidence: 0.95")
    assert not {"fetch", "fetch_adapter", "latents", "calibrate", "steer", "judge"} & stages_run(repro(clone))


def finished(clone: Path) -> dict[Path, int]:
    """Chunks of generation and training, and when each was written."""
    return {c: c.stat().st_mtime_ns for c in (clone / ".cache/esr/chunks").rglob("*") if c.is_file()}


def test_finished_chunks_are_not_generated_again(clone):
    """Outputs gone, chunks there: as after a kill between generating and writing."""
    chunks, responses = finished(clone), clone / "data/steer/smollm2-135m/responses.jsonl"
    before = responses.read_bytes()
    run(clone, "dvc", "repro", "--force", "--single-item", "steer@smollm2-135m")
    assert responses.read_bytes() == before
    assert finished(clone) == chunks


def test_a_new_colour_and_a_new_sentence_generate_and_train_nothing(clone):
    chunks, before = finished(clone), contents(clone)
    edit(clone / "esr/reporting/figures/style.py", "#D55E00", "#D55E01")
    edit(clone / "esr/steering/trials.py", '"""', '"""A new sentence. ')
    edit(clone / "notebooks/08_steer.ipynb", "**Question.**", "**Question.** A new sentence.")
    ran = stages_run(repro(clone))
    after = contents(clone)
    assert finished(clone) == chunks
    assert {"steer", "figures"} <= ran and not {"train_sae", "fetch", "latents", "judge"} & ran
    assert {name for name in before if name.startswith("paper/numbers/") and before[name] != after[name]} == set()
    assert before["paper/figures/esr_by_model.svg"] != after["paper/figures/esr_by_model.svg"]


def test_dvc_shows_the_headline_and_the_figures(clone):
    shown = json.loads(run(clone, "dvc", "metrics", "show", "--json"))
    (headline,) = shown[""]["data"].values()
    assert set(headline["data"]["smollm2-135m"]["steered"]) == {"multi_attempt_rate", "esr_rate", "first_attempt_score"}
    run(clone, "dvc", "plots", "show", "--out", "plots")
    assert "esr_by_model" in (clone / "plots" / "index.html").read_text()


def test_a_mistake_in_params_is_one_sentence_before_any_model_loads(clone):
    edit(clone / "params.yaml", "temperature: 0.6", "temperature: warm")
    output = run(clone, "dvc", "repro", check=False)
    edit(clone / "params.yaml", "temperature: warm", "temperature: 0.6")
    assert "error: params.yaml: generation: temperature is 'warm'; it must be a valid number" in output
    assert "Traceback" not in output
