"""One word for one thing, the field's: names in code, parameters and files keep to this vocabulary."""

import ast
import json
import re
from pathlib import Path

import nbformat
import pytest
import yaml

from esr.paths import ROOT

# Each word and the one that stands for it
INSTEAD = {
    "answer": "response", "answers": "responses", "answered": "replied", "ask": "prompt", "asked": "prompt",
    "told": "targets", "said": "user_message", "beginning": "opening", "beginnings": "openings", "begun": "started",
    "push": "steering vector", "pushes": "vectors", "pushed": "steered", "readout": "latent subset",
    "reading": "activations", "readings": "activations", "reader": "annotator", "readers": "annotators",
    "gold": "annotated", "stretch": "span", "stretches": "spans", "ordinary": "plain", "usual": "non_outlier",
    "least": "min", "most": "max", "low": "min, or the end of an interval", "high": "max, or the end of an interval",
    "warm": "warmup", "resamples": "n_bootstrap", "level": "confidence", "levels": "offsets", "alpha": "confidence",
    "gap": "difference", "gaps": "differences", "studies": "simulations", "evidence": "lookup",
    "contrast": "effect", "contrasts": "effects", "comparison": "say of what", "comparisons": "say of what",
    "own": "say whose", "such": "say which", "corrected": "selfcorrect",
}  # fmt: skip
# As PEFT names it; the ends of an Estimate's interval; DVC's flag of an output
ALLOWED = {"lora_alpha", "low", "high", "push"}
CODE = [
    *sorted((ROOT / "esr").rglob("*.py")),
    *sorted((ROOT / "benchmarks").glob("*.py")),
    *sorted((ROOT / "tests").rglob("*.py")),
    *sorted((ROOT / "notebooks").glob("*.ipynb")),
    *sorted((ROOT / "benchmarks").glob("*.ipynb")),
]


def source_of(path: Path) -> str:
    if path.suffix == ".py":
        return path.read_text(encoding="utf-8")
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    return "\n".join(line for cell in cells for line in cell.splitlines() if not line.startswith("%"))


def defined_names(source: str) -> set[str]:
    """Modules, functions, classes, arguments, variables and fields that the code names itself."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.id if isinstance(node, ast.Name) else node.attr)
    return names


def keys_of(value) -> set[str]:
    if isinstance(value, dict):
        return set(value).union(*map(keys_of, value.values()))
    return set().union(*map(keys_of, value)) if isinstance(value, list) else set()


def foreign(names: set[str]) -> dict[str, str]:
    """Names with a word of `INSTEAD`, and the word that stands for it."""
    found = {}
    for name in {name for name in names if name.isidentifier()} - ALLOWED:
        for word in re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()):
            if word in INSTEAD:
                found[name] = INSTEAD[word]
    return found


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_code_uses_the_fields_words(path):
    assert foreign(defined_names(source_of(path)) | {path.stem}) == {}


def test_parameters_and_registry_use_the_fields_words():
    for name in ("params.yaml", "data/models.yaml", "dvc.yaml"):
        assert foreign(keys_of(yaml.safe_load((ROOT / name).read_text()))) == {}


def test_files_use_the_fields_words():
    files = [*(ROOT / "paper" / "numbers").glob("*.json"), *(ROOT / "data" / "train_sae").rglob("training.json")]
    for file in files:
        assert foreign(keys_of(json.loads(file.read_text()))) == {}, file.name
    for rows in ROOT.glob("data/judge/*.jsonl"):
        assert foreign(keys_of([json.loads(line) for line in rows.read_text().splitlines()])) == {}, rows.name
