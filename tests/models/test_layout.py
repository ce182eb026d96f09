"""Folders of models: each way in which one is not whole is refused in one sentence, before anything is copied."""

import json
import struct

import pytest
import torch
from model_files import layout, shards, write_folder
from safetensors.torch import save

from esr.models.failures import FetchError
from esr.models.layout import check_layout, model_files

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
WEIGHTS = layout()["model.safetensors"]
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


def test_a_whole_model_passes_in_one_file_and_in_shards(tmp_path):
    for files in (layout(), shards()):
        check_layout(write_folder(tmp_path / str(len(files)), files), "It", chat=True)


def test_only_the_models_files_are_the_models(tmp_path):
    folder = write_folder(tmp_path, layout() | {"LICENSE": b"", "source.json": b"{}", "sub/model.safetensors": b""})
    assert [path.name for path in model_files(folder)] == [
        "LICENSE", "chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("files", "changes", "message"),
    [
        (
            layout,
            {"config.json": None},
            "It has no config.json: give a model in the layout that save_pretrained writes.",
        ),
        (
            layout,
            {"config.json": b"{'a': 1}"},
            "It has a config.json that is not JSON (Expecting property name enclosed",
        ),
        (layout, {"config.json": b'"text"'}, "It has no JSON object in config.json: give"),
        (layout, {"config.json": b"\xff\xfe{\x00"}, "It has a config.json that is not JSON ("),
        (layout, {"tokenizer.json": b'{"a": '}, "It has a tokenizer.json that is not JSON ("),
        (
            layout,
            {"tokenizer.json": None},
            "It has no tokenizer (tokenizer.json, tokenizer.model, vocab.json, vocab.txt",
        ),
        (
            layout,
            {"chat_template.jinja": None},
            "It has no chat template (chat_template.jinja, or chat_template in token",
        ),
        (layout, {"model.safetensors": WEIGHTS[:-1]}, "It has a model.safetensors that is truncated or damaged ("),
        (layout, {"model.safetensors": WEIGHTS[:20]}, "It has a model.safetensors that is truncated or damaged ("),
        (layout, {"model.safetensors": b""}, "It has a model.safetensors that is truncated or damaged ("),
        (layout, {"model.safetensors": WEIGHTS + b"x"}, "It has a model.safetensors that is truncated or damaged ("),
        (
            layout,
            {"model.safetensors": POINTER},
            "It has a Git LFS pointer instead of model.safetensors: run `git lfs pu",
        ),
        (
            layout,
            {"tokenizer.json": POINTER},
            "It has a Git LFS pointer instead of tokenizer.json: run `git lfs pull` in",
        ),
        (
            layout,
            {"model.safetensors": None},
            "It has its weights as pickle only (pytorch_model.bin), which could run code when read: ",
        ),
        (
            layout,
            {"model.safetensors": None, "optimizer.pt": None, "pytorch_model.bin": None},
            "It has no safetensors weights (model.safetensors, or model.safetensors.index.json and its shards): give",
        ),
        (
            layout,
            {"model.safetensors": None, "adapter_model.safetensors": WEIGHTS},
            "It is an adapter, not a model: write kind: adapter in its source, and as tuned_from the entry of",
        ),
        (
            layout,
            {"tokenizer_config.json": None},
            "It has no tokenizer_config.json, without which chats would begin without BOS: give",
        ),
        (
            shards,
            {"model.safetensors": WEIGHTS},
            f"It has both model.safetensors and {INDEX} with shards, which transformers would ignore: keep the",
        ),
        (shards, {SECOND: None}, f"It has no {SECOND}, which {INDEX} names: download that file"),
        (
            shards,
            {SECOND: save({"c": torch.zeros(1)})},
            f"It has no tensor b in {SECOND}, where {INDEX} names it: give",
        ),
        (shards, {INDEX: None}, f"It has shards ({FIRST}), but no {INDEX}: give"),
        (shards, {INDEX: b"{}"}, f"It has no weight_map in {INDEX}: give"),
        (shards, {FIRST: b"\0" * 8}, f"It has a {FIRST} that is truncated or damaged ("),
    ],
)
def test_a_broken_model_is_refused_in_one_sentence(tmp_path, files, changes, message):
    written = {name: content for name, content in (files() | changes).items() if content is not None}
    folder = write_folder(tmp_path, written)
    with pytest.raises(FetchError) as error:
        check_layout(folder, "It", chat=True)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value) and str(error.value).endswith(".")


def test_an_index_may_name_the_one_file(tmp_path):
    index = {INDEX: b'{"weight_map": {"weight": "model.safetensors"}}'}
    check_layout(write_folder(tmp_path, layout() | index), "It", chat=True)


def test_a_header_that_claims_more_bytes_than_the_file_has_is_refused(tmp_path):
    header = json.dumps({"weight": {"dtype": "F32", "shape": [1000], "data_offsets": [0, 4000]}}).encode()
    short = struct.pack("<Q", len(header)) + header + bytes(3996)
    folder = write_folder(tmp_path, layout() | {"model.safetensors": short})
    with pytest.raises(FetchError, match="It has a model.safetensors that is truncated or damaged"):
        check_layout(folder, "It", chat=True)


def test_an_embedding_model_needs_no_template_and_a_template_may_be_in_the_settings(tmp_path):
    left_out = ("chat_template.jinja", "tokenizer_config.json")
    files = {name: content for name, content in layout().items() if name not in left_out}
    check_layout(write_folder(tmp_path / "embedder", files), "It", chat=False)
    files["tokenizer_config.json"] = b'{"chat_template": "t"}'
    check_layout(write_folder(tmp_path / "model", files), "It", chat=True)


def test_a_missing_folder_and_a_file_in_its_place_are_refused(tmp_path):
    with pytest.raises(FetchError, match="It does not exist: correct its path, which starts at the repository's root"):
        check_layout(tmp_path / "nowhere", "It", chat=True)
    (tmp_path / "file").touch()
    with pytest.raises(FetchError, match="It is a file: name the folder that holds it"):
        check_layout(tmp_path / "file", "It", chat=True)
