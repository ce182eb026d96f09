"""The hub: what is requested of it, and one sentence for each way it fails."""

import json

import httpx2
import pytest
from huggingface_hub import errors
from model_files import contents, entry, layout, source, write_folder

from esr.models import hub
from esr.models.failures import FetchError
from esr.models.fetch import fetch_model


@pytest.fixture
def requested(tmp_path, monkeypatch):
    """A hub with one model; what is requested of it."""
    snapshot = write_folder(tmp_path / "snapshots" / "abc123", layout())
    requested = {}

    def download(name, **options):
        requested.update(options, name=name)
        return str(snapshot)

    monkeypatch.setattr(hub, "snapshot_download", download)
    return requested


def test_model_records_its_commit(requested, tmp_path):
    folder = fetch_model(entry(source("hub", id="someone/model", revision="v1")), tmp_path / "model")
    assert (requested["name"], requested["revision"]) == ("someone/model", "v1")
    assert json.loads((folder / "source.json").read_text())["commit"] == "abc123"
    assert set(contents(folder)) == {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
        "source.json",
    }  # fmt: skip


def test_cache_token_and_offline_mode_are_left_to_huggingface_hub(requested, tmp_path):
    fetch_model(entry(source("hub", id="someone/model")), tmp_path / "model")
    assert set(requested) == {"name", "revision", "allow_patterns", "ignore_patterns", "tqdm_class"}


def test_missing_file_of_a_repository_is_refused(requested, tmp_path):
    message = "data/models.yaml: model: The hub's someone/model .revision main. holds no q4.gguf: correct `file`.$"
    with pytest.raises(FetchError, match=message):
        fetch_model(entry(source("hub", id="someone/model", file="q4.gguf")), tmp_path / "model")
    assert requested["allow_patterns"][0] == "q4.gguf" and "*.safetensors" not in requested["allow_patterns"]


def http(kind, status=403):
    return kind(
        "Client Error.\n\nLong story.", response=httpx2.Response(status, request=httpx2.Request("GET", "https://h"))
    )


def caused(error, cause):
    error.__cause__ = cause
    return error


HUB = "data/models.yaml: model: The hub's someone/model "


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            http(errors.GatedRepoError),
            "is gated: accept its licence on the model's page, then log in .`hf auth login`, or",
        ),
        (http(errors.RepositoryNotFoundError, 404), "does not exist, or is private: check its `id`, or log in"),
        (http(errors.RevisionNotFoundError, 404), "has no revision 'v2': give a branch, a tag or a commit"),
        (
            caused(errors.LocalEntryNotFoundError("Cannot find"), errors.OfflineModeIsEnabled("offline")),
            r"\(revision v2\) is not in the hub's cache, and HF_HUB_OFFLINE is set: unset it for a first",
        ),
        (
            errors.OfflineModeIsEnabled("offline"),
            r"\(revision v2\) is not in the hub's cache, and HF_HUB_OFFLINE is set",
        ),
        (
            caused(errors.LocalEntryNotFoundError("Got: x"), httpx2.ConnectError("No route to host.\nAnd")),
            r"\(revision v2\) is not in the hub's cache, and the hub cannot be reached \(No route to host\): con",
        ),
        (
            caused(errors.IncompleteSnapshotError("Half", snapshot_path="/x"), httpx2.ConnectError("No route")),
            r"\(revision v2\) is not in the hub's cache, and the hub cannot be reached",
        ),
        (
            http(errors.HfHubHTTPError, 503),
            r"\(revision v2\) could not be downloaded \(HfHubHTTPError: Client Error\): ",
        ),
        (
            OSError("Disk quota exceeded"),
            r"\(revision v2\) could not be downloaded \(OSError: Disk quota exceeded\): conn",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_failure_is_one_sentence_that_says_what_to_do(tmp_path, monkeypatch, error, message):
    def fail(name, **options):
        raise error

    monkeypatch.setattr(hub, "snapshot_download", fail)
    with pytest.raises(FetchError, match=HUB + message) as raised:
        fetch_model(entry(source("hub", id="someone/model", revision="v2")), tmp_path / "model")
    sentence = str(raised.value)
    assert "\n" not in sentence and sentence.endswith(".") and ". " not in sentence
    assert not list(tmp_path.iterdir())


def test_offline_and_not_in_the_cache_is_refused_by_the_library_itself(tmp_path, monkeypatch):
    """The real client, offline, with an empty cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(FetchError, match=HUB + ".* is not in the hub's cache, and HF_HUB_OFFLINE is set"):
        fetch_model(entry(source("hub", id="someone/model")), tmp_path / "model")


def test_a_snapshot_in_the_cache_is_fetched_offline(tmp_path, monkeypatch):
    """The real client, offline, with the repository in its cache; the cache is not changed."""
    commit, cached = "a" * 40, tmp_path / "cache" / "models--someone--model"
    write_folder(cached / "snapshots" / commit, layout())
    write_folder(cached, {"refs/main": commit.encode()})
    before = contents(cached)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    folder = fetch_model(entry(source("hub", id="someone/model")), tmp_path / "model")
    assert json.loads((folder / "source.json").read_text())["commit"] == commit
    assert contents(cached) == before


def test_bytes_are_shown_as_lines_and_files_are_not(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ESR_PROGRESS", str(tmp_path / "progress"))
    monkeypatch.setattr(hub.Lines, "every", 0.0)
    for unit in ("it", "B"):
        with hub.Lines(
            total=2_000_000, desc="Reconstructing", unit=unit, unit_scale=True, bar_format="|", disable=True
        ) as bar:
            bar.update(1_000_000)
    lines = (tmp_path / "progress").read_text().splitlines()
    assert any(line.startswith("fetch: Reconstructing: 1.00MB of 2.00MB, ") for line in lines)
    assert all("B of 2.00MB" in line for line in lines)
    assert capsys.readouterr() == ("", "")
