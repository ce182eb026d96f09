"""Files of prompts as users write them: what stays inside a prompt, and what is refused by file and line."""

import hashlib

import pytest

from esr.storage import prompts
from esr.storage.files import read_lines, read_text
from esr.storage.prompts import read_prompts
from esr.storage.records import Prompt

TWO = ["Explain how to bake bread.", "What is a 🥖?"]
INSIDE = {"U+2028": "\u2028", "U+2029": "\u2029", "NEL": "\x85", "form feed": "\x0c", "vertical tab": "\x0b",
          "file separator": "\x1c", "no-break space": "\xa0", "tab": "\t"}  # fmt: skip


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.setattr(prompts, "PROMPTS", tmp_path)
    return lambda content: (tmp_path / "evaluation.txt").write_bytes(content)


def texts():
    return [prompt.text for prompt in read_prompts("evaluation")]


def test_the_prompts_are_two_disjoint_sets_of_38():
    evaluation, held_out = read_prompts("evaluation"), read_prompts("held_out")
    assert len({p.text for p in evaluation} | {p.text for p in held_out}) == 76
    assert evaluation[0] == Prompt(id="evaluation-01", text=evaluation[0].text)


@pytest.mark.parametrize(
    ("split", "expected"),
    [("evaluation", "c480d79cbbc351db"), ("held_out", "fa813368db2556f1"), ("finetune", "01a814102f5f7575")],
)  # fmt: skip
def test_ids_and_texts_of_the_studys_prompts_are_the_ones_of_its_results(split, expected):
    rows = "".join(f"{p.id} {p.text}\n" for p in read_prompts(split))
    assert hashlib.sha256(rows.encode()).hexdigest()[:16] == expected


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["LF", "CRLF", "CR"])
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "BOM"])
@pytest.mark.parametrize("last", [True, False], ids=["ended", "open"])
def test_prompts_are_the_same_however_an_editor_saved_them(write, end, mark, last):
    write((mark + end.join(["", TWO[0], "", f"  {TWO[1]} "]) + end * last).encode("utf-8"))
    assert read_prompts("evaluation") == [Prompt(id=f"evaluation-0{i}", text=text) for i, text in enumerate(TWO, 1)]


@pytest.mark.parametrize("character", INSIDE.values(), ids=INSIDE)
def test_a_character_that_some_take_for_a_line_break_stays_inside_its_prompt(write, character):
    write(f"Explain{character}bread.\n{TWO[1]}\n".encode())
    assert texts() == [f"Explain{character}bread.", TWO[1]]


def test_a_line_with_a_number_sign_is_a_prompt(write):
    write(b"# Explain bread.\n")
    assert texts() == ["# Explain bread."]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no prompt: write one per line"),
        (b"\n\r\n\n", "holds no prompt"),
        (b"\xef\xbb\xbf", "holds no prompt"),
        (b"a\n   \nb\n", "line 2 holds spaces alone: write a prompt there or empty the line"),
        ("a\n\u2028\n".encode(), "line 2 holds spaces alone"),
        (b"a\nb\n\n a\n", "line 4 holds a prompt twice: 'a'. Remove it, or line 1"),
        ("a\nb\n".encode("utf-16"), "is encoded in UTF-16: save it as UTF-8"),
        (b"\xfe\xff" + "a\nb\n".encode("utf-16-be"), "is encoded in UTF-16: save it as UTF-8"),
        ("a\nb\n".encode("utf-32"), "is encoded in UTF-32: save it as UTF-8"),
        ("a\nb\n".encode("utf-16-le"), "line 1 holds a NUL character, as UTF-16 does"),
        (b"a\nb\0c\n", "line 2 holds a NUL character"),
        ("a\rb\nWie bäckt man Brot?\n".encode("latin-1"), "line 3: byte 0xe4 is not UTF-8: save the file as UTF-8"),
        ("a\nbread 🥖".encode()[:-1], "line 2: byte 0xf0 is not UTF-8"),
    ],
)
def test_a_bad_prompts_file_is_refused_in_one_sentence(write, tmp_path, content, message):
    write(content)
    with pytest.raises(ValueError) as error:
        read_prompts("evaluation")
    assert str(error.value).startswith(f"{tmp_path / 'evaluation.txt'}") and message in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_missing_split_is_named(write):
    with pytest.raises(FileNotFoundError, match="held_out.txt does not exist: a split needs a file of prompts"):
        read_prompts("held_out")


def test_text_keeps_its_line_breaks_and_lines_have_none(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(b"\xef\xbb\xbfa\r\nb\rc\n\n")
    assert read_text(path) == "a\r\nb\rc\n\n" and read_lines(path) == ["a", "b", "c", ""]
