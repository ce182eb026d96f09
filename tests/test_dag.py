"""dvc.yaml names what decides a stage's result: the rooms its notebook's code comes from, all of them and no others."""

import ast
import re
from pathlib import Path

import nbformat
import pytest
import yaml

from esr.paths import ROOT

WRITTEN = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
STAGES = {name: stage.get("do", stage) for name, stage in WRITTEN.items()}
PACKAGE = ROOT / "esr"


def file_of(module: str) -> Path | None:
    """The file of a module named below esr, such as `steering.trials`; None where there is none."""
    path = PACKAGE / module.replace(".", "/")
    return next((f for f in (path.with_suffix(".py"), path / "__init__.py") if f.exists()), None)


def imported(source: str) -> set[str]:
    """Modules below esr that `source` imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith("esr."):
            room = node.module.removeprefix("esr").lstrip(".")
            names = [f"{room}.{alias.name}".lstrip(".") for alias in node.names]
            found |= {name if file_of(name) else room for name in names}
    return found


def closure(source: str) -> set[str]:
    """Rooms (and modules beside them) that the code imports, directly or through what it imports."""
    seen, waiting = set(), imported(source)
    while waiting:
        module = waiting.pop()
        if module not in seen:
            seen.add(module)
            waiting |= imported(file_of(module).read_text())
    rooms = {module.split(".")[0] for module in seen}
    return {f"esr/{room}" if (PACKAGE / room).is_dir() else f"esr/{room}.py" for room in rooms}


def code_of(stage: str) -> str:
    notebooks = [dep for dep in STAGES[stage]["deps"] if dep.startswith("notebooks/")]
    if not notebooks:
        module = re.fullmatch(r"python -m esr\.([\w.]+)", STAGES[stage]["cmd"])[1]
        return f"from esr.{module.rpartition('.')[0]} import {module.rpartition('.')[2]}"
    cells = nbformat.read(ROOT / notebooks[0], as_version=4).cells
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    return "\n".join(line for line in code.splitlines() if not line.startswith("%"))


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_the_rooms_its_code_comes_from(stage):
    assert {dep for dep in STAGES[stage]["deps"] if dep.startswith("esr/")} == closure(code_of(stage))


def test_notebooks_are_numbered_in_the_order_of_the_dag():
    """A stage's notebook has a higher number than those of the stages whose outputs it reads."""
    number, writer = {}, {}
    for name, stage in STAGES.items():
        notebook = next((dep for dep in stage["deps"] if dep.startswith("notebooks/")), None)
        number[name] = int(Path(notebook).name[:2]) if notebook else 99
        for out in [*stage.get("outs", []), *stage.get("metrics", [])]:
            writer[re.sub(r"/\$\{.*", "", next(iter(out)) if isinstance(out, dict) else out)] = name
    fetches_a_result = {"fetch_adapter"}  # the same notebook once more, for the model that `finetune` made
    for name in STAGES.keys() - fetches_a_result:
        for dep in STAGES[name]["deps"]:
            source = writer.get(re.sub(r"/\$\{.*", "", dep))
            assert source is None or number[source] <= number[name], f"{name} reads what {source} writes"
