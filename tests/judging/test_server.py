"""A judge on this machine: llama.cpp serves a GGUF file, and inspect-ai requests verdicts of it."""

import pytest

from esr.config.judges import LlmJudge
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
    judge = LlmJudge(name="none", serve="nobody")
    with pytest.raises(JudgeError, match=r"status 1 \(error: Unknown model 'nobody'.*server-nobody.log"), \
            server.serving(judge):  # fmt: skip
        pass


def test_the_server_has_the_parameters_it_is_given(tmp_path):
    found = server.server_parameters(tmp_path / "small.gguf", 8123, 2)
    assert (found.model.path, found.port, found.n_parallel) == (str(tmp_path / "small.gguf"), 8123, 2)
    assert list(found.hostnames) == ["127.0.0.1"] and found.n_ctx == 2 * server.CONTEXT  # of this machine alone


def test_a_served_judge_is_known_by_its_weights_and_not_by_its_port(monkeypatch):
    judge = LlmJudge(name="qwen", serve="qwen25-coder-15b")
    assert server.weights_of("qwen25-coder-15b").startswith("cc324af0")
    name = ModelJudge(judge).name
    assert name.startswith("qwen25-coder-15b-")
    monkeypatch.setattr("esr.judging.llm.weights_of", lambda model: "other weights")
    assert ModelJudge(judge).name != name


@pytest.mark.parametrize(
    "fields",
    [{}, {"model": "openai/x", "serve": "qwen25-coder-15b"}, {"serve": "qwen25-coder-15b", "base_url": "http://a"}],
)
def test_a_judge_is_a_providers_or_served(fields):
    with pytest.raises(ValueError, match="give one of the two"):
        LlmJudge(name="x", **fields)
