"""A notebook that is run by hand writes to the scratch folder, never over what the pipeline made."""

import json

import pytest
from matplotlib.figure import Figure

from esr import paths
from esr.config.stages import notebook_parameters, stage_parameters
from esr.reporting import figures
from esr.reporting.numbers import read_numbers, write_numbers


@pytest.fixture
def results(tmp_path, monkeypatch):
    """A repository with results of the pipeline: its files and their bytes."""
    places = {"DATA": "data", "NUMBERS": "paper/numbers", "FIGURES": "paper/figures", "SCRATCH": "scratch"}
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    for name, place in places.items():
        monkeypatch.setattr(paths, name, tmp_path / place)
    for name in ("data/steer/tiny/responses.jsonl", "paper/numbers/esr.json", "paper/figures/esr.svg"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(json.dumps({"tiny": {"made by": "the pipeline"}}))
    return tmp_path


def contents(root):
    files = [file for place in ("data", "paper") for file in sorted((root / place).rglob("*")) if file.is_file()]
    return {str(file.relative_to(root)): file.read_bytes() for file in files}


def write_everything():
    folder = paths.output_dir("steer", "tiny")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "responses.jsonl").write_text("by hand")
    write_numbers("esr", {"made by": "hand"}, section="tiny")
    write_numbers("new", {"made by": "hand"})
    figures.save(Figure(), "esr")


def test_run_by_hand_nothing_of_the_pipeline_is_overwritten(results, monkeypatch):
    monkeypatch.delenv(paths.PIPELINE)
    notebook_parameters("steer", stage_parameters("steer"))
    before = contents(results)
    write_everything()
    assert contents(results) == before
    written = {str(file.relative_to(results / "scratch")) for file in (results / "scratch").rglob("*.*")}
    assert written == {
        "data/steer/tiny/responses.jsonl", "paper/numbers/esr.json", "paper/numbers/new.json", "paper/figures/esr.svg",
    }  # fmt: skip
    assert read_numbers("esr") == {"tiny": {"made by": "the pipeline"}}, "what is read is what the pipeline made"


def test_in_the_pipeline_results_are_in_their_places(results):
    write_everything()
    assert not (results / "scratch").exists()
    assert read_numbers("esr") == {"tiny": {"made by": "hand"}} and read_numbers("new") == {"made by": "hand"}
    assert (results / "data/steer/tiny/responses.jsonl").read_text() == "by hand"
    assert (results / "paper/figures/esr.svg").read_text().rstrip().endswith("</svg>")


def test_where_outputs_go_is_printed_when_run_by_hand(monkeypatch, capsys):
    values = stage_parameters("steer")
    notebook_parameters("steer", values)
    assert capsys.readouterr().out == ""
    monkeypatch.delenv(paths.PIPELINE)
    notebook_parameters("steer", values)
    assert str(paths.SCRATCH) in capsys.readouterr().out
