"""README's findings: what was measured is said, what was not is left out, and links lead somewhere."""

import re

import pytest
from committed_numbers import committed

from esr.paths import ROOT
from esr.publishing import readme
from esr.publishing.findings import RESULTS, findings


@pytest.fixture
def read():
    """Committed numbers, of which a test may replace files by name."""
    replaced = {}

    def read(name):
        found = replaced[name] if name in replaced else committed(name)
        if found == "absent":
            raise FileNotFoundError(name)
        return found

    read.replaced = replaced
    return read


def test_each_finding_names_its_n_and_where_it_comes_from(read):
    lines = findings(read).splitlines()
    assert len(lines) == 5
    for line in lines:
        assert line.startswith("- **") and re.search(r"n = \d+", line)
        places = re.findall(r"\]\(([^)#]+)", line)
        assert places[0] == RESULTS and len(places) == 3
        assert all((ROOT / place).exists() for place in places)


def test_a_number_that_changes_changes_its_sentence(read):
    esr = committed("esr")
    before = findings(read)
    steered = esr["smollm2-135m"]["steered"]["multi_attempt_rate"]
    esr["smollm2-135m"]["steered"]["multi_attempt_rate"] = type(steered)(0.123, 0.1, 0.15, 99)
    read.replaced["esr"] = esr
    assert "12.3 % [10.0, 15.0] restart when steered (n = 99)" in findings(read)
    assert findings(read).splitlines()[1:] == before.splitlines()[1:]


def test_what_was_not_measured_is_left_out(read):
    read.replaced |= {"ablate": {}, "meta_prompts": "absent"}
    shown = findings(read)
    assert len(shown.splitlines()) == 3 and "ablated" not in shown and "monitor" not in shown


def test_a_study_without_a_taught_model_says_nothing_of_one(read):
    read.replaced["esr"] = {"smollm2-135m": committed("esr")["smollm2-135m"]}
    assert len(findings(read).splitlines()) == 2


def test_the_example_is_shown_where_one_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(readme.paths, "ROOT", tmp_path)
    assert "when it has one" in readme.example(committed)
    (tmp_path / "paper/figures").mkdir(parents=True)
    (tmp_path / "paper/figures/example.svg").write_text("<svg/>")
    shown = readme.example(committed)
    assert shown.startswith("![A steered response") and "(paper/figures/example.svg)" in shown
