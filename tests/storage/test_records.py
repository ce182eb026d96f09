"""Rows that do not fit their schema are refused by file, line and field."""

import json

import pytest

from esr.storage.digests import digest
from esr.storage.files import read_rows, write_rows
from esr.storage.records import Prompt, Query


def test_round_trip(tmp_path):
    rows = [Query(boost=0.25, score=30.0, n=4), Query(boost=0.5, score=1e-9, n=5)]
    write_rows(tmp_path / "rows.jsonl", rows)
    assert read_rows(tmp_path / "rows.jsonl", Query) == rows


@pytest.mark.parametrize(
    ("row", "mistake"),
    [
        ({"boost": 0.5, "score": 1.0}, " has no n: add it.$"),
        ({"boost": 0.5, "score": 1.0, "n": "4"}, ": n: it must be a valid integer"),
        ({"boost": 0.5, "score": 1.0, "n": 4, "seed": 1}, ": seed: extra inputs are not permitted"),
        ({"boost": 0.5, "score": 1.0, "n": True}, ": n: it must be a valid integer"),
    ],
)
def test_wrong_rows_are_named(tmp_path, row, mistake):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"boost": 0.5, "score": 1.0, "n": 4}) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=f"rows.jsonl, line 2{mistake}"):
        read_rows(path, Query)


def test_a_missing_file_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="dvc repro"):
        read_rows(tmp_path / "none.jsonl", Query)


def test_a_digest_depends_on_everything():
    assert digest(1, {"a": 2, "b": 3}) == digest(1, {"b": 3, "a": 2})
    assert len({digest(1), digest("1"), digest(1.5), digest([1]), digest(1, 1)}) == 5


def test_a_line_separator_in_a_text_does_not_split_its_row(tmp_path):
    rows = [Prompt(id=str(i), text=f"a{mark}b") for i, mark in enumerate(("\u2028", "\u2029", "\x85", "\x0c", "\r\n"))]
    write_rows(tmp_path / "rows.jsonl", rows)
    assert "a\u2028b" in (tmp_path / "rows.jsonl").read_text(encoding="utf-8"), "JSON leaves it as it is"
    assert read_rows(tmp_path / "rows.jsonl", Prompt) == rows


ROW = json.dumps({"boost": 0.5, "score": 1.0, "n": 4})


@pytest.mark.parametrize(
    "content", [f"{ROW}\r\n{ROW}\r\n", f"\ufeff{ROW}\n\n{ROW}\n", f"{ROW}\r{ROW}", f"{ROW}\n{ROW}\n\n \n"],
    ids=["CRLF", "BOM and an empty line", "lone CR, no line break at the end", "empty lines at the end"],
)  # fmt: skip
def test_rows_are_read_however_an_editor_saved_them(tmp_path, content):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content.encode("utf-8"))
    assert read_rows(path, Query) == [Query(boost=0.5, score=1.0, n=4)] * 2


@pytest.mark.parametrize("length", range(1, len(ROW)))
def test_a_row_that_is_cut_off_is_named(tmp_path, length):
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{ROW}\n{ROW[:length]}")
    message = f"^{path}, line 2: the last row is cut off: run the stage that writes the file again"
    with pytest.raises(ValueError, match=message):
        read_rows(path, Query)


def test_what_is_no_json_in_the_middle_is_named_too(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{ROW[:9]}\n{ROW}\n")
    with pytest.raises(ValueError, match=r"line 1 is not valid JSON \(.* at column 9\): correct it"):
        read_rows(path, Query)
