"""Notebooks: stripped, readable by themselves, parameters in step with params.yaml; the runner trusts no name."""

import ast
import re

import nbformat
import pytest
from papermill import inspect_notebook

from esr.config.params import STAGES
from esr.config.schema import ConfigError
from esr.config.stages import stage_parameters
from esr.pipeline import run
from esr.pipeline.run import check_names, normalize, notebook_path, stderr_of

SOURCES = {stage: notebook_path(stage) for stage in STAGES}


def read(stage):
    return nbformat.read(SOURCES[stage], as_version=4)


def code_cells(stage):
    return [cell for cell in read(stage).cells if cell.cell_type == "code"]


@pytest.mark.parametrize("stage", STAGES)
def test_source_is_stripped_and_short(stage):
    for cell in code_cells(stage):
        assert not cell.outputs and cell.execution_count is None
        if "parameters" not in cell.metadata.get("tags", []):  # of those there are as many as there are
            assert len(cell.source.splitlines()) <= 30, f"cell {cell.id} of {stage} is too long"
        python = "\n".join(line for line in cell.source.splitlines() if not line.startswith("%"))
        assert not any(isinstance(n, ast.FunctionDef | ast.ClassDef) for n in ast.walk(ast.parse(python)))
    ids = [cell.id for cell in read(stage).cells]
    assert len(set(ids)) == len(ids)
    assert not any(re.fullmatch(r"[0-9a-f]{8}", i) for i in ids), "cells have readable ids, which stay"


@pytest.mark.parametrize("stage", STAGES)
def test_defaults_are_those_of_params_yaml(stage):
    """Run from JupyterLab, untouched, a notebook does what `dvc repro` does."""
    declared = {name: ast.literal_eval(p["default"]) for name, p in inspect_notebook(str(SOURCES[stage])).items()}
    assert declared == stage_parameters(stage)
    assert all(p["help"] for p in inspect_notebook(str(SOURCES[stage])).values()), "a parameter has no meaning written"


@pytest.mark.parametrize("stage", STAGES)
def test_it_says_what_it_asks_reads_writes_and_learned(stage):
    text = "\n".join(cell.source for cell in read(stage).cells if cell.cell_type == "markdown")
    for mark in ("# ", "**Question.**", "**Reads**", "**Writes**", "**Takeaways.**"):
        assert mark in text


def test_unknown_parameters_are_refused_though_papermill_would_only_warn():
    with pytest.raises(ConfigError, match="no parameter 'temprature'"):
        check_names(SOURCES["steer"], stage_parameters("steer") | {"temprature": 0.6})
    with pytest.raises(ConfigError, match="declares the parameter 'seed'"):
        check_names(SOURCES["steer"], {k: v for k, v in stage_parameters("steer").items() if k != "seed"})


def test_executed_copies_hold_no_times_and_no_random_ids():
    notebook = read("fetch")
    notebook.metadata["papermill"] = {"start_time": "2026-01-01"}
    cell = notebook.cells[1]
    cell.metadata["tags"], cell.metadata["papermill"] = ["injected-parameters"], {"duration": 1.23}
    cell.id = "a1b2c3d4"
    warning = nbformat.v4.new_output("stream", name="stderr", text="/home/someone/site-packages: a warning")
    cell.outputs = [warning, nbformat.v4.new_output("stream", name="stdout", text="a result")]
    assert stderr_of(notebook) == [warning.text]
    bar = {"application/vnd.jupyter.widget-view+json": {"model_id": "a1b2c3d4"}, "text/plain": ["0/272"]}
    cell.outputs.append(nbformat.v4.new_output("display_data", bar))
    table = {
        "text/html": '<table id="T_1f2e3"><td id="T_1f2e3_row0">x</td>',
        "text/plain": ["<Styler at 0x7f38e89fc450>"],
    }
    cell.outputs.append(nbformat.v4.new_output("execute_result", {k: "".join(v) for k, v in table.items()}))
    text = nbformat.writes(normalize(notebook))
    assert "1f2e3" not in text and "7f38e89fc450" not in text and "T_0" in text
    assert "someone" not in text and "a result" in text
    assert "papermill" not in text and "a1b2c3d4" not in text and '"injected-parameters"' in text


@pytest.mark.parametrize("count", [0, 2])
def test_a_stage_has_one_notebook(tmp_path, monkeypatch, count):
    monkeypatch.setattr(run, "NOTEBOOKS", tmp_path)
    for i in range(count):
        (tmp_path / f"0{i}_steer.ipynb").touch()
    with pytest.raises(ConfigError, match=f"{count} notebooks named NN_steer.ipynb"):
        notebook_path("steer")
