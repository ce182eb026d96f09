"""`esr select` writes two files and nothing else in them."""

import shutil
import sys
from pathlib import Path

import pytest
import yaml

from esr.config import stages, study
from esr.paths import ROOT
from esr.pipeline import cli

BASE, TUNED = "smollm2-135m", "smollm2-135m-selfcorrect"


@pytest.fixture
def params(tmp_path, monkeypatch) -> Path:
    """A copy of params.yaml; data/study.yaml is written beside it."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.setattr(stages, "PARAMS", tmp_path / "params.yaml")
    monkeypatch.setattr(study, "STUDY", tmp_path / "study.yaml")
    return tmp_path / "params.yaml"


def test_select_changes_one_line_of_the_parameters(params):
    cli.main(["select", BASE])
    before, after = (ROOT / "params.yaml").read_text().splitlines(), params.read_text().splitlines()
    assert len(before) == len(after)
    ((old, new),) = [pair for pair in zip(before, after, strict=True) if pair[0] != pair[1]]
    assert old.startswith("models: [") and new.startswith(f"models: [{BASE}]")
    assert old.partition("#")[2] == new.partition("#")[2] != ""
    assert list(yaml.safe_load((params.parent / "study.yaml").read_text())["study"]["models"]) == [BASE]
    assert (params.parent / "study.yaml").read_text().startswith("# Written by `esr select`")


def test_select_without_models_writes_the_study_of_the_parameters(params):
    cli.main(["select"])
    assert params.read_bytes() == (ROOT / "params.yaml").read_bytes()
    assert (params.parent / "study.yaml").read_bytes() == (ROOT / "data" / "study.yaml").read_bytes()


@pytest.mark.parametrize("written", ["models: smollm2-135m", "models:\n  - smollm2-135m # the base", "models:"])
def test_select_replaces_models_however_they_are_written(params, written):
    lines = params.read_text().splitlines()
    lines[next(i for i, line in enumerate(lines) if line.startswith("models:"))] = written
    params.write_text("\n".join(lines) + "\n")
    cli.main(["select", BASE, TUNED])
    assert yaml.safe_load(params.read_text())["models"] == [BASE, TUNED]
    assert params.read_text().count("#") >= (ROOT / "params.yaml").read_text().count("#") - 2


def test_a_refused_selection_writes_nothing(params, capsys):
    with pytest.raises(SystemExit, match="did you mean 'smollm2-135m'"):
        cli.main(["select", "smollm2-135"])
    assert params.read_bytes() == (ROOT / "params.yaml").read_bytes()
    assert not (params.parent / "study.yaml").exists()


def test_the_command_starts_without_heavy_imports():
    """`esr select` answers at once."""
    import subprocess

    code = "import sys, esr.pipeline.cli; print([m for m in ('torch', 'transformers', 'pandas') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert run.stdout.strip() == "[]"
