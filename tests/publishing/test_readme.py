"""README's generated blocks are those of the committed numbers, and a block that is wrong is found."""

import pytest
from committed_numbers import committed

from esr.paths import ROOT
from esr.publishing import readme
from esr.reporting.claims import ABOUT


@pytest.mark.parametrize("name", readme.DOCUMENTS)
def test_blocks_are_up_to_date(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert readme.filled(text, committed) == text, "run python -m esr.publishing.readme"


def test_every_block_stands_somewhere():
    texts = "".join((ROOT / name).read_text(encoding="utf-8") for name in readme.DOCUMENTS)
    assert sorted(match[2] for match in readme.BLOCK.finditer(texts)) == sorted(readme.BLOCKS)


def test_a_block_is_made_anew_and_text_around_it_stays():
    text = "Before.\n<!-- begin tally -->\n| old |\n<!-- end tally -->\nAfter.\n"
    fresh = readme.filled(text, committed)
    assert fresh.startswith("Before.\n<!-- begin tally -->\n| verdict |") and fresh.endswith(
        "<!-- end tally -->\nAfter.\n"
    )
    assert "old" not in fresh and readme.filled(fresh, committed) == fresh


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- begin taly -->\n<!-- end taly -->", "no block 'taly'"),
        ("<!-- begin tally -->\n| a |", "needs one begin and one end"),
        ("<!-- end tally -->\n<!-- begin tally -->\n", "needs one begin and one end"),
        ("<!-- begin tally -->\n<!-- end tally -->\n" * 2, "needs one begin and one end"),
    ],
)
def test_a_broken_block_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        readme.filled(text, committed)


def test_the_tally_counts_every_claim_once():
    rows = [line.split(" | ") for line in readme.tally(committed).replace("|\n", "\n").splitlines()[2:]]
    counts = [[0 if cell.strip(" |") == "–" else int(cell.strip(" |")) for cell in row[1:]] for row in rows]
    *verdicts, total = counts
    assert total == [sum(column) for column in zip(*verdicts, strict=True)]
    assert all(sum(row[: len(ABOUT)]) == row[-1] for row in counts) and total[-1] == len(committed("claims"))


def test_times_are_shown_where_they_were_measured():
    times = {"seconds": {"measure": {"": 12.4}, "ablate": {"a": 100.0, "b": 200.0}}}
    lines = readme.experiments_table({"claims": committed("claims"), "times": times}.__getitem__).splitlines()
    assert {line.split(" | ")[-1] for line in lines if "20_measure" in line} == {"12 s |"}
    assert {line.split(" | ")[-1] for line in lines if "14_ablate" in line} == {"5 min |"}
    assert sum(line.endswith("| – |") for line in lines) == len(lines) - 2 - 5


def test_check_changes_nothing_and_says_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(readme.paths, "ROOT", tmp_path)
    monkeypatch.setattr(readme, "read_numbers", committed)
    for folder in ("data", "docs"):
        (tmp_path / folder).mkdir()
    old = "<!-- begin tally -->\n<!-- end tally -->\n"
    (tmp_path / "README.md").write_text(old)
    for name in readme.DOCUMENTS[1:]:
        (tmp_path / name).write_text("no block\n")
    assert readme.main(["--check"]) == 1 and "README.md: out of date: run" in capsys.readouterr().out
    assert (tmp_path / "README.md").read_text() == old
    assert readme.main([]) == 0 and readme.main(["--check"]) == 0
    assert "reproduced" in (tmp_path / "README.md").read_text()
    (tmp_path / "README.md").write_text("<!-- begin taly -->")
    assert readme.main([]) == 1 and "no block 'taly'" in capsys.readouterr().err
