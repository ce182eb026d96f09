"""pyproject.toml, environment.yml and requirements.lock describe one environment."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from ruamel.yaml import YAML

from esr.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONDA = YAML(typ="safe", pure=True).load((ROOT / "environment.yml").read_text())["dependencies"]
EXTRAS = PROJECT["optional-dependencies"]
DIRECT = [*PROJECT["dependencies"], *EXTRAS["judges"], *EXTRAS["dev"]]
LOCK = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]


def pins(lines: list[str]) -> dict[str, str]:
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}


def test_conda_gives_the_packages_of_pyproject():
    (pip,) = [part["pip"] for part in CONDA if isinstance(part, dict)]
    assert sorted(pip) == sorted(DIRECT)
    assert f"python{PROJECT['requires-python']}" in CONDA
    assert "pip" in CONDA


@pytest.mark.parametrize("requirement", DIRECT)
def test_lock_satisfies_pyproject(requirement):
    requirement = Requirement(requirement)
    assert requirement.specifier.contains(pins(LOCK)[canonicalize_name(requirement.name)])


def test_lock_pins_every_package_once_and_names_no_build():
    assert all(
        re.fullmatch(r"[\w.-]+==[\w.!]+", line) for line in LOCK
    )  # a local version (+cpu) exists on one index only
    assert len(pins(LOCK)) == len(LOCK)
    assert all(Version(version) for version in pins(LOCK).values())
    assert not {"esr", "pip"} & set(pins(LOCK))


def test_every_import_of_the_package_is_a_direct_dependency():
    provided = packages_distributions()
    needed = [*PROJECT["dependencies"], *EXTRAS["judges"]]
    direct = {canonicalize_name(Requirement(line).name) for line in needed}
    of_vllm = {"vllm", "vllm_lens"}  # in the environment of vllm-requirements.txt, where this module runs
    for module in sorted((ROOT / "esr").rglob("*.py")):
        for node in ast.walk(ast.parse(module.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            others = of_vllm if module == ROOT / "esr/engine/vllm/server.py" else set()
            for top in {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"esr"} - others:
                assert direct & set(map(canonicalize_name, provided.get(top, []))), f"{module.name} imports {top}"


def test_the_tests_run_on_a_python_that_is_stated_as_tested():
    version = "{}.{}".format(*sys.version_info)
    assert f"Programming Language :: Python :: {version}" in PROJECT["classifiers"]
