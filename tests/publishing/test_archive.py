"""The study's data has two homes: an archive whose every file is checked, and a DVC remote. Both give it back."""

import gzip
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml

from esr.paths import ROOT
from esr.publishing import archive
from esr.publishing.readme import archive_table
from tests.pipeline.clones import run
from tests.publishing.sample import MODEL, sampled, write_stage

CARD = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
RECIPES = [block.splitlines() for block in re.findall(r"```bash\n(.*?)```", CARD, re.DOTALL)]
OUTS = {f"data/{stage}/{MODEL}": {"push": stage != "fetch"} for stage in ("fetch", "steer", "judge", "ablate")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A repository with the outputs of four stages, in git and DVC as a finished study's are."""
    root = tmp_path_factory.mktemp("finished") / "study"
    write_stage(root / "data", sampled(30))
    write_stage(root / "data", sampled(5), "ablate")
    (root / "data/fetch" / MODEL).mkdir(parents=True)
    (root / "data/fetch" / MODEL / "model.safetensors").write_bytes(b"weights")
    stages = {Path(out).parts[1]: {"cmd": "true", "outs": [{out: flags}]} for out, flags in OUTS.items()}
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    git(root, "init", "-q")
    dvc(root, "init", "-q")
    dvc(root, "commit", "-q", "--force")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "study")
    return root


@pytest.fixture
def study(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "study")


def git(root, *arguments):
    settings = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *settings, *arguments], cwd=root, check=True)


def dvc(root, *arguments):
    return run(root, sys.executable, "-m", "dvc", *arguments)


def contents(root, *stages):
    files = [f for stage in stages for f in (root / "data" / stage).rglob("*.*") if f.name != ".gitignore"]
    return {f.relative_to(root).as_posix(): f.read_bytes() for f in files}


def repacked(file, target, change):
    """The archive with its members changed by `change`, a function of a dict of names and bytes."""
    with tarfile.open(file) as tar:
        members = {m.name: tar.extractfile(m).read() for m in tar}
    change(members)
    with gzip.open(target, "wb") as packed, tarfile.open(fileobj=packed, mode="w") as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return target


def test_the_archive_gives_everything_back_but_the_models(study, tmp_path):
    card = archive.make(study, tmp_path / "dist")
    expected = contents(study, "steer", "judge", "ablate")
    assert archive.unpack(tmp_path / "new", tmp_path / "dist" / archive.NAME) == len(expected) == 4
    assert contents(tmp_path / "new", "steer", "judge", "ablate", "fetch") == expected
    assert json.loads((study / "data/archive.json").read_text()) == card
    assert {name: entry["files"] for name, entry in card["stages"].items()} == {"ablate": 2, "judge": 1, "steer": 1}
    assert sum(entry["bytes"] for entry in card["stages"].values()) == sum(map(len, expected.values()))


def test_equal_outputs_give_an_equal_archive(study, tmp_path):
    first = archive.make(study, tmp_path / "one")
    for file in (study / "data").rglob("*.jsonl"):
        file.touch()
    assert archive.make(study, tmp_path / "two") == first
    assert (tmp_path / "one" / archive.NAME).read_bytes() == (tmp_path / "two" / archive.NAME).read_bytes()


@pytest.mark.parametrize("cached", [True, False])
def test_outputs_other_than_in_the_lock_are_refused(study, tmp_path, cached):
    if not cached:  # as after unpacking: DVC itself then says only that they are not in its cache
        shutil.rmtree(study / ".dvc/cache")
        archive.make(study, tmp_path)
        (tmp_path / archive.NAME).unlink()
    file = study / f"data/steer/{MODEL}/responses.jsonl"
    text = file.read_text()
    file.unlink()
    file.write_text(text.replace("fire", "ice"))
    shutil.rmtree(study / "data/ablate")
    with pytest.raises(archive.ArchiveError, match=f"data/ablate/{MODEL}, data/steer/{MODEL}: missing, or not as"):
        archive.make(study, tmp_path)
    assert not (tmp_path / archive.NAME).exists()


def damage(members):
    name = f"data/steer/{MODEL}/responses.jsonl"
    members[name] = members[name].replace(b"fire", b"ice!")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (damage, "responses.jsonl is damaged"),
        (lambda members: members.pop(f"data/judge/{MODEL}/judgements.jsonl"), "judgements.jsonl is damaged, missing"),
        (lambda members: members.update({"data/more": b"x"}), "data/more is damaged, missing or not in the manifest"),
        (lambda members: members.update({"esr/paths.py": b"x"}), "esr/paths.py, which is not below data"),
        (lambda members: members.update({"data/../x": b"x"}), "x, which is not below data"),
        (lambda members: members.pop("MANIFEST.json"), "is damaged, missing or not in the manifest"),
    ],
)
def test_a_damaged_archive_writes_nothing(study, tmp_path, change, message):
    archive.make(study, tmp_path)
    bad = repacked(tmp_path / archive.NAME, tmp_path / "bad.tar.gz", change)
    with pytest.raises(archive.ArchiveError, match=message):
        archive.unpack(tmp_path / "new", bad)
    assert not (tmp_path / "new").exists()


def test_an_archive_of_another_version_or_cut_off_is_refused(study, tmp_path):
    archive.make(study, tmp_path)
    whole = (tmp_path / archive.NAME).read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(archive.ArchiveError, match="is not the archive of data/archive.json"):
        archive.unpack(study, tmp_path / "cut.tar.gz")
    with pytest.raises(archive.ArchiveError, match="is not a whole archive"):
        archive.unpack(tmp_path / "new", tmp_path / "cut.tar.gz")
    with pytest.raises(archive.ArchiveError, match="does not exist: download it"):
        archive.unpack(study, tmp_path / "none.tar.gz")


def test_the_data_card_says_what_the_archive_holds(study, tmp_path, monkeypatch):
    monkeypatch.setattr("esr.paths.DATA", study / "data")
    assert "make archive" in archive_table(None)
    card = archive.make(study, tmp_path)
    size = card["stages"]["steer"]["bytes"] / 1e6
    assert card["sha256"] in archive_table(None) and f"| steer | 1 | {size:.1f} |" in archive_table(None)


def test_the_recipes_of_the_data_card_bring_the_data_into_a_clone(study, tmp_path):
    """Word by word, but for the place of the remote."""
    (unpack,), (add, upload, download) = RECIPES
    expected = contents(study, "steer", "judge", "ablate")
    for line in (add, upload):
        follow(study, line.replace("REMOTE", str(tmp_path / "store")))
    git(study, "commit", "-qam", "remote")
    git(tmp_path, "clone", "-q", str(study), "clone")
    assert contents(tmp_path / "clone", "steer", "judge", "ablate") == {}
    follow(tmp_path / "clone", download)
    assert contents(tmp_path / "clone", "steer", "judge", "ablate", "fetch") == expected
    archive.make(study, tmp_path / "elsewhere")
    assert unpack.split()[-1] == archive.NAME
    follow(tmp_path / "elsewhere", unpack, ESR_ROOT=str(tmp_path / "elsewhere"))
    assert contents(tmp_path / "elsewhere", "steer", "judge", "ablate", "fetch") == expected


def follow(folder, line, **variables):
    words = line.partition("#")[0].split()
    command = [sys.executable, "-m", "dvc", *words[1:]] if words[0] == "dvc" else [sys.executable, *words[1:]]
    environment = {"PYTHONPATH": str(ROOT)} | variables
    environment |= {name: value for name, value in os.environ.items() if name not in environment}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_models_are_in_no_remote_and_everything_else_is():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    for stage in (written.get("do", written) for written in stages.values()):
        for out in [*stage.get("outs", []), *stage.get("metrics", [])]:
            name, flags = next(iter(out.items())) if isinstance(out, dict) else (out, {})
            assert flags.get("push", True) == (not name.startswith("data/fetch/"))
