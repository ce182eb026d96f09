"""Folders in the layout of `from_pretrained`: which files are the model's, and whether it can be loaded whole.

Reads headers, never weights.
"""

from __future__ import annotations

import json
import re
from pathlib import Path, PurePosixPath

from esr.models.failures import FetchError

WEIGHTS = ".safetensors"
WHOLE, INDEX = f"model{WEIGHTS}", f"model{WEIGHTS}.index.json"
PICKLES = ("pytorch_model*.bin", "*.bin", "*.pth", "*.pt", "*.ckpt")
TEXTS = {".json", ".jinja", ".txt", ".model", ".md"}
LICENSES = re.compile(r"(LICEN[CS]E|COPYING|NOTICE|USE_POLICY)", re.IGNORECASE)
RECORD = "source.json"  # in each fetched folder: its source and the size of every file
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
SETTINGS = "tokenizer_config.json"
LFS = b"version https://git-lfs"  # a pointer begins so; its file is elsewhere


def model_files(folder: Path) -> list[Path]:
    """The model's files in `folder`: weights, config, tokenizer, licence; no checkpoint, pickle or export."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [path for path in files if _belongs(PurePosixPath(path.relative_to(folder)))]


def weight_files(folder: Path) -> list[Path]:
    return [path for path in model_files(folder) if path.suffix == WEIGHTS]


def _belongs(name: PurePosixPath) -> bool:
    if len(name.parts) > 1:
        return name.match("1_Pooling/config.json")  # pooling of a sentence-embedding model
    if name.name.startswith(("consolidated", "data_config", RECORD)):  # copies of weights; training data
        return False
    return name.suffix == WEIGHTS or name.suffix in TEXTS or bool(LICENSES.match(name.name))


def check_layout(folder: Path, name: str, chat: bool) -> None:
    """Raise FetchError unless `folder` holds a config, its weights once and whole, a tokenizer and, for `chat`, the
    tokenizer's settings and a template.

    name: of the model, to begin the sentence with.
    """
    if not folder.is_dir():
        if folder.exists():
            raise FetchError(f"{name} is a file: name the folder that holds it.")
        raise FetchError(
            f"{name} does not exist: correct its path, which starts at the repository's root unless it is absolute."
        )
    for path in model_files(folder):
        check_file(path, name)
    if not (folder / "config.json").is_file():
        _refuse(name, "no config.json")
    if not isinstance(json.loads((folder / "config.json").read_text(encoding="utf-8")), dict):
        _refuse(name, "no JSON object in config.json")
    _check_weights(folder, name)
    if not any((folder / tokenizer).is_file() for tokenizer in TOKENIZERS):
        _refuse(name, f"no tokenizer ({', '.join(TOKENIZERS)})")
    if chat and not (folder / SETTINGS).is_file():
        _refuse(name, f"no {SETTINGS}, without which chats would begin without BOS")
    if chat and not _has_chat_template(folder):
        _refuse(name, f"no chat template (chat_template.jinja, or chat_template in {SETTINGS})")


def _refuse(name: str, missing: str, remedy: str = "give a model in the layout that save_pretrained writes"):
    raise FetchError(f"{name} has {missing}: {remedy}.")


def check_file(path: Path, name: str) -> None:
    """Raise FetchError for a file that is not what its name says: a Git LFS pointer, bad JSON, damaged weights."""
    with path.open("rb") as file:
        if file.read(len(LFS)) == LFS:
            raise FetchError(
                f"{name} has a Git LFS pointer instead of {path.name}: run `git lfs pull` in {path.parent}."
            )
    if path.suffix == ".json":
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise FetchError(
                f"{name} has a {path.name} that is not JSON ({error}): download or write it again."
            ) from None
    if path.suffix == WEIGHTS:
        tensors_of(path, name)


def tensors_of(path: Path, name: str) -> dict[str, list[int]]:
    """Shape of every tensor in a safetensors file. Raises FetchError when the file is damaged or shorter than its
    header says."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            return {tensor: file.get_slice(tensor).get_shape() for tensor in file.keys()}  # noqa: SIM118  # no mapping
    except SafetensorError as error:
        raise FetchError(
            f"{name} has a {path.name} that is truncated or damaged ({error}): download or copy it again."
        ) from None


def _check_weights(folder: Path, name: str) -> None:
    """Raise FetchError unless all weights are there: one file, or an index and every shard and tensor it names."""
    shards = [path.name for path in weight_files(folder)]
    if (folder / INDEX).is_file():
        weight_map = json.loads((folder / INDEX).read_text(encoding="utf-8")).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            _refuse(name, f"no weight_map in {INDEX}")
        if WHOLE in shards and set(weight_map.values()) != {WHOLE}:
            raise FetchError(
                f"{name} has both {WHOLE} and {INDEX} with shards, which transformers would ignore: keep the weights "
                "that are the model's, and remove the others."
            )
        if missing := sorted(set(weight_map.values()) - set(shards)):
            _refuse(name, f"no {missing[0]}, which {INDEX} names", "download that file, or fetch the model again")
        held = {shard: tensors_of(folder / shard, name) for shard in set(weight_map.values())}
        if lost := [tensor for tensor, shard in weight_map.items() if tensor not in held[shard]]:
            _refuse(name, f"no tensor {lost[0]} in {weight_map[lost[0]]}, where {INDEX} names it")
    elif WHOLE in shards:
        return
    elif any(re.search(r"-\d+-of-\d+", shard) for shard in shards):
        _refuse(name, f"shards ({shards[0]}), but no {INDEX}")
    elif f"adapter_model{WEIGHTS}" in shards:
        raise FetchError(
            f"{name} is an adapter, not a model: write kind: adapter in its source, and as tuned_from the entry of the "
            "model it was trained on."
        )
    elif pickles := [path.name for pattern in PICKLES for path in sorted(folder.glob(pattern))]:
        raise FetchError(
            f"{name} has its weights as pickle only ({pickles[0]}), which could run code when read: "
            "load it where you trust it, and save it with save_pretrained, which writes safetensors."
        )
    else:
        _refuse(name, f"no safetensors weights ({WHOLE}, or {INDEX} and its shards)")


def _has_chat_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
        return True
    settings = folder / SETTINGS
    return settings.is_file() and bool(json.loads(settings.read_text(encoding="utf-8")).get("chat_template"))
