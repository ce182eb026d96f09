import json
import os
import subprocess
import sys

import numpy as np
import pytest

from esr import paths
from esr.reporting import drift, numbers, tables
from esr.statistics.estimates import Estimate

REPOSITORY = paths.ROOT


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setattr(paths, "NUMBERS", tmp_path / "paper" / "numbers")
    return tmp_path


def estimate(value, low, high, n=100):
    return Estimate(value, low, high, n)


def commit(root):
    git = ["git", "-C", str(root), "-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    if not (root / ".git").exists():
        subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "-A"], check=True)
    subprocess.run([*git, "commit", "-q", "--no-verify", "-m", "numbers"], check=True)


def test_six_digits_and_plain_values(root):
    numbers.write_numbers("sae", {"l0": 1 / 3, "n": np.int64(7), "big": 123456789.0, "list": np.array([0.1234567])})
    text = (root / "paper/numbers/sae.json").read_text()
    assert json.loads(text) == {"l0": 0.333333, "n": 7, "big": 123457000.0, "list": [0.123457]}
    assert list(json.loads(text)) == ["l0", "n", "big", "list"] and text.endswith("}\n")


def test_not_a_number_is_refused_with_its_key_and_the_file_stays(root):
    numbers.write_numbers("esr", {"a": 1})
    with pytest.raises(ValueError, match="esr.tiny.steered.rate is nan"):
        numbers.write_numbers("esr", {"steered": {"rate": float("nan")}}, section="tiny")
    assert numbers.read_numbers("esr") == {"a": 1}


def test_a_section_leaves_the_others_alone_and_order_does_not_matter(root):
    numbers.write_numbers("sae", {"l0": 1}, section="b")
    numbers.write_numbers("sae", {"l0": 2}, section="a")
    numbers.write_numbers("sae", {"l0": 3}, section="b")
    assert list(numbers.read_numbers("sae").items()) == [("a", {"l0": 2}), ("b", {"l0": 3})]


WRITER = """
import sys
from esr.reporting import numbers
for value in range(20):
    numbers.write_numbers("sae", {"value": value}, section=sys.argv[1])
"""


def test_writers_at_the_same_time_lose_nothing(root):
    environment = {**os.environ, "ESR_ROOT": str(root), "PYTHONPATH": str(REPOSITORY)}
    names = [f"model-{i}" for i in range(4)]
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, name], env=environment) for name in names]
    assert [writer.wait() for writer in writers] == [0] * 4
    assert numbers.read_numbers("sae") == {name: {"value": 19} for name in names}
    assert [path.name for path in paths.NUMBERS.iterdir()] == ["sae.json"]


def test_missing_file_says_what_to_do(root):
    with pytest.raises(FileNotFoundError, match="esr.json does not exist: run the stage"):
        numbers.read_numbers("esr")


@pytest.mark.parametrize(
    ("fresh", "committed", "verdict"),
    [
        ({"r": estimate(0.02, 0.01, 0.05)}, {"r": estimate(0.02, 0.01, 0.05)}, "identical"),
        ({"r": estimate(0.04, 0.02, 0.07)}, {"r": estimate(0.02, 0.01, 0.03)}, "within intervals"),
        ({"r": estimate(0.09, 0.06, 0.12)}, {"r": estimate(0.02, 0.01, 0.05)}, "different"),
        ({"r": estimate(None, None, None, 0)}, {"r": estimate(0.5, 0.1, 0.9, 3)}, "within intervals"),
        ({"v": 0.84}, {"v": 0.82}, "within intervals"),
        ({"v": 0.84}, {"v": 0.70}, "different"),
        ({"layer": 18}, {"layer": 17}, "different"),
        ({"n_trials": 192, "n_unscored": 3}, {"n_trials": 192, "n_unscored": 0}, "within intervals"),
        ({"n_trials": 192, "n_unscored": 30}, {"n_trials": 192, "n_unscored": 0}, "different"),
        ({"n_trials": 12}, {"n_trials": 192}, "different"),
        ({"v": 1, "w": 2}, {"v": 1}, "different"),
        ({"v": 1}, {"v": 1, "w": 2}, "different"),
        ({"judge": "offline"}, {"judge": "other"}, "different"),
        ({"flag": True}, {"flag": False}, "different"),
        ({"v": None}, {"v": 0.5}, "different"),
    ],
)
def test_verdicts(fresh, committed, verdict):
    assert drift.compare(fresh, committed)[0] == verdict


def test_different_keys_are_named_with_both_values():
    fresh, committed = {"a": {"steered": estimate(0.5, 0.4, 0.6)}}, {"a": {"steered": estimate(0.1, 0.05, 0.2)}}
    assert drift.compare(fresh, committed)[1] == ["a.steered: committed 0.1 [0.05, 0.2], fresh 0.5 [0.4, 0.6]"]


def test_timings_are_not_compared(root):
    numbers.write_numbers("esr", {"a": 1})
    numbers.write_numbers("bench", {"tokens_per_second": 900.0})
    commit(root)
    numbers.write_numbers("bench", {"tokens_per_second": 1.0})
    verdict, text = drift.report()
    assert verdict == "identical" and "bench" not in text
    (root / "paper/numbers/bench.json").unlink()
    assert drift.report()[0] == "identical"


def test_report_against_a_commit(root, capsys):
    numbers.write_numbers("esr", {"r": estimate(0.02, 0.01, 0.05)})
    numbers.write_numbers("sae", {"l0": 32.0})
    commit(root)
    assert drift.report()[0] == "identical"
    numbers.write_numbers("esr", {"r": estimate(0.03, 0.02, 0.06)})
    assert drift.report()[0] == "within intervals"
    numbers.write_numbers("sae", {"l0": 64.0})
    verdict, text = drift.report()
    assert verdict == "different" and "l0: committed 32, fresh 64" in text
    assert tables.main(["compare"]) == 0
    assert tables.main(["compare", "--strict"]) == 1
    assert capsys.readouterr().out.rstrip().endswith("Overall: different.")


def test_a_committed_file_that_was_not_written_is_different(root):
    numbers.write_numbers("esr", {"v": 1})
    numbers.write_numbers("sae", {"v": 1})
    commit(root)
    (paths.NUMBERS / "sae.json").unlink()
    assert drift.report()[0] == "different"


def test_nothing_to_compare_with_is_one_sentence_and_no_failure(root, capsys, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(root.parent))
    assert tables.main(["compare", "--strict"]) == 0
    assert "is not a git repository with a commit" in capsys.readouterr().out
    (root / "README.md").write_text("x")
    commit(root)
    numbers.write_numbers("esr", {"v": 1})
    assert tables.main(["compare", "--strict"]) == 0
    assert "No numbers are committed" in capsys.readouterr().out
    monkeypatch.setenv("PATH", str(root))
    assert tables.main(["compare"]) == 0
    assert "git is not installed" in capsys.readouterr().out
