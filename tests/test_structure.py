"""The house stays one that can be seen whole."""

import ast
import re
from importlib.metadata import version

import pytest

from esr.paths import ROOT

MODULES = sorted((ROOT / "esr").rglob("*.py"))


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_is_short_and_says_what_it_is(module):
    source = module.read_text()
    assert len(source.splitlines()) <= 300
    assert module == ROOT / "esr" / "__init__.py" or ast.get_docstring(ast.parse(source))


def test_few_modules_stand_beside_the_packages():
    assert len([path for path in (ROOT / "esr").glob("*.py") if path.name != "__init__.py"]) <= 4


def test_a_function_can_be_seen_whole():
    functions = [
        (node.end_lineno - node.lineno + 1, f"{module.relative_to(ROOT)}: {node.name}")
        for module in MODULES
        for node in ast.walk(ast.parse(module.read_text()))
        if isinstance(node, ast.FunctionDef)
    ]
    assert [function for function in functions if function[0] > 60] == []


@pytest.mark.parametrize(
    ("module", "private", "library"),
    [
        ("judging/trees.py", r"\._(predictors|baseline_prediction)\b", "scikit-learn"),
        ("engine/linear.py", r"torch\.ops\.mkldnn\._", "torch"),
    ],
)
def test_a_private_interface_is_used_by_one_module_that_names_the_version_it_was_checked_with(module, private, library):
    users = [str(path.relative_to(ROOT / "esr")) for path in MODULES if re.search(private, path.read_text())]
    checked = re.search(rf"Checked\s+with {library} ([\d.]*\d)", (ROOT / "esr" / module).read_text())
    assert users == [module]
    assert version(library).startswith(checked[1] + "."), f"check esr/{module} with {library} {version(library)}"
