"""A file's digest is that of its bytes now, also when it changes in place with equal size and times."""

import os
import time
from pathlib import Path

import pytest

from esr.storage import digests
from esr.storage.digests import file_digest


@pytest.fixture
def opened(monkeypatch):
    """Files that are read."""
    seen, known = [], Path.open

    def open_noted(path, *arguments, **options):
        seen.append(path.name)
        return known(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", open_noted)
    return seen


@pytest.fixture
def settled(monkeypatch):
    """Files count as settled at once."""
    monkeypatch.setattr(digests, "SETTLED", -1)


def test_a_file_that_stays_is_read_once(tmp_path, opened, settled):
    file = tmp_path / "weights"
    file.write_bytes(b"12")
    assert file_digest(file) == file_digest(file) == "6b51d431df5d7f14"
    assert opened.count("weights") == 2, "written once, read once"


def test_a_file_that_was_just_written_is_read_again(tmp_path, opened):
    """Within the grain of its time stamps it could change without a trace."""
    file = tmp_path / "weights"
    file.write_bytes(b"12")
    assert file_digest(file) == file_digest(file)
    assert opened.count("weights") == 3


@pytest.mark.parametrize("how", ["in place", "replaced", "linked"])
def test_a_change_that_keeps_size_and_time_is_seen(tmp_path, settled, how):
    file, other = tmp_path / "weights", tmp_path / "other"
    file.write_bytes(b"12")
    other.write_bytes(b"21")
    for path in (file, other):
        os.utime(path, (1, 1))
    before = file_digest(file)
    time.sleep(0.05)  # the grain of the time of the last change, which nothing sets back
    if how == "in place":
        file.write_bytes(b"21")
        os.utime(file, (1, 1))
    elif how == "replaced":
        other.replace(file)
    else:
        file.unlink()
        file.symlink_to(other)
    assert file_digest(file) != before


def test_a_file_that_changes_while_it_is_read_is_read_again(tmp_path, settled, monkeypatch):
    file = tmp_path / "weights"
    file.write_bytes(b"12")
    known = digests.hashlib.file_digest

    def late(opened, name):
        found = known(opened, name)
        time.sleep(0.05)
        file.write_bytes(b"21")
        return found

    with monkeypatch.context() as patch:
        patch.setattr(digests.hashlib, "file_digest", late)
        first = file_digest(file)
    assert file_digest(file) != first
