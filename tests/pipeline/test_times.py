"""Times of stages: the longest run with the same parameters counts, until the parameters change."""

import json

import pytest

from esr import paths
from esr.pipeline import times


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(times, "FILE", tmp_path / "cache" / "times.json")
    monkeypatch.setattr(paths, "NUMBERS", tmp_path / "numbers")
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(times, "stage_parameters", lambda stage, model: NOW[stage, model])


NOW: dict = {("steer", "a"): {"seed": 1}, ("steer", "b"): {"seed": 1}, ("measure", None): {}}  # parameters of each run


def test_a_repeat_from_finished_chunks_does_not_hide_the_first_run(monkeypatch):
    times.record("steer", "a", {"seed": 1}, 100.04)
    times.record("steer", "a", {"seed": 1}, 3.0)
    times.record("steer", "b", {"seed": 1}, 7.0)
    times.record("measure", None, {}, 12.0)
    assert times.summary()["seconds"] == {"steer": {"a": 100.0, "b": 7.0}, "measure": {"": 12.0}}
    times.record("steer", "a", {"seed": 2}, 5.0)
    assert times.summary()["seconds"]["steer"] == {"b": 7.0}  # with other parameters than those of now
    monkeypatch.setitem(NOW, ("steer", "a"), {"seed": 2})
    assert times.summary()["seconds"]["steer"]["a"] == 5.0


def test_it_is_written_with_the_machine_and_the_scale(capsys):
    assert times.main() == 1 and "no stage has run here yet" in capsys.readouterr().err
    times.record("steer", "a", {"seed": 1}, 90.0)
    times.record("measure", None, {}, 30.0)
    assert times.main() == 0 and "2 stages, 2 min together" in capsys.readouterr().out
    written = json.loads((paths.NUMBERS / "times.json").read_text())
    assert written["machine"]["cores"] > 0 and written["scale"] and written["seconds"]["steer"] == {"a": 90.0}
