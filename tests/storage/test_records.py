"""Rows that do not fit their schema are refused by file, line and field; a prompts file must hold prompts."""

import json

import pytest

from esr.storage import prompts
from esr.storage.digests import digest
from esr.storage.files import read_rows, write_rows
from esr.storage.prompts import read_prompts
from esr.storage.records import Prompt, Query


def test_round_trip(tmp_path):
    rows = [Query(boost=0.25, score=30.0, n=4), Query(boost=0.5, score=1e-9, n=5)]
    write_rows(tmp_path / "rows.jsonl", rows)
    assert read_rows(tmp_path / "rows.jsonl", Query) == rows


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"boost": 0.5, "score": 1.0}, "n"),
        ({"boost": 0.5, "score": 1.0, "n": "4"}, "n"),
        ({"boost": 0.5, "score": 1.0, "n": 4, "seed": 1}, "seed"),
        ({"boost": 0.5, "score": 1.0, "n": True}, "n"),
    ],
)
def test_wrong_rows_are_named(tmp_path, row, field):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"boost": 0.5, "score": 1.0, "n": 4}) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=f"line 2: {field}"):
        read_rows(path, Query)


def test_a_missing_file_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="dvc repro"):
        read_rows(tmp_path / "none.jsonl", Query)


def test_a_digest_depends_on_everything():
    assert digest(1, {"a": 2, "b": 3}) == digest(1, {"b": 3, "a": 2})
    assert len({digest(1), digest("1"), digest(1.5), digest([1]), digest(1, 1)}) == 5


def test_the_prompts_are_two_disjoint_sets_of_38():
    evaluation, held_out = read_prompts("evaluation"), read_prompts("held_out")
    assert len({p.text for p in evaluation} | {p.text for p in held_out}) == 76
    assert evaluation[0] == Prompt(id="evaluation-01", text=evaluation[0].text)


@pytest.mark.parametrize(("content", "message"), [("\n  \n", "holds no prompt"), ("a\nb\na\n", "twice: 'a'")])
def test_a_bad_prompts_file_is_refused(tmp_path, monkeypatch, content, message):
    monkeypatch.setattr(prompts, "PROMPTS", tmp_path)
    (tmp_path / "evaluation.txt").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_prompts("evaluation")
    with pytest.raises(FileNotFoundError, match="held_out.txt"):
        read_prompts("held_out")
