"""Hosts share chunks: the plan does not depend on their number, and none is lost, run twice or replaced silently."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from esr.engine import shards, workers
from esr.engine.shards import MERGE, SHARD, STORE, WAIT, Shard, ShardEnd, StoreError
from esr.engine.workers import Workers
from esr.paths import ROOT

NUMBERS = list(range(11))


@pytest.fixture(autouse=True)
def environment(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "CACHE", tmp_path / "cache")
    for name in (SHARD, WAIT, MERGE, STORE):
        monkeypatch.delenv(name, raising=False)


def square(chunk, report):
    with open(chunk["log"], "a") as log:
        log.write(f"{chunk['n']}\n")
    report(1, chunk["n"])
    return str(chunk["n"] ** 2).encode()


def run(log, count=0):
    chunks = [{"n": n, "log": str(log)} for n in NUMBERS]
    with Workers(count) as pool:
        files = pool.map(square, chunks, what="steer", items=[1] * len(chunks), item="squares")
    return [file.read_bytes() for file in files]


def run_shard(log, shard, monkeypatch, count=0):
    with monkeypatch.context() as patch:
        patch.setenv(SHARD, shard)
        return run(log, count)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_shards_give_the_files_of_one_run_and_run_each_chunk_once(n, tmp_path, monkeypatch):
    log = tmp_path / "log"
    for number in range(1, n):
        with pytest.raises(ShardEnd, match=rf"steer: shard {number}/{n} is finished; .* Run the stage again when"):
            run_shard(log, f"{number}/{n}", monkeypatch)
    assert run_shard(log, f"{n}/{n}", monkeypatch, count=2 if n == 2 else 0) == [str(k * k).encode() for k in NUMBERS]
    assert sorted(map(int, log.read_text().split())) == NUMBERS
    monkeypatch.setenv(MERGE, str(n))
    assert run(log) == [str(k * k).encode() for k in NUMBERS]


def test_a_chunk_belongs_to_one_shard():
    for n in (1, 2, 3, 5):
        owners = [[s for s in range(1, n + 1) if Shard(s, n).has(chunk)] for chunk in range(12)]
        assert all(len(owner) == 1 for owner in owners)


@pytest.mark.parametrize("wrong", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2", "1/2/3", ""])
def test_a_shard_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match="write its number and their count, from 1/5 to 5/5"):
        Shard.parse(wrong)


def test_a_merge_that_lacks_chunks_names_the_shards_that_have_to_run(tmp_path, monkeypatch):
    with pytest.raises(ShardEnd):
        run_shard(tmp_path / "log", "2/3", monkeypatch)
    monkeypatch.setenv(MERGE, "3")
    with pytest.raises(ValueError, match="steer: 7 of 11 chunks are missing: run --shard 1/3, --shard 3/3 again"):
        run(tmp_path / "log")


KILLED = """
import os, signal, sys, pathlib
sys.path.insert(0, {tests!r})
import esr.engine.workers, test_shards
esr.engine.workers.CACHE = pathlib.Path({cache!r})
def die(chunk, report):
    if chunk["n"] == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return test_shards.square(chunk, report)
die.__qualname__ = "square"
chunks = [{{"n": n, "log": {log!r}}} for n in test_shards.NUMBERS]
esr.engine.workers.Workers(0).map(die, chunks, what="steer", items=[1] * len(chunks), item="squares")
"""


def test_a_killed_shard_resumes_and_a_duplicated_one_does_nothing(tmp_path, monkeypatch):
    log, cache = tmp_path / "log", tmp_path / "cache"
    script = KILLED.format(tests=os.path.dirname(__file__), cache=str(cache), log=str(log))
    child = subprocess.run([sys.executable, "-c", script], env=os.environ | {SHARD: "2/2", "PYTHONPATH": str(ROOT)})
    assert child.returncode == -signal.SIGKILL
    for shard in ("2/2", "2/2"):
        with pytest.raises(ShardEnd):
            run_shard(log, shard, monkeypatch)
    assert run_shard(log, "1/2", monkeypatch) == [str(k * k).encode() for k in NUMBERS]
    assert sorted(map(int, log.read_text().split())) == NUMBERS


def test_a_waiting_shard_goes_on_when_the_others_have_finished(tmp_path, monkeypatch):
    log, before = tmp_path / "log", os.environ.copy()
    monkeypatch.setenv(WAIT, "60")
    monkeypatch.setattr(shards, "POLL_S", 0.01)

    def other_host(_seconds):
        os.environ[SHARD], os.environ[WAIT] = "2/2", "0"
        try:
            run(log)
        finally:
            os.environ[SHARD], os.environ[WAIT] = "1/2", "60"

    monkeypatch.setattr(shards.time, "sleep", other_host)
    assert run_shard(log, "1/2", monkeypatch) == [str(k * k).encode() for k in NUMBERS]
    assert sorted(map(int, log.read_text().split())) == NUMBERS and SHARD not in before


def use_store(tmp_path, monkeypatch, host):
    monkeypatch.setenv(STORE, f"file://{tmp_path}/store")
    monkeypatch.setattr(workers, "CACHE", tmp_path / host)


@pytest.mark.parametrize("count", [0, 1])
def test_hosts_without_a_common_folder_find_each_others_chunks_in_a_store(tmp_path, monkeypatch, count):
    log = tmp_path / "log"
    use_store(tmp_path, monkeypatch, "host-1")
    with pytest.raises(ShardEnd):
        run_shard(log, "1/2", monkeypatch, count)
    use_store(tmp_path, monkeypatch, "host-2")
    assert run_shard(log, "2/2", monkeypatch, count) == [str(k * k).encode() for k in NUMBERS]
    assert sorted(map(int, log.read_text().split())) == NUMBERS
    assert not list(Path(tmp_path / "store").rglob("*partial*"))


def test_another_result_of_the_same_chunk_is_refused(tmp_path, monkeypatch):
    use_store(tmp_path, monkeypatch, "host-1")
    path = tmp_path / "host-1" / "chunks" / "square" / "abc"
    shards.keep(path, b"1", tmp_path / "host-1")
    shards.keep(path, b"1", tmp_path / "host-1")
    with pytest.raises(StoreError, match="has other content than .*, from the same inputs"):
        shards.keep(path, b"2", tmp_path / "host-1")
