"""The playground without a browser: what it calls steered is steered, and the pipeline makes the same of it."""

import json
import re

import pytest

from tests.playground.repository import make_study, run
from tests.playground.study import LABELS, THRESHOLD


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    root = make_study(tmp_path_factory.mktemp("playground"))
    return json.loads(run(root, "-m", "tests.playground.scenario").splitlines()[-1])


def test_responses_grow_by_a_token_in_turns_and_differ(done):
    assert done["steps"]["counts"] == [[n, n] for n in range(1, 21)]
    assert done["steps"]["plain"] != done["steps"]["edited"]


def test_the_guard_saw_the_edit_from_the_first_token_on(done):
    assert all(done["steps"]["seen"])
    assert done["unedited"] == {"edited": None, "seen": False}


def test_the_pipeline_makes_the_same_tokens_and_ids(done):
    assert done["steps"]["difference"] == ["", ""]
    assert done["steps"]["conditions"] == ["unsteered", "steered, detectors ablated"]


def test_stop_ends_at_the_next_token_and_what_was_shown_is_the_opening_of_the_pipelines(done):
    assert done["stopped"] == {"tokens": [3, 3], "difference": ["", ""]}


def test_the_exported_code_prints_the_same_tokens(done):
    assert done["pasted"]["printed"] == [True, True]


def test_activations_are_by_token_and_latent(done):
    assert done["steps"]["activations"] == [[20, 2], [20, 2]]


def test_latents_are_found_by_label_with_contexts_and_threshold(done):
    page = done["pressed"]
    assert page["listed"] == [8] and page["chosen"] == 8
    assert "<script" not in page["contexts"] and "&lt;script&gt;" in page["contexts"]
    assert "No calibrated threshold" in page["unmarked"]
    assert f"threshold {THRESHOLD:.2f}" in page["marked"]


def test_both_responses_are_shown_and_the_edited_one_says_with_what(done):
    page = done["pressed"]
    assert ">Unsteered<" in page["plain"] and "12 tokens" in page["plain"]
    assert f"Steered with “{LABELS[3]}” (3), boost 0.4" in page["edited"] and "guard saw" in page["edited"]
    assert "Done: 24 tokens" in page["status"] and "not scored" in page["status"]
    assert "latent 3 “snow”" in page["key"]
    assert "The pipeline made the same tokens." in page["checked"]


def test_a_surprise_shows_a_saved_restart_and_sets_the_controls(done):
    page = done["pressed"]
    assert "⟲ Wait, let me start over." in re.sub(r"<[^>]+>", "", page["surprise"])
    assert re.findall(r"attempt \d · score \d+", page["surprise"]) == ["attempt 1 · score 5", "attempt 2 · score 70"]
    assert (page["boost"], page["seed"], page["latent"]) == (0.375, 77, 8)


def test_a_response_without_its_edit_is_never_called_steered(done):
    assert "Steering check failed at layer 1" in done["broken"]["message"]
    assert "Steered" not in done["broken"]["edited"] and "No response" in done["broken"]["edited"]


def test_what_cannot_be_done_is_a_sentence(done):
    assert "has latents 0 to 767, and no latent 9999" in done["pressed"]["no_latent"]
    assert "The prompt is empty" in done["pressed"]["empty"]
    assert "Run the cell with the parameters first" in done["refused"]["order"]
    assert "it sets seed." in done["refused"]["part"]
    assert "seed is &#x27;x&#x27;" in done["refused"]["kind"]
    assert "Unknown model &#x27;tinny&#x27;" in done["refused"]["unknown"]
    assert "run `dvc repro corpus` first" in done["refused"]["norms"] and done["refused"]["run"]


def test_what_the_study_has_not_made_is_named(done):
    stages = ("calibrate", "detectors", "judge")
    notes = done["refused"]["missing"]
    assert all(f"`dvc repro {stage}@tiny` makes it." in note for stage, note in zip(stages, notes, strict=True))
