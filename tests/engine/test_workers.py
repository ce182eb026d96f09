"""Chunks run once, survive a kill, and come back in order."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from esr.engine import workers
from esr.engine.workers import Workers, split
from esr.paths import ROOT


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "CACHE", tmp_path)


def square(chunk, report):
    with open(chunk["log"], "a") as log:
        log.write(f"{chunk['n']}\n")
    if chunk["n"] < 0:
        raise ValueError("negative")
    report(1, chunk["n"])
    return str(chunk["n"] ** 2).encode()


def run(log, numbers, count):
    chunks = [{"n": n, "log": str(log)} for n in numbers]
    with Workers(count) as pool:
        files = pool.map(square, chunks, what="test", items=[1] * len(chunks), item="squares")
    return [file.read_bytes() for file in files]


@pytest.mark.parametrize("count", [0, 2])
def test_results_come_in_order_and_are_not_computed_twice(tmp_path, count):
    log = tmp_path / "log"
    assert run(log, [3, 1, 2], count) == [b"9", b"1", b"4"]
    assert run(log, [2, 3, 4], count) == [b"4", b"9", b"16"]
    assert sorted(log.read_text().split()) == ["1", "2", "3", "4"]


def test_closed_workers_are_gone_and_the_next_work_starts_new_ones(tmp_path):
    pool = Workers(1)
    ran = []
    for n in (1, 2):
        [file] = pool.map(where, [{"n": n}], what="test", items=[1], item="squares")
        ran.append(json.loads(file.read_bytes())[0])
        pool.close()
        with pytest.raises(ProcessLookupError):
            os.kill(ran[-1], 0)
    assert len({*ran, os.getpid()}) == 3


def where(chunk, report):
    report(1, 0)
    return json.dumps([os.getpid(), torch.get_num_threads()]).encode()


@pytest.mark.parametrize(("items", "here"), [(workers.FEW // 2, True), (workers.FEW // 2 + 1, False)])
def test_little_work_is_done_in_this_process_with_one_thread_as_workers_have(items, here, monkeypatch):
    monkeypatch.setenv("ESR_WORKERS", "2")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with Workers() as pool:
            files = pool.map(where, [{"n": 1}, {"n": 2}], what="test", items=[items] * 2, item="responses")
        ran = [json.loads(file.read_bytes()) for file in files]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert [process == os.getpid() for process, _ in ran] == [here, here]
    assert [threads for _, threads in ran] == [1, 1]


def test_little_work_starts_no_process(monkeypatch):
    """Not even multiprocessing's resource tracker, a child that a kernel waits for when it is told to end."""
    monkeypatch.setenv("ESR_WORKERS", "2")
    monkeypatch.setattr(workers.multiprocessing, "get_context", lambda method: pytest.fail(f"{method} of a process"))
    with Workers() as pool:
        pool.map(where, [{"n": 3}], what="test", items=[1], item="responses")


def test_an_error_ends_the_run_and_keeps_what_finished(tmp_path):
    log = tmp_path / "log"
    with pytest.raises(ValueError, match="negative"):
        run(log, [1, -1], 0)
    assert run(log, [1], 0) == [b"1"]
    assert log.read_text().split().count("1") == 1


KILLED = """
import os, signal, sys
from esr.engine.workers import Workers
import esr.engine.workers, pathlib
sys.path.insert(0, {tests!r})
import test_workers
esr.engine.workers.CACHE = pathlib.Path({cache!r})
def report_then_die(chunk, report):
    if chunk["n"] == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return test_workers.square(chunk, report)
report_then_die.__module__, report_then_die.__qualname__ = "test_workers", "square"
chunks = [{{"n": n, "log": {log!r}}} for n in (1, 2, 3, 4)]
Workers(0).map(report_then_die, chunks, what="test", items=[1] * 4, item="squares")
"""


def test_a_killed_run_resumes_without_repeating_a_finished_chunk(tmp_path):
    log = tmp_path / "log"
    script = KILLED.format(tests=os.path.dirname(__file__), cache=str(tmp_path), log=str(log))
    child = subprocess.run([sys.executable, "-c", script], check=False)
    assert child.returncode == -signal.SIGKILL
    square.__module__, before = "test_workers", square.__module__
    try:
        assert run(log, [1, 2, 3, 4], 0) == [b"1", b"4", b"9", b"16"]
    finally:
        square.__module__ = before
    assert log.read_text().split() == ["1", "2", "3", "4"]


def sleep_long(chunk, report):
    with open(chunk["pids"], "a") as file:
        file.write(f"{os.getpid()}\n")
    time.sleep(60)
    return b""


def test_workers_leave_when_their_parent_is_killed(tmp_path):
    pids = tmp_path / "pids"
    script = (
        f"import sys, pathlib; sys.path.insert(0, {os.path.dirname(__file__)!r})\n"
        "import esr.engine.workers, test_workers\n"
        f"esr.engine.workers.CACHE = pathlib.Path({str(tmp_path)!r})\n"
        "if __name__ == '__main__':\n"
        f"    chunks = [{{'n': n, 'pids': {str(pids)!r}}} for n in (1, 2)]\n"
        "    esr.engine.workers.Workers(2).map(test_workers.sleep_long, chunks, what='t', items=[1, 1], item='x')\n"
    )
    here = os.pathsep.join([os.path.dirname(__file__), str(ROOT)])
    file = tmp_path / "parent.py"
    file.write_text(script)
    parent = subprocess.Popen([sys.executable, str(file)], env=os.environ | {"PYTHONPATH": here})
    _until(lambda: pids.exists() and len(pids.read_text().split()) == 2, 60)
    children = [int(p) for p in pids.read_text().split()]
    parent.kill()
    parent.wait()
    _until(lambda: not any(_alive(pid) for pid in children), 15)


def _alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _until(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.2)


def test_split_is_even_and_whole():
    assert [len(part) for part in split(range(10), 4)] == [3, 4, 3] or [len(p) for p in split(range(10), 4)] == [
        3,
        3,
        4,
    ]
    assert [i for part in split(range(193), 96) for i in part] == list(range(193))
    assert max(len(part) for part in split(range(193), 96)) <= 96
    assert split([], 5) == []
