"""Every bad input of the table is refused in one clear sentence, before any weight is loaded."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
import transformers
from bad_inputs import BAD, MODEL, Bad, params, write_study

import esr.pipeline.plan
import esr.pipeline.preflight
from esr.config.registry import model_entry
from esr.models.fetch import FetchError, fetch_model
from esr.paths import ROOT, from_root
from esr.pipeline import cli
from esr.reporting.numbers import write_numbers
from tests.sae.releases import offline_cache

MAX_LENGTH = 700  # characters: paths of a temporary folder are long
RESULTS: dict[str, bool] = {}  # by row: whether it was refused clearly


@pytest.fixture(scope="module")
def right(tmp_path_factory) -> Path:
    """A study in which nothing is wrong."""
    root = tmp_path_factory.mktemp("study")
    write_study(root, ROOT)
    with pytest.MonkeyPatch.context() as patch:
        move(patch, root)
        cli.main(["select", MODEL])
    return root


@pytest.fixture
def study(right, tmp_path, monkeypatch) -> Path:
    """A copy of it with a cache of the hub's client, in which this process works; loading weights is an error."""
    root = tmp_path / "study"
    shutil.copytree(right, root)
    move(monkeypatch, root)
    offline_cache(root / "hub", monkeypatch)
    esr.pipeline.plan.parameters.cache_clear()

    def load(*_args, **_options):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", load)
    monkeypatch.setattr(safetensors.torch, "load_file", load)
    monkeypatch.setattr(torch, "load", load)
    return root


def move(patch: pytest.MonkeyPatch, root: Path) -> None:
    """Let every module of the package find the repository at `root`."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "esr":
            for attribute, value in vars(module).items():
                if isinstance(value, Path) and value.is_relative_to(ROOT):
                    patch.setattr(module, attribute, root / value.relative_to(ROOT))


def refusals(arguments: tuple[str, ...], capsys) -> list[str]:
    """What the command refuses: the sentence it ends with, or those in the table's last column. `fetch` is the stage's
    function, without its notebook."""
    if arguments[0] == "fetch":
        with pytest.raises(FetchError) as error:
            fetch_model(model_entry(MODEL), esr.pipeline.preflight.data_dir("fetch", MODEL))
        return [from_root(str(error.value))]
    with pytest.raises(SystemExit) as ended:
        cli.main(list(arguments))
    if isinstance(ended.value.code, str):
        return [ended.value.code]
    assert ended.value.code == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if re.search(r" {2,}\S", line)]
    return [cells[-1] for line in lines[1:] if (cells := re.split(r" {2,}", line))[-1] != "ok"]


@pytest.mark.parametrize("bad", BAD, ids=[bad.name for bad in BAD])
def test_a_bad_input_is_refused_in_one_sentence(bad: Bad, study, capsys):
    bad.spoil(study)
    capsys.readouterr()
    RESULTS[bad.name] = False
    (sentence,) = refusals(bad.command, capsys)
    assert str(study) not in sentence, "files are named from the repository's root"
    assert "\n" not in sentence and "Traceback" not in sentence and len(sentence) < MAX_LENGTH
    for word in bad.words:
        assert word in sentence, sentence
    RESULTS[bad.name] = True


def test_nothing_is_wrong_with_the_study_before_it_is_spoilt(study, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["check"])
    assert ended.value.code == 0
    assert len(re.findall(r"  ok$", capsys.readouterr().out, re.MULTILINE)) == 14


def test_names_of_rows_differ_and_there_are_enough():
    assert len({bad.name for bad in BAD}) == len(BAD) >= 60


def test_a_full_disk_is_refused(study, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(10, 10, 0))
    (sentence,) = refusals(("check",), capsys)
    assert "disk" in sentence and "make room" in sentence


def test_traceback_is_shown_on_request(study):
    params("scale", value="huge")(study)
    with pytest.raises(ValueError, match="scale is 'huge'"):
        cli.main(["check", MODEL, "--traceback"])


def test_a_failed_check_stops_the_stage(study):
    params("generation", "batch_size", value=10**9)(study)
    with pytest.raises(ValueError, match="memory with batches of 1000000000"):
        esr.pipeline.preflight.refuse(esr.pipeline.preflight.preflight(MODEL))


def test_committed_totals_are_those_of_the_table():
    """Rows that were refused clearly, of those tried; written when they differ."""
    if len(RESULTS) < len(BAD):
        pytest.skip("not all rows were run")
    totals = {"tried": len(BAD), "clear": sum(RESULTS.values())}
    path = ROOT / "paper" / "numbers" / "preflight.json"
    written = json.loads(path.read_text()).get("bad_input") if path.exists() else None
    if written != totals:
        write_numbers("preflight", totals, section="bad_input")
    assert written == totals, f"{path} is written anew: commit it"
