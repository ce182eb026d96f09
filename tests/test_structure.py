"""The house stays one that can be seen whole."""

import ast

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
