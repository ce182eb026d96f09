"""The playground's notebook: a parameters cell, a call and prose, outside the pipeline."""

import nbformat
import yaml
from papermill import inspect_notebook

from esr.paths import NOTEBOOKS, ROOT
from esr.playground.page import PARAMETERS

FILE = NOTEBOOKS / "playground.ipynb"


def test_it_holds_its_parameters_a_call_and_prose():
    cells = nbformat.read(FILE, as_version=4).cells
    assert [cell.id for cell in cells if cell.cell_type == "code"] == ["parameters", "page"]
    assert all(not cell.outputs and cell.execution_count is None for cell in cells if cell.cell_type == "code")
    declared = inspect_notebook(str(FILE))
    assert list(declared) == list(PARAMETERS)
    assert all(entry["help"] for entry in declared.values()), "a parameter has no meaning written"


def test_no_stage_depends_on_it():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].values()
    named = [path for stage in stages for path in stage.get("do", stage)["deps"]]
    assert not [path for path in named if "playground" in path]
