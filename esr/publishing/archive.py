"""The study's responses, judgements and intermediates as one archive with checksums.

    python -m esr.publishing.archive make [FOLDER]     # FOLDER/esr-data.tar.gz and data/archive.json
    python -m esr.publishing.archive unpack FILE       # checks every file, then writes it below data/

It holds the outputs of stages that a DVC remote would hold: all but the models, which `fetch` brings from their sources
(`push: false` in dvc.yaml). Equal outputs give an equal archive, byte for byte, where zlib is the same.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import sys
import tarfile
from pathlib import Path, PurePosixPath

from esr import paths
from esr.storage.files import write_bytes, write_json

NAME, MANIFEST = "esr-data.tar.gz", "MANIFEST.json"
CARD = "archive.json"  # in data/: what the archive of the committed study is


class ArchiveError(ValueError):
    """The archive cannot be made or is not what it says; one sentence."""


def outputs(root: Path) -> list[Path]:
    """Folders and files of the study that a remote would hold, each as dvc.lock has it.

    Raises ArchiveError naming those that are missing or other than in dvc.lock.
    """
    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        outs = [out for out in repo.index.outs if out.use_cache and out.can_push]
        wrong = sorted(str(out) for out in outs if not out.exists or out.changed_checksum())
        found = sorted(Path(out.fs_path) for out in outs)
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ArchiveError(f"{', '.join(wrong[:3])}{more}: missing, or not as in dvc.lock; run dvc repro first.")
    return found


def files_of(root: Path) -> dict[str, Path]:
    """Every file of the `outputs`, by its path from the root, sorted."""
    found = [f for out in outputs(root) for f in ([out] if out.is_file() else out.rglob("*")) if f.is_file()]
    return dict(sorted((file.relative_to(root).as_posix(), file) for file in found))


def make(root: Path, folder: Path) -> dict:
    """Write the archive and data/archive.json; returns the content of the latter."""
    files = files_of(root)
    if not files:
        raise ArchiveError("dvc.yaml has no outputs to keep: choose models with `esr select`.")
    digests = {name: _sha256(file.read_bytes()) for name, file in files.items()}
    manifest = {name: {"bytes": file.stat().st_size, "sha256": digests[name]} for name, file in files.items()}
    folder.mkdir(parents=True, exist_ok=True)
    target, partial = folder / NAME, folder / f"{NAME}.partial"
    with (
        partial.open("wb") as raw,
        gzip.GzipFile("", "wb", mtime=0, fileobj=raw) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        _add(tar, MANIFEST, json.dumps(manifest, indent=1).encode())
        for name, file in files.items():
            _add(tar, name, file.read_bytes())
    partial.replace(target)
    stages: dict[str, dict[str, int]] = {}
    for name, file in files.items():
        stage = stages.setdefault(PurePosixPath(name).parts[1], {"files": 0, "bytes": 0})
        stage["files"] += 1
        stage["bytes"] += file.stat().st_size
    content = target.read_bytes()
    card = {"name": NAME, "bytes": len(content), "sha256": _sha256(content), "stages": stages}
    write_json(root / "data" / CARD, card)
    return card


def unpack(root: Path, file: Path) -> int:
    """Write the files of an archive below `root`, after all of them were checked; returns their number.

    Raises ArchiveError, with nothing written, for a file that is damaged, missing, or outside data/, and for an archive
    other than the one of data/archive.json, if there is one.
    """
    if not file.is_file():
        raise ArchiveError(f"{file} does not exist: download it from the release, or make it with `make archive`.")
    content, card = file.read_bytes(), root / "data" / CARD
    if card.exists() and _sha256(content) != json.loads(card.read_text(encoding="utf-8"))["sha256"]:
        raise ArchiveError(f"{file} is not the archive of data/{CARD} (other SHA-256): download that of this version.")
    found = _read(content, file)
    manifest = json.loads(found.pop(MANIFEST, b"{}"))
    for name in sorted({*manifest, *found}):
        parts = PurePosixPath(name).parts
        if parts[:1] != ("data",) or ".." in parts:
            raise ArchiveError(f"{file} holds {name}, which is not below data/: do not use it.")
        if name not in found or name not in manifest or _sha256(found[name]) != manifest[name]["sha256"]:
            raise ArchiveError(f"{file}: {name} is damaged, missing or not in the manifest: download it again.")
    for name, data in found.items():
        write_bytes(root / name, data)
    return len(found)


def _read(content: bytes, file: Path) -> dict[str, bytes]:
    """The plain files of an archive by name."""
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as tar:
            members = [(member, tar.extractfile(member)) for member in tar if member.isfile()]
            return {member.name: data.read() for member, data in members if data}
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ArchiveError(f"{file} is not a whole archive ({error}): download it again.") from None


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file without owner and time."""
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), 0o644
    tar.addfile(entry, io.BytesIO(content))


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m esr.publishing.archive", description="Archive of the study's data."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("make", help="write the archive and data/archive.json")
    making.add_argument("folder", nargs="?", type=Path, default=paths.ROOT / "dist")
    unpacking = commands.add_parser("unpack", help="check an archive and write its files below data/")
    unpacking.add_argument("file", type=Path)
    given = parser.parse_args(arguments)
    try:
        if given.command == "unpack":
            print(f"{unpack(paths.ROOT, given.file)} files checked and written below data/")
            return 0
        card = make(paths.ROOT, given.folder)
    except ValueError as error:
        print(paths.from_root(str(error)), file=sys.stderr)
        return 1
    for stage, entry in card["stages"].items():
        print(f"{stage:<14} {entry['files']:>5} files {entry['bytes'] / 1e6:>8.1f} MB")
    print(f"{given.folder / card['name']}: {card['bytes'] / 1e6:.1f} MB, sha256 {card['sha256']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
