"""A judge on this machine: llama.cpp serves a GGUF file, and inspect-ai requests verdicts of it."""

import pytest

from esr.judging import server
from esr.judging.llm import ModelJudge
from esr.judging.providers import JudgeError
from esr.models.failures import FetchError
from esr.models.fetch import gguf_file


class Entry:
    def __init__(self, *source):
        self.source, self.tuned_from = list(source), None


class Folder:
    kind = "folder"

    def __init__(self, folder):
        self.folder = self.path = folder


def test_the_file_of_a_model_is_found(tmp_path):
    (tmp_path / "small.gguf").write_bytes(b"GGUF")
    assert gguf_file(Entry(Folder(tmp_path))) == tmp_path / "small.gguf"
    with pytest.raises(FetchError, match="no GGUF file of its own"):
        gguf_file(Entry(Folder(tmp_path / "none")))


def test_a_server_that_ends_is_reported_with_its_last_words(tmp_path, monkeypatch):
    monkeypatch.setattr(server, "CACHE", tmp_path)
    with pytest.raises(JudgeError, match=r"status 1 \(error: Unknown model 'nobody'.*server-nobody.log"), \
            server.serving("nobody"):  # fmt: skip
        pass


def test_its_entry_is_one_that_params_yaml_takes():
    entry = server.entry("qwen25-coder-15b", 8123, 2)
    assert (entry.base_url, entry.max_connections) == ("http://127.0.0.1:8123/v1", 2)
    assert ModelJudge(entry).name.startswith("openai-api-local-qwen25-coder-15b-")
